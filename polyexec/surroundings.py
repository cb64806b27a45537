"""What a task finds around it: environment variables and the size of thread pools.

``_overlays`` is guarded by ``_lock``; no user code runs while it is held.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator, Mapping

import threadpoolctl

from polyexec.wire import Attempt

POOL_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)

_lock = threading.Lock()
_overlays: dict[str, list[tuple[int, str]]] = {}
_originals: dict[str, str | None] = {}
_pool_size: list[int] = []
_controllers: dict[int, threadpoolctl.ThreadpoolController] = {}


@contextlib.contextmanager
def surroundings(attempt: Attempt, *, exclusive: bool, own_process: bool) -> Iterator[None]:
    """Set variables and pools for a task, and put the variables back after it.

    Args:
        attempt: the attempt to run the task.
        exclusive: no other task runs in the process; else pools stay as they are, because all tasks share them.
        own_process: the process is for tasks alone, so that pools need not be put back.
    """
    variables = dict.fromkeys(POOL_VARIABLES, str(attempt.threads)) if exclusive else {}
    if attempt.gpu_ids is not None:
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(attempt.gpu_ids)
    variables |= attempt.env
    size = _pool_size_for(attempt) if exclusive else None
    if own_process:
        _size_pools(size)
    with contextlib.nullcontext() if own_process or size is None else _controller().limit(limits=size):
        try:
            _push(attempt.call_id, variables)
            yield
        finally:
            _pop(attempt.call_id, variables)


def _pool_size_for(attempt: Attempt) -> int | None:
    wanted = attempt.env.get("OMP_NUM_THREADS", str(attempt.threads))
    return int(wanted) if wanted.isdigit() and int(wanted) > 0 else None


def _push(call_id: int, variables: Mapping[str, str]) -> None:
    with _lock:
        for name, value in variables.items():
            layers = _overlays.setdefault(name, [])
            if not layers:
                _originals[name] = os.environ.get(name)
            layers.append((call_id, value))
            if os.environ.get(name) != value:
                os.environ[name] = value


def _pop(call_id: int, variables: Mapping[str, str]) -> None:
    with _lock:
        for name in variables:
            layers = [layer for layer in _overlays.get(name, ()) if layer[0] != call_id]
            _overlays[name] = layers
            value = layers[-1][1] if layers else _originals.get(name)
            if value is None:
                os.environ.pop(name, None)
            elif os.environ.get(name) != value:
                os.environ[name] = value


def _size_pools(size: int | None) -> None:
    """Size the pools of libraries that are loaded already; those loaded later read the variables."""
    if size is None or _pool_size == [size]:
        return
    _controller().limit(limits=size)
    _pool_size[:] = [size]


def _controller() -> threadpoolctl.ThreadpoolController:
    """Find the pools of this process; looked for again only when modules have been imported since."""
    known = _controllers.get(len(sys.modules))
    if known is None:
        _controllers.clear()
        known = _controllers[len(sys.modules)] = threadpoolctl.ThreadpoolController()
    return known


def default_surroundings() -> None:
    """Give a process that is for tasks alone what a task with default options finds; cheap if that is there already."""
    if not _by_default:
        _by_default.update(dict.fromkeys(POOL_VARIABLES, "1"))
        os.environ.update(_by_default)
    if _pool_size != _ONE:
        _size_pools(1)


_by_default: dict[str, str] = {}
_ONE = [1]

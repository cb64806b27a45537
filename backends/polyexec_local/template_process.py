"""What runs in the template, the process from which all workers of a pool are forked.

It imports once what workers need, and has one thread, so that forking it is safe. For each request of the driver it
forks a keeper, which forks the worker. Two sockets lead to the driver: ``control`` brings requests and is held by the
template alone; ``report`` takes messages from it and its keepers, until none of them is left.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from polyexec_local.children import ChildSignals, adopt_orphans, children, kill_children, leave
from polyexec_local.keeper import Reporter, keep

_FAREWELL = 2.0
"""Seconds to wait for keepers when the driver is gone, so that none is left to others to reap."""

_PATIENCE = 0.05
_TOKEN_SIZE = 8
_REASON_LIMIT = 8000
_CLOSE_ON_EXEC: int = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
_POOL_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


def main(control: int, report: int, entry: str, preload: Sequence[str]) -> None:
    """Serve the driver until it is gone. In each worker, run the entry, and return when it does.

    Args:
        control: descriptor of the socket that brings requests.
        report: descriptor of the socket that takes messages.
        entry: ``"module:function"``, called in each worker with the socket that was sent for it.
        preload: names of modules to import before the first request is served.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The driver's thread may have blocked some.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    gc.disable()
    requests = socket.socket(fileno=control)
    reporter = Reporter(socket.socket(fileno=report))
    with _ending_with(requests):
        run = _imported(entry, preload, reporter)
    # A collector in a worker would touch, and so copy, what all of them share.
    gc.freeze()
    reporter.tell("ready")
    connection = _Template(requests, reporter).serve()
    gc.enable()
    _reseed()
    sys.argv = ["polyexec-worker"]
    run(connection)


@contextlib.contextmanager
def _ending_with(requests: socket.socket) -> Iterator[None]:
    """Leave when the driver goes meanwhile: a user's modules may take long to import."""
    hung_up = select.poll()
    hung_up.register(requests, 0)
    signal.signal(signal.SIGIO, lambda number, frame: leave(0) if hung_up.poll(0) else None)
    fcntl.fcntl(requests, fcntl.F_SETOWN, os.getpid())
    flags = fcntl.fcntl(requests, fcntl.F_GETFL)
    fcntl.fcntl(requests, fcntl.F_SETFL, flags | os.O_ASYNC)
    yield
    fcntl.fcntl(requests, fcntl.F_SETFL, flags)
    signal.signal(signal.SIGIO, signal.SIG_DFL)


def _imported(entry: str, preload: Sequence[str], reporter: Reporter) -> Callable[[socket.socket], object]:
    """Import everything; if that fails, tell why, and leave."""
    name, _, function = entry.partition(":")
    try:
        run: Callable[[socket.socket], object] = getattr(importlib.import_module(name), function)
        with _small_pools() if preload else contextlib.nullcontext():
            before = _threads()
            for name in preload:
                importlib.import_module(name)
                if (count := _threads() - before) > 0:
                    raise RuntimeError(f"it has started {count} threads, with which no process can be forked safely")
    except BaseException as error:
        # Whatever a user's module raises, SystemExit among it, the driver has to know.
        text = f"{type(error).__name__}: {error}"[:_REASON_LIMIT]
        reporter.tell("failed", f"the module {name!r} cannot be loaded for workers: {text}")
        sys.__excepthook__(*sys.exc_info())
        leave(1)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            # What is left in a buffer would be written by every worker again.
            stream.flush()
    return run


@contextlib.contextmanager
def _small_pools() -> Iterator[None]:
    """Let numerical libraries start no threads while they are loaded; pools are sized for each task anyway."""
    before = {name: os.environ.get(name) for name in _POOL_VARIABLES}
    os.environ.update(dict.fromkeys(_POOL_VARIABLES, "1"))
    yield
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


def _threads() -> int:
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return threading.active_count()


def _reseed() -> None:
    """Let each worker draw other random numbers; ``random`` sees to that by itself."""
    module = sys.modules.get("numpy.random")
    if module is not None:
        with contextlib.suppress(TypeError):  # a preloaded module has chosen another generator
            module.seed()


class _Template:
    def __init__(self, requests: socket.socket, reporter: Reporter) -> None:
        self._requests = requests
        self._reporter = reporter
        self._keepers: dict[int, int] = {}
        self._helpers = frozenset(children())
        """Started by a module while it was imported."""
        adopt_orphans()
        self._signals = ChildSignals()
        self._signals.watch(requests, select.POLLIN)

    def serve(self) -> socket.socket:
        """Fork workers; returns in the workers alone, with the socket that was sent."""
        while True:
            ready = self._signals.wait()
            self._reap()
            if ready:
                message, descriptors, _, _ = socket.recv_fds(self._requests, _TOKEN_SIZE, 1, _CLOSE_ON_EXEC)
                if not message:
                    self._end()
                connection = self._spawn(int.from_bytes(message, "little"), descriptors)
                if connection is not None:
                    return connection

    def _spawn(self, token: int, descriptors: Sequence[int]) -> socket.socket | None:
        if not descriptors:
            self._reporter.tell("refused", token, "no descriptor is left in the process that starts workers")
            return None
        (descriptor,) = descriptors
        try:
            keeper = os.fork()
        except OSError as error:
            os.close(descriptor)
            self._reporter.tell("refused", token, str(error))
            return None
        if keeper == 0:
            self._requests.close()
            self._signals.close()
            return keep(self._reporter, token, descriptor)
        os.close(descriptor)
        self._keepers[keeper] = token
        return None

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                token = self._keepers.pop(ended[0], None)
                if token is not None and ended[1] != 0:
                    self._reporter.tell("abandoned", token)
            # Others have lost a keeper that somebody has killed, and end with it.
            kill_children({*self._keepers, *self._helpers})

    def _end(self) -> NoReturn:
        until = time.monotonic() + _FAREWELL
        while self._keepers and time.monotonic() < until:
            self._signals.wait(_PATIENCE)
            self._reap()
        leave(0)

"""``connect``: from a specification to an executor."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from typing import TYPE_CHECKING, Any

import attrs

from polyexec import registry
from polyexec.config import boolean
from polyexec.errors import BackendNotFound, BackendUnavailable, SpecificationError
from polyexec.redaction import redacted
from polyexec.registry import Choice
from polyexec.spi import Backend, EngineInfo

if TYPE_CHECKING:
    # Not before the backend has begun: its processes start while these are imported.
    from polyexec.executor import Executor
    from polyexec.runtime import Runtime
    from polyexec.session import Info

_EVENTS = "POLYEXEC_EVENTS"
_DUMP_SIGNAL = "POLYEXEC_DUMP_SIGNAL"
_logger = logging.getLogger("polyexec")


def connect(specification: str | Any = None, *, events: bool | None = None) -> Executor:
    """Start or reach an engine, and give an executor on it.

    Blocks until the engine is there. Writes one INFO line to the logger ``polyexec`` (S15).

    Args:
        specification: ``"NAME"`` or ``"NAME?key=value&..."``, or an instance of a backend's configuration class. By
            default the text in ``POLYEXEC_BACKEND``, and without that ``"process"``.
        events: record what happens to the tasks (E1), for ``Executor.events``, ``Executor.stats`` and
            ``polyexec.trace``; by default as ``POLYEXEC_EVENTS`` says, and without that not.

    Returns:
        The executor; close it, or use it as a context manager.

    Raises:
        SpecificationError: the specification is wrong, or what says whether to record events.
        BackendNotFound: the backend is not installed.
        BackendUnavailable: its engine is not installed.
        BackendBroken: the engine does not start.
        BackendLost: nobody answers at the address.
    """
    began = time.perf_counter()
    recorded = _recorded(events)
    return _connected(*_backend(specification), began, recorded)


def connect_sized(specification: str | Any, workers: int | None) -> tuple[Executor, bool]:
    """Do as ``connect``, with so many workers if the backend starts them itself.

    Args:
        specification: as for ``connect``.
        workers: instead of the number that the specification says; None leaves that.

    Returns:
        The executor, and whether it has been given that number.
    """
    began = time.perf_counter()
    recorded = _recorded(None)
    backend, choice = _backend(specification)
    config = backend.config
    sized = workers is not None and hasattr(config, "workers") and getattr(config, "address", None) is None
    if sized:
        backend = type(backend)(attrs.evolve(config, workers=workers))
    return _connected(backend, choice, began, recorded), sized


def _connected(backend: Backend, choice: Choice, began: float, recorded: bool) -> Executor:
    if os.environ.get(_DUMP_SIGNAL):
        from polyexec.on_signal import install

        install(os.environ[_DUMP_SIGNAL])
    take_back = backend.begin()
    try:
        return _executor(backend, choice, began, recorded)
    except BaseException:
        if take_back is not None:
            take_back()
        raise


def _recorded(events: bool | None) -> bool:
    text = os.environ.get(_EVENTS, "")
    if events is not None and not isinstance(events, bool):
        raise SpecificationError(f"connect: events= is True or False, not {events!r}")
    if events is not None or not text:
        return bool(events)
    try:
        return boolean(text)
    except ValueError as error:
        raise SpecificationError(f"{_EVENTS}: {error}") from None


def _executor(backend: Backend, choice: Choice, began: float, recorded: bool) -> Executor:
    from polyexec.driver import DriverSession
    from polyexec.executor import Executor
    from polyexec.runtime import Runtime

    runtime = Runtime(backend, os.urandom(6).hex())
    runtime.setup = _setup(backend, runtime)
    engine = backend.open(runtime)
    info = _info(backend, choice, engine, time.perf_counter() - began)
    session = DriverSession(backend, runtime, info)
    if recorded:
        session.recorder(begin=True)
    _logger.info("%s", info)
    warn(backend, info)
    return Executor(session)


def warn(backend: Backend, info: Info) -> None:
    """Say it, where other machines can reach an engine that asks nobody who he is."""
    if info.address and not getattr(backend.config, "allow_insecure", False):
        from polyexec import sockets

        if not sockets.is_loopback(info.address) and backend.protection().authentication == "":
            _logger.warning(
                "%s asks nobody who he is: whoever reaches it over the network can run code there, and read what your "
                "tasks do; allow_insecure=1 says that this network is trusted (Executor.security tells more)",
                info.address,
            )


def _backend(specification: Any) -> tuple[Backend, Choice]:
    if specification is not None and not isinstance(specification, str):
        return _configured(specification)
    choice = registry.choose(specification)
    name, keys = registry.parse(choice.specification)
    try:
        kind = registry.backend_class(name)
        return kind(registry.configure(name, kind, keys)), choice
    except (BackendNotFound, BackendUnavailable, SpecificationError) as error:
        if choice.chosen_by == registry.VARIABLE:
            error.add_note(f"(chosen by {registry.VARIABLE}={choice.redacted!r})")
        raise


def _configured(config: Any) -> tuple[Backend, Choice]:
    for name, point in registry.names().items():
        module = sys.modules.get(point.module)
        kind = getattr(module, point.attr, None) if module is not None else None
        if isinstance(kind, type) and issubclass(kind, Backend) and type(config) is kind.Config:
            return kind(config), Choice(name, "argument")
    raise SpecificationError(
        f"connect takes a specification or the configuration of a backend, not {type(config).__name__!r}"
    )


def _setup(backend: Backend, runtime: Runtime) -> bytes:
    import cloudpickle

    from polyexec.wire import Setup

    initializer = getattr(backend.config, "initializer", None)
    return Setup(
        runtime.executor_id,
        tuple(os.path.abspath(path) for path in sys.path),
        os.getcwd(),
        None if initializer is None else cloudpickle.dumps(initializer),
        backend.capabilities.processes or backend.capabilities.inline,
        backend.capabilities.inline,
        f"{socket.gethostname()}:{os.getpid()}",
        getattr(backend.config, "log_to_driver", True),
        backend.capabilities.shares_arguments,
    ).encode()


def _info(backend: Backend, choice: Choice, engine: EngineInfo, seconds: float) -> Info:
    from polyexec.session import Info

    workers = sum(int(node.total.cpus) for node in backend.nodes() if node.alive)
    name = registry.parse(choice.specification)[0]
    address, dashboard = redacted(engine.address), engine.dashboard and redacted(engine.dashboard)
    return Info(name, engine.engine, address, choice.chosen_by, choice.redacted, workers, dashboard, seconds)

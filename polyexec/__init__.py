"""One execution layer for Python over many engines: submit, wait, cancel, resources, with the same meaning on each."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from polyexec import config as config
    from polyexec import dump as dump
    from polyexec import errors as errors
    from polyexec import options as options
    from polyexec import spi as spi
    from polyexec import trace as trace
    from polyexec.actor import ActorHandle
    from polyexec.connection import connect
    from polyexec.dump import Dump
    from polyexec.errors import (
        ActorDied,
        BackendBroken,
        BackendLost,
        BackendNotFound,
        BackendUnavailable,
        DeadlockError,
        ExecutorClosed,
        ForkedExecutor,
        InfeasibleResources,
        Interrupted,
        ObjectLost,
        PolyexecError,
        RemoteError,
        RemoteTraceback,
        ResourceExhausted,
        SerializationError,
        SpecificationError,
        TaskCancelled,
        TaskExited,
        TaskTimeout,
        Unsupported,
        WorkerDied,
    )
    from polyexec.events import Event, EventKind, EventStream
    from polyexec.executor import Executor, current, task
    from polyexec.future import Future
    from polyexec.options import NodeAffinity, Resources, TaskOptions
    from polyexec.reservation import Reservation
    from polyexec.security import PathAccess, SecurityReport
    from polyexec.session import ClusterResources, Info, NodeInfo
    from polyexec.sockets import Listener
    from polyexec.statistics import FunctionStats, Spread, Stats
    from polyexec.stream import Stream
else:
    # Names are imported when they are first used: a worker process needs few of them, and its start is waited for.
    _MODULES = {
        "ActorHandle": "actor",
        "ClusterResources": "session",
        "Dump": "dump",
        "Event": "events",
        "EventKind": "events",
        "EventStream": "events",
        "Executor": "executor",
        "FunctionStats": "statistics",
        "Future": "future",
        "Info": "session",
        "Listener": "sockets",
        "NodeAffinity": "options",
        "NodeInfo": "session",
        "PathAccess": "security",
        "Reservation": "reservation",
        "Resources": "options",
        "SecurityReport": "security",
        "Spread": "statistics",
        "Stats": "statistics",
        "Stream": "stream",
        "TaskOptions": "options",
        "connect": "connection",
        "current": "executor",
        "task": "executor",
    }
    _SUBMODULES = frozenset({"config", "dump", "errors", "options", "spi", "trace"})

    def __getattr__(name):
        from importlib import import_module

        if name in _SUBMODULES:
            return import_module(f"polyexec.{name}")
        if name not in __all__:
            raise AttributeError(f"module 'polyexec' has no attribute {name!r}")
        found = globals()[name] = getattr(import_module(f"polyexec.{_MODULES.get(name, 'errors')}"), name)
        return found

    def __dir__():
        return sorted({*globals(), *__all__, *_SUBMODULES})


__version__ = "0.1.0"

__all__ = [
    "ActorDied",
    "ActorHandle",
    "BackendBroken",
    "BackendLost",
    "BackendNotFound",
    "BackendUnavailable",
    "ClusterResources",
    "DeadlockError",
    "Dump",
    "Event",
    "EventKind",
    "EventStream",
    "Executor",
    "ExecutorClosed",
    "ForkedExecutor",
    "FunctionStats",
    "Future",
    "InfeasibleResources",
    "Info",
    "Interrupted",
    "Listener",
    "NodeAffinity",
    "NodeInfo",
    "ObjectLost",
    "PathAccess",
    "PolyexecError",
    "RemoteError",
    "RemoteTraceback",
    "Reservation",
    "ResourceExhausted",
    "Resources",
    "SecurityReport",
    "SerializationError",
    "SpecificationError",
    "Spread",
    "Stats",
    "Stream",
    "TaskCancelled",
    "TaskExited",
    "TaskOptions",
    "TaskTimeout",
    "Unsupported",
    "WorkerDied",
    "connect",
    "current",
    "task",
]

"""One execution layer for Python over many engines: submit, wait, cancel, resources, with the same meaning on each."""

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
from polyexec.options import Resources, TaskOptions

__version__ = "0.1.0"

from polyexec.connection import connect
from polyexec.executor import Executor, current, task
from polyexec.future import Future
from polyexec.session import ClusterResources, Info, NodeInfo

__all__ = [
    "ActorDied",
    "BackendBroken",
    "BackendLost",
    "BackendNotFound",
    "BackendUnavailable",
    "ClusterResources",
    "DeadlockError",
    "Executor",
    "ExecutorClosed",
    "ForkedExecutor",
    "Future",
    "InfeasibleResources",
    "Info",
    "Interrupted",
    "NodeInfo",
    "ObjectLost",
    "PolyexecError",
    "RemoteError",
    "RemoteTraceback",
    "ResourceExhausted",
    "Resources",
    "SerializationError",
    "SpecificationError",
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

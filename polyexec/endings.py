"""The errors that the driver itself gives to tasks."""

from __future__ import annotations

import signal
from typing import TypeVar

from polyexec.errors import (
    ActorDied,
    BackendBroken,
    ExecutorClosed,
    InfeasibleResources,
    RemoteTraceback,
    TaskCancelled,
    TaskTimeout,
    WorkerDied,
)
from polyexec.records import ActorGone, Cancelled, Died, Displaced, Ending, NodeGone, TimedOut
from polyexec.spi import Death

D = TypeVar("D", bound=WorkerDied)


def _likely_cause(death: Death) -> str:
    if death.signal == signal.SIGKILL:
        return "it was killed, perhaps because the machine ran out of memory"
    if death.signal in (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE):
        return "a fault in native code"
    if death.exit_code is not None:
        return "something in its code ended the process, os._exit for example"
    return ""


def failure_of(task: str, ending: Ending) -> BaseException:
    """Give the error that describes how a task ended.

    Args:
        task: its name.
        ending: an ending that is not an outcome of its own.

    Returns:
        The error.
    """
    if isinstance(ending, Cancelled):
        return TaskCancelled(task, ending.reason)
    if isinstance(ending, TimedOut):
        return TaskTimeout(task, ending.timeout)
    if isinstance(ending, Died):
        return _died(WorkerDied, task, ending.death, "")
    if isinstance(ending, Displaced):
        return ExecutorClosed(f"task {task!r} did not run: the reservation that it was to run in was closed before")
    if isinstance(ending, NodeGone):
        return InfeasibleResources(task, f"a place on node {ending.node!r}", "no such node any more")
    if isinstance(ending, ActorGone):
        return _actor_died(task, ending)
    return BackendBroken(f"task {task!r} ended in an unknown way: {ending!r}")


def _actor_died(task: str, ending: ActorGone) -> ActorDied:
    death = ending.death
    if death is None:
        return ActorDied(task, cause=ending.cause)
    return _died(ActorDied, task, death, ending.cause)


def _died(kind: type[D], task: str, death: Death, cause: str) -> D:
    cause = cause or death.cause or _likely_cause(death)
    error = kind(task, death.host, death.pid, death.signal, death.exit_code, cause)
    if death.stack:
        error.__cause__ = RemoteTraceback(death.stack)
    return error

"""Every exception of the public interface.

Each class passes its raw arguments to ``super().__init__`` and builds its text in ``__str__``, so that it
survives pickling and copying. Classes whose second base is an ``OSError`` take at most two arguments, because
``OSError`` gives a meaning of its own to a third.
"""

from __future__ import annotations

import concurrent.futures
import pickle
from typing import Any


class PolyexecError(Exception):
    """Root of all errors that polyexec raises by itself."""


class SpecificationError(PolyexecError, ValueError):
    """A backend specification, an option or an argument of the interface is wrong."""


class BackendNotFound(PolyexecError, LookupError):
    """No installed distribution provides the backend that was asked for."""


class BackendUnavailable(PolyexecError, ImportError):
    """The backend is known, but the engine that it drives is not installed."""


class BackendBroken(PolyexecError, RuntimeError):
    """The backend cannot start or use its workers; the cause says why."""


class BackendLost(PolyexecError, ConnectionError):
    """The connection to the engine is gone, or could not be made."""


class ExecutorClosed(PolyexecError, RuntimeError):
    """The executor has been closed, or the reservation to which a task was submitted."""


class ForkedExecutor(PolyexecError, RuntimeError):
    """The executor was made in a parent process and cannot be used after ``os.fork``."""


class DeadlockError(PolyexecError, RuntimeError):
    """A wait can never end, because those who wait hold what it needs."""


class RemoteError(PolyexecError, RuntimeError):
    """An exception of a task that cannot be rebuilt here, or must not be raised bare.

    Args:
        type_name: qualified name of the exception's type.
        message: its text, capped.
        traceback: its formatted traceback, capped.
    """

    def __init__(self, type_name: str, message: str = "", traceback: str = "") -> None:
        super().__init__(type_name, message, traceback)
        self.type_name = type_name
        self.message = message
        self.traceback = traceback

    def __str__(self) -> str:
        return f"{self.type_name}: {self.message}" if self.message else self.type_name


class RemoteTraceback(PolyexecError):
    """Carries the formatted traceback of a task, shown as the cause of its exception.

    Args:
        text: the formatted traceback.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n\n{self.text.rstrip()}\n"


class SerializationError(PolyexecError, pickle.PickleError):
    """A value cannot be turned into bytes, or bytes cannot be turned back into a value.

    Args:
        stage: ``argument``, ``argument-load``, ``result``, ``result-load`` or ``exception``.
        task: name of the task, or of the operation, that the value belongs to.
        culprit: path from the argument or the result to the object that is at fault.
        reason: what the serialiser said.
    """

    def __init__(self, stage: str, task: str, culprit: str, reason: str) -> None:
        super().__init__(stage, task, culprit, reason)
        self.stage = stage
        self.task = task
        self.culprit = culprit
        self.reason = reason

    def __str__(self) -> str:
        verb = "deserialise" if self.stage.endswith("-load") else "serialise"
        return f"cannot {verb} {self.culprit} of {self.task!r} ({self.stage}): {self.reason}"


class InfeasibleResources(PolyexecError, ValueError):
    """A request that no node could ever meet.

    Args:
        task: name of the task.
        requested: what was asked for.
        existing: what there is, node by node.
    """

    def __init__(self, task: str, requested: str, existing: str) -> None:
        super().__init__(task, requested, existing)
        self.task = task
        self.requested = requested
        self.existing = existing

    def __str__(self) -> str:
        return (
            f"task {self.task!r} asks for {self.requested}, which can never be met; there is {self.existing}. "
            f'Ask for less, start more, or pass infeasible="wait" if the cluster grows'
        )


class ResourceExhausted(PolyexecError, RuntimeError):
    """A store or a limit of the machine is full.

    Args:
        kind: ``shared-memory``, ``disk``, ``descriptors`` or ``memory``.
        detail: what was wanted and what there is.
    """

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(kind, detail)
        self.kind = kind
        self.detail = detail

    def __str__(self) -> str:
        return f"out of {self.kind}: {self.detail}"


class WorkerDied(PolyexecError, RuntimeError):
    """The process that ran a task has died.

    Args:
        task: name of the task.
        host: name of the machine.
        pid: process id of the worker, None if unknown.
        signal: number of the signal that ended it, None if none or unknown.
        exit_code: its exit status, None if a signal ended it or if unknown.
        cause: the likely cause in words, empty if nothing is known.
    """

    def __init__(
        self,
        task: str,
        host: str = "",
        pid: int | None = None,
        signal: int | None = None,
        exit_code: int | None = None,
        cause: str = "",
    ) -> None:
        super().__init__(task, host, pid, signal, exit_code, cause)
        self.task = task
        self.host = host
        self.pid = pid
        self.signal = signal
        self.exit_code = exit_code
        self.cause = cause

    def __str__(self) -> str:
        where = f"process {self.pid}" if self.pid is not None else "process"
        where += f" on {self.host}" if self.host else ""
        text = f"the worker of task {self.task!r} died ({where}{self._ending()})"
        return f"{text}: {self.cause}" if self.cause else text

    def _ending(self) -> str:
        if self.signal is not None:
            return f", {_signal_name(self.signal)}"
        if self.exit_code is not None:
            return f", exit code {self.exit_code}"
        return ""


class ActorDied(WorkerDied):
    """The actor whose method was called has died, or was ended; the call may have begun."""

    def __str__(self) -> str:
        if self.pid is None and not self.host:
            return f"the call {self.task!r} has no result, because its actor is gone: {self.cause}"
        where = f"process {self.pid} on {self.host}{self._ending()}"
        text = f"the call {self.task!r} has no result, because its actor died ({where})"
        return f"{text}: {self.cause}" if self.cause else text


class TaskCancelled(PolyexecError, concurrent.futures.CancelledError):
    """The task was cancelled.

    Args:
        task: name of the task.
        reason: why, if it was not a call of ``cancel`` on this very task.
    """

    def __init__(self, task: str, reason: str = "") -> None:
        super().__init__(task, reason)
        self.task = task
        self.reason = reason

    def __str__(self) -> str:
        text = f"task {self.task!r} was cancelled"
        return f"{text}: {self.reason}" if self.reason else text


class TaskTimeout(PolyexecError, TimeoutError):
    """The task ran longer than its ``timeout``.

    Args:
        task: name of the task.
        timeout: the limit in seconds.
    """

    def __init__(self, task: str, timeout: float) -> None:
        super().__init__(task, timeout)
        self.task = task
        self.timeout = timeout

    def __str__(self) -> str:
        return f"task {self.task!r} was ended: it ran longer than its timeout of {self.timeout:g} s"


class TaskExited(PolyexecError, RuntimeError):
    """The task called ``sys.exit``.

    Args:
        task: name of the task.
        code: the argument of ``sys.exit``.
    """

    def __init__(self, task: str, code: Any = None) -> None:
        super().__init__(task, code)
        self.task = task
        self.code = code

    def __str__(self) -> str:
        return f"task {self.task!r} called sys.exit({self.code!r})"


class ObjectLost(PolyexecError, LookupError):
    """A stored value is gone and cannot be made again.

    Args:
        task: name of the task that made it.
        reason: what became of it.
    """

    def __init__(self, task: str, reason: str) -> None:
        super().__init__(task, reason)
        self.task = task
        self.reason = reason

    def __str__(self) -> str:
        return f"the value made by {self.task!r} is lost: {self.reason}"


class Unsupported(PolyexecError, NotImplementedError):
    """The backend declares that it does not do this, or the option is not available."""


class Interrupted(BaseException):
    """Raised inside a running task that is being cancelled.

    It is a ``BaseException``, so that ``except Exception`` in a task does not swallow it; ``finally`` blocks run.
    """


def _signal_name(number: int) -> str:
    import signal

    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"

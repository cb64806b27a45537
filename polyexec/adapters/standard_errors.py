"""The errors of polyexec as callers of ``concurrent.futures`` expect them: the same, with one more base each."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from concurrent.futures.process import BrokenProcessPool, _RemoteTraceback

from polyexec import errors


class WorkerDied(errors.WorkerDied, BrokenProcessPool):
    """The process that ran the call has died; no other call is lost, and the executor goes on."""


class BackendBroken(errors.BackendBroken, BrokenProcessPool):
    """The backend cannot start or use its workers."""


class BackendLost(errors.BackendLost, BrokenExecutor):
    """The connection to the engine is gone."""


class NotPickled(errors.SerializationError, pickle.PicklingError):
    """An argument or a result cannot be serialised."""


class NotUnpickled(errors.SerializationError, BrokenProcessPool):
    """An argument or a result has been serialised, and cannot be turned back into a value."""


class TaskExited(errors.TaskExited, SystemExit):
    """The call has called ``sys.exit``."""


class InitializerFailed(BrokenProcessPool):
    """The initializer has raised an exception in a worker; the executor takes no more calls."""


_STANDARD: dict[type[BaseException], type[BaseException]] = {
    errors.WorkerDied: WorkerDied,
    errors.BackendBroken: BackendBroken,
    errors.BackendLost: BackendLost,
    errors.TaskExited: TaskExited,
}


def translated(error: BaseException) -> BaseException:
    """Give an error as the standard library's, its causes too; errors that mean nothing there stay what they are.

    Args:
        error: of a Future, read for this alone: it may be changed.
    """
    found = error
    if isinstance(error, errors.SerializationError):
        found = (NotUnpickled if error.stage.endswith("-load") else NotPickled)(*error.args)
    elif type(error) in _STANDARD:
        found = _STANDARD[type(error)](*error.args)
    if found is not error:
        for note in getattr(error, "__notes__", ()):
            found.add_note(note)
        found.__cause__ = error.__cause__
    _translate_cause(found)
    return found


def _translate_cause(error: BaseException) -> None:
    """Show the traceback of the worker in the way of ``ProcessPoolExecutor``, where it stands for a cause."""
    seen = set()
    while error.__cause__ is not None and id(error) not in seen:
        seen.add(id(error))
        cause = error.__cause__
        if isinstance(cause, errors.RemoteTraceback):
            # Some exceptions, frozen data classes among them, refuse to have attributes set.
            with contextlib.suppress(Exception):
                object.__setattr__(error, "__cause__", _remote_traceback(cause.text))
            return
        error = cause


def _remote_traceback(text: str) -> BaseException:
    make: Callable[[str], BaseException] = _RemoteTraceback  # type: ignore[assignment]  # typeshed takes it for another
    return make(f'\n"""\n{text.rstrip()}\n"""')

"""Asking a caller's retry hook; runs in a thread for hooks alone, because hook and error are the user's."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import attrs

from polyexec import outcome
from polyexec.errors import SpecificationError
from polyexec.options import TaskOptions
from polyexec.prepare import revised
from polyexec.stored import Stored
from polyexec.wire import TaskSpec


def ask_hook(
    spec: TaskSpec, ended: Callable[[], Stored], attempt: int, check: Callable[[TaskSpec], None]
) -> TaskSpec | Stored | None:
    """Ask whether, and how, a task runs again.

    Args:
        spec: the task.
        ended: gives how its latest attempt ended.
        attempt: the number of that attempt.
        check: raises ``InfeasibleResources`` if the task could never run.

    Returns:
        The changed task, None if it shall not run again, or the error with which it ends because the hook failed.
    """
    failure: BaseException | None = None
    try:
        failure = outcome.decode_error(ended())
        hook, options = _loaded(spec.retry)
        changed = hook(failure, attempt, options)
        if changed is None:
            return None
        found = revised(spec, _checked(changed, options))
        check(found)
        return found
    except BaseException as error:
        error.add_note(f"raised when the retry hook of task {spec.name!r} was asked after attempt {attempt}")
        if failure is not None and error is not failure and error.__cause__ is None:
            error.__cause__ = failure
        return outcome.encode_error(error)


def _loaded(retry: Any) -> tuple[Any, TaskOptions]:
    hook, options = pickle.loads(retry) if isinstance(retry, bytes) else retry
    return hook, options


def _checked(changed: Any, options: TaskOptions) -> TaskOptions:
    if not isinstance(changed, TaskOptions):
        raise SpecificationError(f"a retry hook returns options, or None for no other attempt, not {changed!r}")
    if changed.num_returns != options.num_returns:
        raise SpecificationError("a retry hook cannot change num_returns: the Futures exist already")
    if (changed.working_dir, changed.py_modules) != (options.working_dir, options.py_modules):
        raise SpecificationError("a retry hook cannot change working_dir or py_modules: they have been sent already")
    # Whatever it changes, the task stays in its reservation.
    return attrs.evolve(changed, bundle=options.bundle)

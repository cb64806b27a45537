"""What Ray's errors mean to the core."""

from __future__ import annotations

from typing import Any

from ray import exceptions

from polyexec.errors import BackendBroken, ObjectLost, PolyexecError, ResourceExhausted

_DEATHS = (exceptions.RayActorError, exceptions.WorkerCrashedError, exceptions.NodeDiedError)


def is_death(error: BaseException) -> bool:
    """Tell whether an error of Ray means that the worker's process is gone, or out of reach."""
    return isinstance(error, _DEATHS)


def is_loss(error: BaseException) -> bool:
    """Tell whether an error of Ray means that what a call needs is gone."""
    return isinstance(getattr(error, "cause", None) or error, exceptions.ObjectLostError)


def translated(error: BaseException, name: str) -> PolyexecError:
    """Give the error of the public interface for an error of Ray that is no death.

    Args:
        error: what Ray raised.
        name: of the task, or of the operation.

    Returns:
        The error to show.
    """
    cause: Any = getattr(error, "cause", None) or error
    if isinstance(cause, exceptions.OutOfDiskError):
        return ResourceExhausted("disk", first_line(cause))
    if isinstance(cause, exceptions.ObjectStoreFullError):
        return ResourceExhausted("shared-memory", first_line(cause))
    if isinstance(cause, exceptions.ObjectLostError):
        return ObjectLost(name, first_line(cause))
    return BackendBroken(f"Ray cannot run {name!r}: {type(cause).__name__}: {first_line(cause)}")


def first_line(error: BaseException) -> str:
    """Give the beginning of an error's text, which in Ray may have many lines."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__

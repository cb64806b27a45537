from __future__ import annotations

import concurrent.futures
import copy
import pickle
from typing import Any

import pytest

import polyexec

ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "RemoteError": ("ValueError", "text", "Traceback ..."),
    "RemoteTraceback": ("Traceback ...",),
    "SerializationError": ("argument", "task", "argument 0 (lock)", "TypeError: no"),
    "InfeasibleResources": ("task", "5 cpus", "2 cpus on one node"),
    "ResourceExhausted": ("disk", "no space left"),
    "WorkerDied": ("task", "host", 123, 9, None, "killed"),
    "ActorDied": ("task", "host", None, None, 3, ""),
    "TaskCancelled": ("task", "because"),
    "TaskTimeout": ("task", 2.5),
    "TaskExited": ("task", 3),
    "ObjectLost": ("task", "its node is gone"),
}
"""Those that take more than one text."""

BASES = {
    "SpecificationError": ValueError,
    "BackendNotFound": LookupError,
    "BackendUnavailable": ImportError,
    "BackendLost": ConnectionError,
    "ExecutorClosed": RuntimeError,
    "ForkedExecutor": RuntimeError,
    "SerializationError": pickle.PickleError,
    "InfeasibleResources": ValueError,
    "DeadlockError": RuntimeError,
    "TaskCancelled": concurrent.futures.CancelledError,
    "TaskTimeout": TimeoutError,
    "ObjectLost": LookupError,
    "Unsupported": NotImplementedError,
}


def public_errors() -> list[type[BaseException]]:
    found = [getattr(polyexec, name) for name in polyexec.__all__]
    return [item for item in found if isinstance(item, type) and issubclass(item, BaseException)]


@pytest.mark.parametrize("kind", public_errors(), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    "copied", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy], ids=["pickle", "copy", "deepcopy"]
)
def test_every_public_error_survives_a_copy(kind: type[BaseException], copied: Any) -> None:
    """F1: with the same arguments, text, attributes and notes."""
    error = kind(*ARGUMENTS.get(kind.__name__, ("text",)))
    error.add_note("note")
    found = copied(error)
    assert type(found) is kind
    assert (found.args, str(found), vars(found)) == (error.args, str(error), vars(error))
    assert str(error)


@pytest.mark.parametrize("name", BASES)
def test_second_bases(name: str) -> None:
    """Each error is also what callers of the standard library expect."""
    assert issubclass(getattr(polyexec, name), BASES[name])
    assert issubclass(getattr(polyexec, name), polyexec.PolyexecError)


def test_an_interrupt_is_no_exception() -> None:
    """C2: ``except Exception`` in a task does not swallow it."""
    assert not issubclass(polyexec.Interrupted, Exception)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (polyexec.WorkerDied("t", "h", 7, 9), "the worker of task 't' died (process 7 on h, SIGKILL)"),
        (polyexec.WorkerDied("t", "", None, 99), "the worker of task 't' died (process, signal 99)"),
        (polyexec.WorkerDied("t", "", 7, None, 0, "why"), "the worker of task 't' died (process 7, exit code 0): why"),
        (polyexec.TaskCancelled("t", "why"), "task 't' was cancelled: why"),
        (polyexec.SerializationError("result-load", "t", "x", "y"), "cannot deserialise x of 't' (result-load): y"),
    ],
)
def test_texts(error: Exception, text: str) -> None:
    """A message says what happened, and to which task."""
    assert str(error) == text

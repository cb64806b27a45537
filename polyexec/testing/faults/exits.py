"""Rows of tasks that raise what is not meant for tasks."""

from __future__ import annotations

import asyncio
import concurrent.futures
from functools import partial
from typing import Any

import polyexec
from polyexec.testing.faults import bodies
from polyexec.testing.faults.model import Case, Row
from polyexec.testing.faults.trial import Trial


class Unusual(BaseException):
    """An error that ``except Exception`` does not catch."""


def _leaves(trial: Trial, code: Any) -> None:
    error = trial.strike(bodies.leave, trial.marks, code)
    assert type(error) is polyexec.TaskExited, repr(error)
    assert (error.task, error.code) == ("victim", code)


def _raises(trial: Trial, error: BaseException, kinds: tuple[type[BaseException], ...]) -> None:
    found = trial.strike(bodies.fail, trial.marks, error)
    assert isinstance(found, kinds), repr(found)
    name = found.type_name if isinstance(found, polyexec.RemoteError) else type(found).__name__
    assert type(error).__name__ in name, repr(found)


def _recurses(trial: Trial, limit: int | None) -> None:
    error = trial.strike(bodies.recurse, trial.marks, limit)
    assert isinstance(error, RecursionError), repr(error)


def _base(error: BaseException) -> Case:
    return Case(f"{type(error).__name__}", partial(_raises, error=error, kinds=(polyexec.RemoteError,)))


def _plain(error: Exception, name: str) -> Case:
    return Case(name, partial(_raises, error=error, kinds=(type(error), polyexec.RemoteError)))


ROWS = (
    Row(
        "F04",
        "A task calls `sys.exit`",
        "`TaskExited` with the code; the worker goes on",
        ("F4", "F5"),
        tuple(Case(f"sys.exit({code!r})", partial(_leaves, code=code)) for code in (0, 3, "a text", None)),
        1.0,
    ),
    Row(
        "F05",
        "A task raises what is meant for somebody else",
        "`RemoteError`, or the exception itself where it is an `Exception`; the worker goes on",
        ("F4", "F1"),
        (
            _base(KeyboardInterrupt("its text")),
            _base(GeneratorExit("its text")),
            _base(Unusual("its text")),
            _base(asyncio.CancelledError("its text")),
            _plain(concurrent.futures.CancelledError("its text"), "concurrent.futures.CancelledError"),
            _plain(StopIteration("its text"), "StopIteration"),
        ),
        1.0,
    ),
    Row(
        "F06",
        "A task recurses without end",
        "`RecursionError`; the worker goes on",
        ("F12",),
        (
            Case("Python's default limit", partial(_recurses, limit=None)),
            Case("a limit of 9000", partial(_recurses, limit=9000)),
        ),
        2.0,
    ),
)

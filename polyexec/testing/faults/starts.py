"""Rows of workers that cannot start."""

from __future__ import annotations

import os
import sys
import time
from functools import partial

import polyexec
from polyexec.testing import bodies as common
from polyexec.testing.faults import bodies
from polyexec.testing.faults.model import IN_PROCESS, PROCESSES, Case, Row
from polyexec.testing.faults.trial import Trial
from polyexec.testing.faults.workers import MARKS
from polyexec.testing.tools import TASK_LIMIT, Marks

_TRIES = 10
"""The largest number of starts that two workers may take until it is said that they cannot start."""


def _begin() -> None:
    marks = Marks(os.environ[MARKS])
    if not marks.count("fault"):
        bodies.now(marks)
    marks.add(f"start {os.getpid()}")


def fail() -> None:
    """Raise."""
    _begin()
    raise LookupError("the initializer's own text")


def leave() -> None:
    """Call ``sys.exit``."""
    _begin()
    sys.exit("the initializer's own text")


def exit_at_once() -> None:
    """End the process without Python's leave."""
    _begin()
    os._exit(7)


def hang() -> None:
    """Do not come back."""
    _begin()
    time.sleep(TASK_LIMIT)


def _cannot_start(trial: Trial, initializer: str, text: str, patience: float = 60.0) -> None:
    """``connect``, or each task, says that workers cannot start and why, after a bounded number of tries."""
    os.environ[MARKS] = trial.marks.path
    error = trial.raises(polyexec.BackendBroken, partial(_use, trial, initializer, patience))
    trial.injected()
    assert text in str(error), str(error)
    found = trial.marks.count("start")
    trial.result.starts = found
    assert 1 <= found <= _TRIES, f"workers were started {found} times"


def _use(trial: Trial, initializer: str, patience: float) -> None:
    with trial.opened(workers=2, initializer=f"{__name__}:{initializer}", start_timeout=patience) as ex:
        futures = [ex.submit(common.add, 1, 1) for _ in range(3)]
        errors = [trial.error(future) for future in futures]
        assert all(isinstance(error, polyexec.BackendBroken) for error in errors), errors
        assert errors[0] is not None
        raise errors[0]


ROWS = (
    Row(
        "F20",
        "Workers cannot start, because their `initializer` fails",
        "`BackendBroken` with the cause, after a bounded number of tries",
        ("F14",),
        (
            Case("it raises", partial(_cannot_start, initializer="fail", text="the initializer's own text"), own=True),
            Case(
                "it calls `sys.exit`",
                partial(_cannot_start, initializer="leave", text="the initializer's own text"),
                own=True,
            ),
            Case(
                "it ends the process",
                partial(_cannot_start, initializer="exit_at_once", text="7"),
                own=True,
                dies=IN_PROCESS,
                ending=7,
            ),
            Case(
                "it hangs, with a start timeout of 3 s",
                partial(_cannot_start, initializer="hang", text="3 s", patience=3.0),
                (PROCESSES,),
                own=True,
            ),
        ),
        10.0,
    ),
)

"""Rows of workers that die of what a task does."""

from __future__ import annotations

import signal
from functools import partial

import polyexec
from polyexec.testing.faults import bodies
from polyexec.testing.faults.model import IN_PROCESS, Case, Row
from polyexec.testing.faults.trial import Trial


def _dies(trial: Trial, how: str, signal_number: int | None, exit_code: int | None) -> None:
    """The victim fails with ``WorkerDied`` that says how, and nobody else is harmed."""
    bodies_by_name = {"crash": bodies.crash, "abort": bodies.abort, "overflow": bodies.overflow_in_c}
    error = (
        trial.strike(bodies_by_name[how], trial.marks)
        if how in bodies_by_name
        else trial.strike(bodies.die, trial.marks, how)
    )
    assert type(error) is polyexec.WorkerDied, repr(error)
    assert (error.task, error.pid) == ("victim", int(trial.marks.values("start")[0])), repr(error)
    assert (error.signal, error.exit_code) == (signal_number, exit_code), repr(error)


def _by_signal(name: str, how: str, number: signal.Signals) -> Case:
    return Case(name, partial(_dies, how=how, signal_number=number, exit_code=None), dies=IN_PROCESS, ending=-number)


def _by_exit(code: int) -> Case:
    do = partial(_dies, how=f"exit {code}", signal_number=None, exit_code=code)
    return Case(f"os._exit({code})", do, dies=IN_PROCESS, ending=code)


ROWS = (
    Row(
        "F01",
        "A task kills its own process with SIGKILL",
        "`WorkerDied` with the signal",
        ("F3", "F5"),
        (_by_signal("SIGKILL", "SIGKILL", signal.SIGKILL),),
        2.0,
    ),
    Row(
        "F02",
        "A task crashes in C",
        "`WorkerDied` with the signal",
        ("F3", "F5"),
        (
            _by_signal("reading from address 0", "crash", signal.SIGSEGV),
            _by_signal("abort()", "abort", signal.SIGABRT),
            _by_signal("overflow of the C stack", "overflow", signal.SIGSEGV),
        ),
        2.0,
    ),
    Row(
        "F03",
        "A task ends its process without Python's leave",
        "`WorkerDied` with the exit code",
        ("F3", "F5"),
        (_by_exit(0), _by_exit(7)),
        2.0,
    ),
)

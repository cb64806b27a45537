"""The suite is tested by backends that break one promise each: it must fail, at that clause and at no other."""

from __future__ import annotations

import platform
from collections.abc import Callable

import attrs
import pytest

from polyexec.testing import Report

Conformance = Callable[..., Report]


@attrs.frozen
class Fault:
    """A faulty backend.

    Attributes:
        backend: its name.
        breaks: the clauses at which the suite must fail.
        keeps: clauses at which it must not.
        only: which of the tests run, as for ``-k``.
        healthy: a backend without the fault, for which all these tests must pass.
    """

    backend: str
    breaks: tuple[str, ...]
    keeps: tuple[str, ...] = ("S14", "W1")
    only: str = ""
    healthy: str = "ForeignPool"


_LEAKS = "close_waits or any_callable or splits"

FAULTS = [
    Fault("Loses", ("S8",), only="many_threads or any_callable or splits"),
    Fault("Swallows", ("F1",), ("S14", "S13"), only="as_it_was or any_callable or identical"),
    Fault("SilentDeath", ("F3",), only="ten_tasks or any_callable"),
    Fault("VagueDeath", ("F3",), ("S14", "F5"), only="ten_tasks or any_callable or retries_after"),
    Fault("RetriesSilently", ("F3",), only="ten_tasks or any_callable"),
    Fault("Twice", ("S13",)),
    Fault("Merges", ("S13",), ("S14", "S1")),
    Fault("Reorders", ("R8",), ("S14", "R9"), only="equals_start or any_callable or hold_back", healthy="Queues"),
    Fault("LiesOnCancel", ("C2", "C8"), ("C4", "S14"), only="running_loop or before_its_body or finished_task"),
    Fault("LeaksProcess", ("F9",), only=_LEAKS),
    Fault("LeaksThread", ("F9",), only=_LEAKS),
    Fault("LeaksDescriptor", ("F9",), only=_LEAKS),
    Fault("WrongGpus", ("R5",), ("R2", "S14")),
    Fault("Overclaims", ("R4",), ("R3", "S14")),
    Fault("FreesEarly", ("O1",), ("S14", "S13"), healthy="Keeps"),
    Fault("Hoards", ("O5",), ("O1", "S14"), healthy="Keeps"),
    Fault("Mute", ("D2",), only="bears_its_mark or any_callable or splits"),
    Fault("TellsLate", ("D2",), only="bears_its_mark or any_callable or splits"),
    Fault("DeclaresWhatItKeeps", ("W1",), ("W2", "S14")),
]


def _named(fault: Fault) -> str:
    return fault.backend


@pytest.mark.timeout(120)
@pytest.mark.parametrize("fault", FAULTS, ids=_named)
def test_the_suite_fails_at_the_broken_clause(fault: Fault, conformance: Conformance) -> None:
    if fault.breaks == ("O5",) and platform.system() != "Linux":
        pytest.skip("memory is read from /proc")
    report = conformance(fault.backend, *fault.breaks, *fault.keeps, only=fault.only)
    assert report.finished
    assert tuple(report.failures()) == fault.breaks, report.failures()
    kept = {name for name, result in report.clauses.items() if result.status == "passed"}
    assert kept >= set(fault.keeps) & set(report.clauses)
    assert kept


@pytest.mark.timeout(120)
@pytest.mark.parametrize("backend", ["ForeignPool", "Queues", "Keeps"])
def test_the_suite_passes_without_the_faults(backend: str, conformance: Conformance) -> None:
    faults = [fault for fault in FAULTS if fault.healthy == backend]
    clauses = sorted({clause for fault in faults for clause in (*fault.breaks, *fault.keeps)})
    report = conformance(backend, *clauses)
    assert report.finished
    assert report.failures() == {}
    assert {result.status for result in report.clauses.values()} == {"passed"}
    # Some tests are about a clause that was not asked for as well.
    assert set(clauses) <= report.clauses.keys()

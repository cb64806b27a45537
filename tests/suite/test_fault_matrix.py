"""The fault matrix is tested by backends that lose, hang, repeat or leave something: it must say so, and what."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

import polyexec
from polyexec.testing import plugin
from polyexec.testing.faults import FaultReport, load
from polyexec.testing.faults.catalogue import ROWS
from polyexec.testing.faults.page import render
from polyexec.testing.faults.report import CAPABILITY, DIES, FAIL, PASS, SKIP, CaseResult, RowResult

Matrix = Callable[..., FaultReport]


@pytest.fixture
def matrix(environment: dict[str, str], tmp_path: Path) -> Matrix:
    """Does the faults of some rows to a backend, in a process of its own."""

    def start(backend: str, rows: str) -> FaultReport:
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "polyexec.testing.plugin",
            "--pyargs",
            "polyexec.testing.faults",
        ]
        command += ["--backend", backend.lower(), "--fault-report", str(tmp_path / "report.json"), "-k", rows]
        command += ["-q", "-p", "no:cacheprovider", "--basetemp", str(tmp_path / "run"), "--rootdir", str(tmp_path)]
        surroundings = {**environment, "POLYEXEC_TESTING_PATIENCE": "4"}
        done = subprocess.run(command, env=surroundings, capture_output=True, text=True, check=False, timeout=100)
        report = load(tmp_path / "report.json")
        assert report.finished, done.stdout
        assert bool(report.failures()) == (done.returncode != 0), done.stdout
        return report

    return start


def only_case(report: FaultReport) -> CaseResult:
    """Give the result of a run of a row with one case."""
    (row,) = report.rows
    (case,) = row.cases
    return case


def test_a_backend_without_faults_passes(matrix: Matrix) -> None:
    report = matrix("ForeignPool", "F01")
    assert report.failures() == {}
    first = only_case(report)
    assert (first.outcome, first.starts, first.innocents, first.injected) == ("WorkerDied(signal 9)", 1, 2, 1)
    assert len(first.detected) == 1


def test_a_death_that_nobody_reports_is_a_hang(matrix: Matrix) -> None:
    case = only_case(matrix("SilentDeath", "F01"))
    assert (case.status, case.hung) == (FAIL, True)
    assert "did not come within" in case.message
    assert "polyexec.testing.faults.child" in case.stacks
    assert "trial.py" in case.stacks
    assert "foreign_pool.worker" in case.stacks


def test_an_engine_that_does_not_open_is_a_hang(matrix: Matrix) -> None:
    case = only_case(matrix("NeverOpens", "F01"))
    assert (case.status, case.hung) == (FAIL, True)
    assert "opening or closing" in case.message
    assert "faulty_backends.py" in case.stacks


def test_tasks_that_die_with_another_are_lost_innocents(matrix: Matrix) -> None:
    case = only_case(matrix("TakesOthersAlong", "F01"))
    assert (case.status, case.hung, case.lost > 0) == (FAIL, False, True)
    assert "innocents were lost" in case.message


def test_a_body_that_is_run_again_unasked_is_counted(matrix: Matrix) -> None:
    case = only_case(matrix("RetriesSilently", "F01"))
    assert (case.status, case.duplicates) == (FAIL, 1)


def test_a_process_that_stays_is_left_over(matrix: Matrix) -> None:
    report = matrix("LeaksProcess", "F01")
    (row,) = report.rows
    assert (row.status, only_case(report).status) == (FAIL, PASS)
    assert any("sleep 20" in text for text in row.left), row.left


@pytest.mark.parametrize(
    ("statuses", "left", "allowed", "status"),
    [
        ((PASS, SKIP), [], [], PASS),
        ((SKIP,), [], [], SKIP),
        ((PASS, DIES), [], [], DIES),
        ((PASS, CAPABILITY), [], [], CAPABILITY),
        ((DIES,), [], ["file it"], CAPABILITY),
        ((PASS, FAIL), [], ["file it"], FAIL),
        ((PASS,), ["process 7"], [], FAIL),
        ((), [], [], FAIL),
    ],
)
def test_the_status_of_a_cell(statuses: tuple[str, ...], left: list[str], allowed: list[str], status: str) -> None:
    cases = [CaseResult(str(number), one) for number, one in enumerate(statuses)]
    assert RowResult("F01", "it", cases, left, allowed).status == status


def test_a_report_survives_its_file(tmp_path: Path) -> None:
    row = RowResult("F01", "it", [CaseResult("a", PASS, "WorkerDied", detected=[0.5])], ["process 7"])
    report = FaultReport("one?workers=2", "one", "one 1.0", "0.1", "3.11.7", [row], True)
    report.save(tmp_path / "report.json")
    assert load(tmp_path / "report.json") == report
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="not a report"):
        load(tmp_path / "other.json")


def test_the_page_shows_what_the_reports_say() -> None:
    name = ROWS[0].cases[0].name
    good = CaseResult(name, PASS, "WorkerDied(signal 9)", injected=1, detected=[0.25], starts=1, innocents=2)
    bad = CaseResult(name, FAIL, message="it hangs", injected=1, hung=True, innocents=2, lost=1)
    one = FaultReport("one", "one", rows=[RowResult(ROWS[0].id, "it", [good])], finished=True)
    two = FaultReport("two", "two", rows=[RowResult(ROWS[0].id, "it", [bad])], finished=True)
    lines = render([one, two]).splitlines()
    assert f"| [F01](#f01) | {ROWS[0].title} | PASS | **FAIL**[^1] |" in lines
    assert f"| {name} | `WorkerDied(signal 9)`, 0.250 s | **FAIL** |" in lines
    assert "| hangs | 0 of 1 (below 100 %) | 1 of 1 |" in lines
    assert "| innocent tasks lost | 0 of 2 (below 100 %) | 1 of 2 |" in lines


@pytest.mark.parametrize(("options", "ignored"), [({}, True), ({"polyexec_faults_report": None}, None)])
def test_the_matrix_runs_only_if_it_is_asked_for(options: dict[str, None], ignored: bool | None) -> None:
    config = SimpleNamespace(option=SimpleNamespace(**options))
    suite = Path(polyexec.testing.__file__).parent
    assert plugin.pytest_ignore_collect(suite / "faults", config) is ignored
    assert plugin.pytest_ignore_collect(suite / "test_wait.py", config) is None


@pytest.mark.parametrize(
    ("argument", "named"),
    [
        ("polyexec.testing.faults", True),
        ("polyexec.testing.faults.test_matrix", True),
        ("polyexec/testing/faults/test_matrix.py::test_fault", True),
        ("polyexec.testing", False),
        ("polyexec/testing/test_wait.py", False),
        ("-q", False),
    ],
)
def test_who_asks_for_the_matrix(argument: str, named: bool) -> None:
    checkout = Path(polyexec.__file__).parent.parent
    assert plugin.names(argument, checkout, "polyexec.testing.faults") is named

"""Reports, the table, and what the suite says when it is asked for something that it cannot do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from polyexec.testing import Report, load
from polyexec.testing.clauses import CLAUSES, sort_key
from polyexec.testing.report import ClauseResult, TestResult, status_of
from polyexec.testing.table import render

PASSED, FAILED, SKIPPED = (
    TestResult(f"test_a.py::{kind}", kind, 0.1, f"{kind} text") for kind in ("passed", "failed", "skipped")
)


def _report(name: str, **clauses: ClauseResult) -> Report:
    return Report(f"{name}?workers=2", name, f"{name} 1.0", "0.1", "3.11.7", {"processes": True}, clauses, True)


def _started(environment: dict[str, str], folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "polyexec.testing.plugin", "--pyargs", "polyexec.testing"]
    command += ["-p", "no:cacheprovider", "--basetemp", str(folder / "run"), "--rootdir", str(folder), "-q"]
    return subprocess.run(
        [*command, *arguments], env=environment, cwd=folder, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize(
    ("tests", "declared", "replaced", "status"),
    [
        ((PASSED,), False, False, "passed"),
        ((PASSED, SKIPPED), False, False, "passed"),
        ((PASSED, FAILED), False, False, "failed"),
        ((SKIPPED,), False, False, "skipped"),
        ((PASSED,), True, True, "deviation"),
        ((FAILED,), True, True, "failed"),
        ((FAILED, PASSED), True, False, "deviation"),
        ((PASSED,), True, False, "failed"),
        ((SKIPPED,), True, False, "skipped"),
    ],
)
def test_the_status_of_a_clause(tests: tuple[TestResult, ...], declared: bool, replaced: bool, status: str) -> None:
    assert status_of(tests, declared, replaced) == status


def test_a_report_survives_its_file(tmp_path: Path) -> None:
    deviation = {"clause": "C3", "reason": "why", "instead": "what"}
    report = _report("one", W1=ClauseResult("passed", (PASSED,)), C3=ClauseResult("deviation", (PASSED,), deviation))
    report.save(tmp_path / "report.json")
    assert load(tmp_path / "report.json") == report
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="not a report"):
        load(tmp_path / "other.json")


def test_the_table_shows_what_the_reports_say() -> None:
    deviation = {"clause": "C3", "reason": "Threads cannot be killed.", "instead": "It waits."}
    one = _report("one", S1=ClauseResult("passed", (PASSED,)), C3=ClauseResult("deviation", (PASSED,), deviation))
    two = _report("two", S1=ClauseResult("failed", (FAILED,)), C3=ClauseResult("skipped", (SKIPPED,)))
    lines = render([one, two]).splitlines()
    assert "| `one?workers=2` | one 1.0 | 0.1 | 3.11.7 | 1 kept, 1 declared deviations |" in lines
    assert f"| S1 | {CLAUSES['S1']} | yes[^1] | **fails**[^2] |" in lines
    assert f"| C3 | {CLAUSES['C3']} | deviation[^3] | not run[^4] |" in lines
    assert f"| W1 | {CLAUSES['W1']} | not run | not run |" in lines
    assert "[^2]: Failed: `test_a.py::failed`" in lines
    assert "[^3]: Threads cannot be killed. Instead: It waits." in lines
    rows = [line.split(" | ")[0].removeprefix("| ") for line in lines]
    assert [row for row in rows if row in CLAUSES] == sorted(CLAUSES, key=sort_key)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "say which backend"),
        (["--backend", "no-such-backend"], "no-such-backend"),
        (["--backend", "foreignpool?workers"], "key=value"),
        (["--backend", "foreignpool", "--clauses", "Q7"], "Q7"),
    ],
)
def test_a_run_that_makes_no_sense_is_refused(
    environment: dict[str, str], tmp_path: Path, arguments: list[str], text: str
) -> None:
    done = _started(environment, tmp_path, *arguments)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert text in done.stderr


def test_an_absent_engine_skips_unless_it_must_be_there(environment: dict[str, str], tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    arguments = ["--backend", "absent", "--backend-report", str(report), "--clauses", "S1,W1"]
    done = _started(environment, tmp_path, *arguments)
    assert done.returncode == pytest.ExitCode.OK, done.stdout
    assert {result.status for result in load(report).clauses.values()} == {"skipped"}
    done = _started({**environment, "POLYEXEC_REQUIRE": "ray,absent"}, tmp_path, *arguments)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "no_such_engine" in done.stderr


def test_an_engine_of_someone_elses_is_not_harmed(environment: dict[str, str], tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    arguments = ["--backend", "addressed?address=there", "--backend-report", str(report), "--clauses", "S13,R8,F14"]
    done = _started(environment, tmp_path, *arguments)
    assert done.returncode == pytest.ExitCode.OK, done.stdout
    assert {name: result.status for name, result in load(report).clauses.items()} == {
        "S13": "passed",
        "R8": "skipped",
        "F14": "skipped",
    }

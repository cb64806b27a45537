"""A backend in a distribution of its own, installed beside polyexec, is found and passes the suite."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from commands import run_quietly

FOREIGN = Path(__file__).parents[1] / "foreign"
CLAUSES = ("S1", "S13", "S15", "C2", "C3", "R4", "F1", "F3", "N1")


@pytest.fixture(scope="module")
def python(testing_python: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of an environment with polyexec's wheel and the foreign distribution's."""
    folder = tmp_path_factory.mktemp("foreign")
    run_quietly(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(FOREIGN)]
    )
    (wheel,) = folder.glob("foreign_pool-*.whl")
    run_quietly(
        [sys.executable, "-m", "pip", "--python", testing_python, "install", "--quiet", "--no-deps", str(wheel)]
    )
    return testing_python


@pytest.mark.timeout(120)
def test_a_foreign_backend_runs_the_suite_in_one_line(python: str, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [python, "-m", "pytest", "-q", "--pyargs", "polyexec.testing", "--backend", "foreign?workers=2"]
    run_quietly([*command, "--backend-report", str(report), "--clauses", ",".join(CLAUSES)], cwd=tmp_path)
    content = json.loads(report.read_text())
    # Some tests are about a clause that was not asked for as well.
    assert set(CLAUSES) <= content["clauses"].keys()
    assert {result["status"] for result in content["clauses"].values()} == {"passed"}
    assert (content["backend"], content["engine"], content["finished"]) == ("foreign", "foreign pool 1.0", True)
    table = run_quietly([python, "-m", "polyexec.testing.table", str(report)], cwd=tmp_path)
    assert "| clause |  | foreign |" in table


def test_the_plugin_stays_out_of_other_runs(python: str, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(
        "def pytest_addoption(parser):\n    parser.addoption('--backend', default='mine')\n"
    )
    (tmp_path / "test_mine.py").write_text(
        "def test_mine(pytestconfig):\n    assert pytestconfig.getoption('--backend') == 'other'\n"
    )
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--backend", "other"]
    assert "1 passed" in run_quietly(command, cwd=tmp_path)

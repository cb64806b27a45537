"""The benchmark of the local engine: all rows run, and what they give is right and well-formed. No figure decides."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = ROOT / "benchmarks" / "local_engine.py"
PAGE = ROOT / "docs" / "benchmarks" / "local-engine.md"
ROW_NAMES = {
    "bulk", "single", "map", "ms", "flat", "memory", "memory-peers", "put", "read", "share", "return", "kill",
    "completed", "loop", "start", "line",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def measure(folder: Path, *options: str) -> dict[str, Any]:
    """Run the command, which must succeed, and give what it wrote."""
    report = folder / "run.json"
    command = [sys.executable, str(COMMAND), "--tiny", "--rounds", "1", "--json", str(report), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            output, _ = process.communicate(timeout=100)
        except subprocess.TimeoutExpired:
            # A kill would leave processes behind.
            process.terminate()
            raise
    assert process.returncode == 0, output
    run: dict[str, Any] = json.loads(report.read_text())
    return run


def test_every_row_runs_and_every_result_is_right(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"above\n\n{block_of(PAGE.read_text())}\n\nbelow\n")
    run = measure(tmp_path, "--systems", "polyexec,processpool", "--table", str(page))
    assert {row["name"] for row in run["rows"]} == ROW_NAMES
    for row in run["rows"]:
        assert {name: system["status"] for name, system in row["systems"].items()} == dict.fromkeys(
            row["systems"], "ok"
        )
        for system in row["systems"].values():
            assert [math.isfinite(figures[row["metric"]]) for figures in system["rounds"]] == [True]
    text = page.read_text()
    assert text.startswith("above\n")
    assert text.endswith("below\n")
    assert "sizes `tiny`" in text


def test_every_peer_takes_part(tmp_path: Path) -> None:
    run = measure(tmp_path, "--rows", "bulk")
    from local.systems import OPENERS

    expected = {
        name: "ok" if importlib.util.find_spec(opener.module) else "missing" for name, opener in OPENERS.items()
    }
    (row,) = run["rows"]
    assert {name: row["systems"][name]["status"] for name in OPENERS} == expected
    assert run["threads"]["OMP_NUM_THREADS"] == "1"


def test_who_misbehaves_is_shown_and_leaves_the_others_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faulty_rows = importlib.import_module("faulty_rows")
    pids = tmp_path / "pids"
    monkeypatch.setenv(faulty_rows.PIDS, str(pids))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    from local.runner import run_row

    results = run_row(faulty_rows.ROWS["faulty"], "tiny", 2, module="faulty_rows")
    assert {name: result.status for name, result in results.items()} == {
        "hanging": "hang", "lying": "wrong", "raising": "failed", "dying": "died", "good": "ok",
    }  # fmt: skip
    assert results["good"].rounds == [{"rate": 2.0}, {"rate": 2.0}]
    assert "[1, 3] instead of [1, 2]" in results["lying"].error
    assert "cannot open" in results["raising"].error
    for pid in pids.read_text().split():
        await_end(int(pid))


def await_end(pid: int) -> None:
    """Wait until a process has ended, as far as its relatives can tell."""
    end = time.monotonic() + 20
    while (stat := Path(f"/proc/{pid}/stat")).exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < end, f"process {pid} lives on"
        time.sleep(0.01)


def test_goals_are_judged_round_by_round() -> None:
    from local.report import judge
    from local.rows import ROWS, Goal
    from local.runner import Result

    faster = {"polyexec": Result("", rounds=[{"seconds": 1.0}, {"seconds": 2.0}, {"seconds": 1.0}])}
    faster["processpool"] = Result("", rounds=[{"seconds": 6.0}, {"seconds": 6.0}, {"seconds": 5.0}])
    row, goal = ROWS["return"], Goal(5, "processpool")
    verdict = judge(row, goal, faster)
    assert (verdict["measured"], verdict["reached"]) == ({"median": 5.0, "min": 3.0, "max": 6.0}, True)
    assert judge(row, Goal(0.5), faster)["reached"] is False
    assert judge(row, goal, {**faster, "processpool": Result("", "missing")})["reached"] is None
    assert judge(row, goal, {**faster, "polyexec": Result("", "hang")})["reached"] is False


def block_of(page: str) -> str:
    """Give the generated part of a page."""
    from local.show import BEGIN, END

    return BEGIN + page.partition(BEGIN)[2].partition(END)[0] + END


def test_the_page_shows_the_figures_beside_it() -> None:
    from local.show import render

    run = json.loads(PAGE.with_suffix(".json").read_text())
    assert block_of(PAGE.read_text()) == render(run).rstrip("\n")

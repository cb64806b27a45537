"""``polyexec bench``: workloads of one's own, bad input, and what has changed between two runs."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from polyexec_bench.compare import chance_of, changes
from polyexec_bench.results import Measurement, Run

WORKLOADS = """
import os, time

def square(number):
    return number * number

def squares(ex):
    return list(ex.map(square, range(20)))

def differs(ex):
    return ex.submit(os.getpid).result()

def stands_still(ex):
    time.sleep(1000)

def fails(ex):
    raise LookupError("nothing here")

not_a_function = 3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "workloads.py").write_text(WORKLOADS)
    return tmp_path


def bench(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "polyexec.cli", "bench", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, check=False)


def test_a_workload_of_ones_own(folder: Path) -> None:
    backends = "serial,process,threads"
    done = bench(folder, "run", "workloads:squares", "--backends", backends, "--rounds", "2", "--out", "report")
    assert done.returncode == 0, done.stderr
    run = Run.read(folder / "report" / "run.json")
    assert [(row.system, row.repeat) for row in run.rows] == [
        ("serial", 0), ("process", 0), ("threads", 0), ("serial", 1), ("threads", 1), ("process", 1)
    ]  # fmt: skip
    assert {row.figures["digest"] for row in run.rows} == {run.rows[0].figures["digest"]}
    assert all(row.figures["seconds"] > 0 and row.figures["peak_bytes"] > 0 for row in run.rows)
    assert {"machine", "env", "systems", "time"} <= set(run.facts)
    assert "polyexec process" in bench(folder, "show", "report/run.json").stdout


def test_another_value_is_told(folder: Path) -> None:
    done = bench(folder, "run", "workloads:differs", "--backends", "serial,process", "--rounds", "1")
    assert done.returncode == 0, done.stderr
    assert "another value than the first" in done.stdout


def test_what_does_not_end_well_is_told(folder: Path) -> None:
    done = bench(folder, "run", "workloads:stands_still", "--backends", "serial", "--rounds", "1", "--limit", "1")
    assert done.returncode == 1
    assert "hang: no answer within 1 s" in done.stdout
    done = bench(folder, "run", "workloads:fails", "--backends", "serial", "--rounds", "1")
    assert done.returncode == 1
    assert "failed: LookupError: nothing here" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "workloads"], "'workloads' is not of the form MODULE:FUNCTION"),
        (["run", "nowhere:f"], "there is no module 'nowhere'"),
        (["run", "workloads:g"], "module 'workloads' has no function 'g'"),
        (["run", "workloads:not_a_function"], "has no function 'not_a_function'"),
        (["run", "workloads:squares", "--backends", "slurm"], "there is no backend and no engine 'slurm'"),
        (["--natives", "native:mpi"], "there is no backend and no engine 'native:mpi'"),
        (["--patterns", "star"], "there is no pattern 'star'"),
        (["show", "nothing.json"], "nothing.json"),
        (["show", "other.json"], "other.json is not a run of the benchmark in schema 1"),
    ],
)
def test_bad_input(folder: Path, arguments: list[str], message: str) -> None:
    (folder / "other.json").write_text("{}")
    done = bench(folder, *arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_small_set(tmp_path: Path) -> None:
    done = bench(
        tmp_path, "--backends", "threads", "--natives", "native:threadpool", "--patterns", "trivial,tree", "--quick",
        "--rounds", "1", "--out", ".",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "run.json").read_text())
    assert {(row["system"], row["params"]["pattern"]) for row in document["rows"]} == {
        (name, pattern) for name in ("threads", "native:threadpool") for pattern in ("trivial", "tree")
    }
    for row in document["rows"]:
        assert row["figures"]["rate"] > 0
        assert len(row["figures"]["levels"]) == 6


def _run(factor: float, seed: int, drift: float = 1.0) -> Run:
    """Make up a run of five rounds in which polyexec takes ``factor`` times as long, on a machine ``drift`` as slow."""
    chance = random.Random(seed)
    rows = []
    for repeat in range(5):
        machine = drift * chance.uniform(0.8, 1.25)
        for system, seconds in (("dask", 1.1 * factor), ("native:dask", 1.0)):
            figures: dict[str, Any] = {"metg50": seconds * machine * chance.uniform(0.98, 1.02)}
            rows.append(Measurement(bench="graph.metg", params={}, system=system, repeat=repeat, figures=figures))
    return Run({}, rows)


def test_a_slower_layer_is_seen_and_a_slower_machine_is_not() -> None:
    (ours, bare) = changes(_run(1.0, 1), _run(1.2, 2))
    assert (ours.system, ours.verdict, ours.against) == ("dask", "slower", "native:dask")
    assert ours.ratio == pytest.approx(1.2, rel=0.03)
    assert bare.verdict == "same"
    assert [change.verdict for change in changes(_run(1.2, 3), _run(1.0, 4))] == ["faster", "same"]
    assert next(changes(_run(1.0, 5), _run(1.0, 6, drift=3.0))).verdict == "same"
    equal = [next(changes(_run(1.0, seed), _run(1.0, seed + 1))).verdict for seed in range(10, 50, 2)]
    assert equal == ["same"] * 20


def test_the_chance_of_a_difference() -> None:
    assert chance_of([1, 2, 3], [4, 5, 6]) == pytest.approx(2 / 20)
    assert chance_of([1, 3, 5], [2, 4, 6]) > 0.5
    many = [float(number) for number in range(40)]
    assert chance_of(many, [value + 100 for value in many]) < 1e-6

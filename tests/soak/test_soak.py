"""The soak in its shortest form, which finds what grows with every call; and what it measures with."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from polyexec.testing.soak import Result, Sizes, soak
from polyexec.testing.soak.__main__ import main
from polyexec.testing.soak.measure import slope
from polyexec.testing.soak.records import Slope, load, save
from polyexec.testing.soak.table import render

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads /proc")

SHORT = Sizes(tasks=4000, outstanding=500, kills=4, executors=4, objects=60, calls=200, actors=4, streams=20, seconds=1)


@pytest.mark.parametrize("case", ["tasks", "kills", "executors", "objects", "actors", "streams", "mixed"])
def test_processes(case: str) -> None:
    assert _wrong(soak("process", SHORT, names=[case])) == []


@pytest.mark.parametrize("specification", ["serial", "threads"])
def test_inside_this_process(specification: str) -> None:
    assert _wrong(soak(specification, SHORT, names=["executors", "mixed"])) == []


def _wrong(results: list[Result]) -> list[Result]:
    assert results
    return [result for result in results if not result.is_clean]


def test_a_slope_is_found_among_wild_values() -> None:
    chance = random.Random(1)
    xs = [float(x) for x in range(50)]
    ys = [3 * x + chance.uniform(-1, 1) for x in xs]
    for index in range(0, 50, 6):
        ys[index] = 1e6
    found = slope(xs, ys, 10)
    assert 29 < found.low <= found.middle <= found.high < 31
    flat = slope(xs, [chance.uniform(0, 1) for _ in xs], 1)
    assert flat.low < 0 < flat.high
    assert slope([1.0], [1.0], 10) == Slope(10, 0.0, 0.0, 0.0)


def test_results_are_kept_and_shown(tmp_path: Path) -> None:
    slopes = {"driver": Slope(1000, 2048.0, -1024.0, 4096.0)}
    good = Result("process?workers=2", "CPython", "tasks", {"tasks": 20_000}, 130.0, slopes, {}, ())
    bad = Result("process?workers=2", "CPython", "kills", {"kills": 3}, 2.0, {}, {"threads": 17}, ("a|b",))
    save([good, bad], tmp_path / "results.json")
    assert load(tmp_path / "results.json") == [good, bad]
    assert (good.is_clean, bad.is_clean) == (True, False)
    page = render([good, bad])
    assert "| tasks | 20 000 tasks | 2 min | the same | the same | +2 KiB (-1 to +4) per 1 000 |" in page
    assert "| kills | 3 kills | 2 s | +17 threads | a\\|b |" in page


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results" / "serial.json"
    assert main(["serial", "--case", "streams", "--size", "streams=10", "--seed", "7", "--json", str(path)]) == 0
    (result,) = load(path)
    assert (result.case, result.done, result.seed) == ("streams", {"streams": 10}, 7)
    assert "streams: 10 streams" in capsys.readouterr().out


@pytest.mark.parametrize("size", ["tasks", "tasks=x", "cups=1"])
def test_a_size_that_makes_no_sense(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serial", "--size", size])
    assert f"{size!r} is not one of tasks" in capsys.readouterr().err

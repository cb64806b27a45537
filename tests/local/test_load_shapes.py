"""The process backend under load, through the public interface: long tasks among short ones."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import polyexec
from polyexec import Executor, Future
from polyexec.testing.tools import Gate, Marks

LIMIT = 60.0
WORKERS = 2


@pytest.fixture
def ex() -> Iterator[Executor]:
    with polyexec.connect(f"process?workers={WORKERS}") as executor:
        yield executor


@pytest.fixture
def new_gate(tmp_path: Path) -> Iterator[Callable[[], Gate]]:
    made: list[Gate] = []

    def make() -> Gate:
        made.append(Gate(str(tmp_path / f"gate-{len(made)}")))
        return made[-1]

    yield make
    for gate in made:
        gate.open()


@pytest.fixture
def marks(tmp_path: Path) -> Marks:
    return Marks(str(tmp_path / "marks"))


def work(marks: Marks | None = None, name: Any = None, gate: Gate | None = None) -> Any:
    """Take a millisecond, or wait for a gate."""
    if marks is not None:
        marks.add(f"start {name}")
    if gate is None:
        time.sleep(0.001)
    else:
        gate.wait(LIMIT)
    return name


def learn(ex: Executor, count: int = 300) -> None:
    """Let the engine see that ``work`` is quick."""
    assert [future.result(LIMIT) for future in [ex.submit(work, None, n) for n in range(count)]] == list(range(count))


@pytest.mark.parametrize("learnt", [False, True], ids=["unknown", "known-to-be-quick"])
def test_short_tasks_pass_a_long_one(ex: Executor, marks: Marks, new_gate: Callable[[], Gate], learnt: bool) -> None:
    """R9 With two workers, one of them busy, 200 short tasks behind the long one end while it runs."""
    if learnt:
        learn(ex)
    gate = new_gate()
    long = ex.submit(work, marks, "long", gate)
    short = [ex.submit(work, marks, number) for number in range(200)]
    assert [future.result(LIMIT) for future in short] == list(range(200))
    assert not long.done()
    marks.wait_for("start long")
    gate.open()
    assert long.result(LIMIT) == "long"
    assert Counter(marks.lines()) == Counter([f"start {name}" for name in ("long", *range(200))])


@pytest.mark.parametrize("place", [1, 37, 150])
def test_a_long_task_in_the_middle_of_short_ones(
    ex: Executor, marks: Marks, new_gate: Callable[[], Gate], place: int
) -> None:
    """R9 A long task that looks like the short ones before and behind it holds none of them back."""
    learn(ex)
    gate = new_gate()
    futures = [ex.submit(work, marks, number, gate if number == place else None) for number in range(300)]
    long = futures.pop(place)
    assert [future.result(LIMIT) for future in futures] == [number for number in range(300) if number != place]
    assert not long.done()
    gate.open()
    assert long.result(LIMIT) == place
    assert Counter(marks.lines()) == Counter([f"start {number}" for number in range(300)])


def _both_busy(ex: Executor, marks: Marks, gates: list[Gate]) -> list[Future[Any]]:
    busy = [ex.submit(work, marks, f"long {number}", gate) for number, gate in enumerate(gates)]
    marks.wait_for("start long", len(gates))
    return busy


def test_tasks_behind_long_ones_are_revoked(ex: Executor, marks: Marks, new_gate: Callable[[], Gate]) -> None:
    """C1 Tasks that wait behind running ones, wherever they wait, are cancelled at once and never run."""
    learn(ex)
    gates = [new_gate(), new_gate()]
    busy = _both_busy(ex, marks, gates)
    waiting = [ex.submit(work, marks, number) for number in range(60)]
    revoked = waiting[::2]
    assert [ex.cancel(future) for future in revoked] == [True] * len(revoked)
    for future in revoked:
        with pytest.raises(polyexec.TaskCancelled):
            future.result(LIMIT)
    for gate in gates:
        gate.open()
    assert [future.result(LIMIT) for future in waiting[1::2]] == list(range(1, 60, 2))
    assert [future.result(LIMIT) for future in busy] == ["long 0", "long 1"]
    assert sorted(map(int, marks.values("start ")[2:])) == list(range(1, 60, 2))


def test_an_idle_worker_takes_what_waits_behind_a_long_task(
    ex: Executor, marks: Marks, new_gate: Callable[[], Gate]
) -> None:
    """R9 Tasks that were given out while all workers were busy go to the first that is free, each once."""
    learn(ex)
    gates = [new_gate(), new_gate()]
    busy = _both_busy(ex, marks, gates)
    waiting = [ex.submit(work, marks, number) for number in range(60)]
    gates[1].open()
    assert [future.result(LIMIT) for future in waiting] == list(range(60))
    assert busy[1].result(LIMIT) == "long 1"
    assert not busy[0].done()
    gates[0].open()
    assert busy[0].result(LIMIT) == "long 0"
    assert Counter(marks.lines()[2:]) == Counter([f"start {number}" for number in range(60)])

"""Chapter M: ``map``."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from polyexec import Executor
from polyexec.testing import bodies
from polyexec.testing.executors import idle
from polyexec.testing.helpers import require
from polyexec.testing.marks import clause
from polyexec.testing.target import Target
from polyexec.testing.tools import Gate, Marks, eventually, never


class Counted:
    """An endless source of numbers that counts how many were taken."""

    def __init__(self) -> None:
        self.taken = 0

    def __iter__(self) -> Iterator[int]:
        for number in itertools.count():
            self.taken += 1
            yield number


@clause("M1")
def test_map_is_ordered(ex: Executor) -> None:
    """M1 Results come in the order of the items, over several iterables up to the shortest."""
    assert list(ex.map(bodies.add, range(100), itertools.count(1000))) == [1000 + 2 * number for number in range(100)]
    assert list(ex.map(bodies.add, [], [])) == []
    assert list(ex.map(lambda number: number * 2, range(5), chunk_size=2)) == [0, 2, 4, 6, 8]


@clause("M1")
def test_map_keeps_the_order_when_the_first_is_last(ex: Executor, gate: Gate, marks: Marks, target: Target) -> None:
    """M1 The first result comes first even if its item is done last."""
    require(ex, cpus=2)

    def body(number: int) -> int:
        if number == 0 and not target_is_inline:
            marks.wait_for("item", 4)
        else:
            marks.add(f"item {number}")
        return number

    target_is_inline = target.capabilities.inline
    assert list(ex.map(body, range(10), buffer=10, chunk_size=1)) == list(range(10))


@clause("M1")
def test_map_as_they_come(ex: Executor, gate: Gate, target: Target) -> None:
    """M1 With ``ordered=False`` results come as they are done."""
    require(ex, cpus=2)
    results: Any = ex.map(bodies.pick, range(10), [gate] * 10, [0] * 10, ordered=False, buffer=10, chunk_size=1)
    if target.capabilities.inline:
        assert sorted(results) == list(range(10))
        return
    first = [next(results) for _ in range(9)]
    assert sorted(first) == list(range(1, 10))
    gate.open()
    assert list(results) == [0]


@clause("M1")
@pytest.mark.parametrize("ordered", [True, False])
def test_map_is_lazy_and_bounded(ex: Executor, ordered: bool) -> None:
    """M1 Over an endless iterable at most ``buffer`` items are taken ahead of what was given out."""
    source = Counted()
    results: Any = ex.map(bodies.add, source, itertools.repeat(0), buffer=6, chunk_size=1, ordered=ordered)
    found = []
    for given in range(1, 41):
        found.append(next(results))
        assert source.taken <= given + 6
    assert sorted(found) == list(range(40)) if ordered else len(set(found)) == 40
    results.close()


@clause("M1")
def test_map_is_lazy_with_its_own_chunks(ex: Executor) -> None:
    """M1 So it is with chunks and a buffer of its own choice: an endless iterable does not run away."""
    source = Counted()
    results: Any = ex.map(bodies.add, source, itertools.repeat(1))
    assert list(itertools.islice(results, 500)) == list(range(1, 501))
    assert source.taken < 1_000_000
    results.close()
    taken = source.taken
    eventually(lambda: idle(ex), "what is not needed has ended")
    assert source.taken == taken


@clause("M1")
def test_map_takes_futures_for_their_values(ex: Executor) -> None:
    """M1 A Future among the items is replaced by its value, as in ``submit``."""
    stored = ex.put(5)
    assert list(ex.map(bodies.add, [1, 2, 3], [stored] * 3)) == [6, 7, 8]


@clause("M1")
def test_map_times_out(ex: Executor, gate: Gate, target: Target) -> None:
    """M1 ``timeout`` raises ``TimeoutError``; what came before was given out."""
    if target.capabilities.inline:
        pytest.skip("nothing is ever waited for")
    results: Any = ex.map(bodies.pick, range(3), [gate] * 3, [1] * 3, timeout=1.0, chunk_size=1)
    assert next(results) == 0
    with pytest.raises(TimeoutError):
        next(results)
    gate.open()


@clause("M1")
def test_map_reports_progress(ex: Executor) -> None:
    """M1 ``progress`` is told how far it is, up to all items."""
    told: list[Any] = []
    assert list(ex.map(bodies.add, range(7), range(7), progress=lambda *done: told.append(done))) == [
        2 * number for number in range(7)
    ]
    assert told
    assert told[-1][0] == 7


@clause("M2")
def test_a_slow_item_does_not_hold_back_others(ex: Executor, new_gate: Callable[[], Gate], target: Target) -> None:
    """M2 While one item takes very long, all others come, also those that were in its chunk."""
    require(ex, cpus=2)
    gate, count, slow = new_gate(), 400, 250
    if target.capabilities.inline:
        gate.open()
    results: Any = ex.map(bodies.pick, range(count), [gate] * count, [slow] * count, ordered=False, buffer=count)
    others = list(itertools.islice(results, count - 1))
    if not target.capabilities.inline:
        assert sorted(others) == [number for number in range(count) if number != slow]
    gate.open()
    assert sorted([*others, *results]) == list(range(count))


@clause("M2")
def test_each_item_runs_once(ex: Executor, marks: Marks) -> None:
    """M2 However items are put together, each one runs once."""
    assert list(ex.map(bodies.fail_at, range(300), [-1] * 300, [marks] * 300)) == list(range(300))
    assert sorted(map(int, marks.values("item"))) == list(range(300))


@clause("M3")
@pytest.mark.parametrize("chunk_size", [None, 1, 3])
def test_an_error_stops_the_iteration_at_its_place(ex: Executor, marks: Marks, chunk_size: int | None) -> None:
    """M3 What comes before an error is given out, then it is raised, then the iteration is over."""
    results: Any = ex.map(bodies.fail_at, range(20), [5] * 20, [marks] * 20, chunk_size=chunk_size)
    found: list[int] = []
    with pytest.raises(ValueError, match="item 5"):
        found.extend(results)
    assert found == [0, 1, 2, 3, 4]
    assert next(results, "over") == "over"


@clause("M3")
def test_what_is_not_needed_is_cancelled(ex: Executor, marks: Marks, target: Target) -> None:
    """M3 After an error, what runs is interrupted and what is queued never runs."""
    if target.capabilities.inline:
        endless: Any = ex.map(bodies.fail_at, itertools.count(), itertools.repeat(2), itertools.repeat(marks), buffer=1)
        with pytest.raises(ValueError, match="item 2"):
            list(endless)
        assert marks.count("item") <= 4
        return
    require(ex, cpus=2)
    results: Any = ex.map(bodies.fail_or_beat, range(50), [1] * 50, [marks] * 50, buffer=10, chunk_size=1)
    assert next(results) == 0
    with pytest.raises(ValueError, match="item 1"):
        next(results)
    eventually(lambda: idle(ex), "what is not needed has ended")
    assert marks.count("start") == marks.count("end")
    count = marks.count("beat")
    never(lambda: marks.count("beat") != count, "an item runs on")
    assert next(results, "over") == "over"


@clause("M3")
def test_leaving_the_iteration_cancels_the_rest(ex: Executor, marks: Marks, target: Target) -> None:
    """M3 Closing the iterator does the same."""
    if target.capabilities.inline:
        return
    results: Any = ex.map(bodies.fail_or_beat, range(50), [1] * 50, [marks] * 50, buffer=10, chunk_size=1)
    assert next(results) == 0
    marks.wait_for("beat")
    results.close()
    eventually(lambda: idle(ex), "what is not needed has ended")
    assert marks.count("start") == marks.count("end")

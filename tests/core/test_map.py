from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

import polyexec
from polyexec import Executor, chunks, mapping

from .gates import LIMIT, Gate, pass_through


class Counted:
    """An endless iterable that knows how far it was read."""

    def __init__(self) -> None:
        self.read = 0

    def __iter__(self) -> Iterator[int]:
        for number in itertools.count():
            self.read = number + 1
            yield number


def invert(number: int) -> float:
    return 1 / (3 - number)


def test_results_in_order(ex: Executor) -> None:
    """M1."""
    assert list(ex.map(abs, range(0, -500, -1))) == list(range(500))
    assert list(ex.map(pow, [2, 3, 4], [3, 2])) == [8, 9]
    assert list(ex.map(abs, [])) == []


def test_results_as_they_come(ex: Executor) -> None:
    """M1: all of them, each once."""
    assert sorted(ex.map(abs, range(0, -500, -1), ordered=False)) == list(range(500))


def test_nothing_is_read_before_it_is_asked_for(ex: Executor) -> None:
    """M1."""
    items = Counted()
    results = ex.map(abs, items, buffer=5)
    assert items.read == 0
    assert next(results) == 0
    assert items.read <= 7


@pytest.mark.parametrize("buffer", [1, 2, 7])
@pytest.mark.parametrize("chunk_size", [None, 3])
def test_a_buffer_bounds_what_is_read_ahead(ex: Executor, buffer: int, chunk_size: int | None) -> None:
    """M1: over an endless iterable."""
    items = Counted()
    results = ex.map(abs, items, buffer=buffer, chunk_size=chunk_size)
    for given, result in enumerate(itertools.islice(results, 100), start=1):
        assert result == given - 1
        assert items.read - given <= buffer


def sizes_of_chunks(ex: Executor, seconds: Callable[[int], float], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Map over items that seem to take some seconds each, and give the sizes of chunks."""
    sizes: list[int] = []

    def submit(executor: Executor, work: Any, function: Any, *rest: Any) -> Any:
        chunk = rest[0] if work is chunks.run_chunk else [rest]
        sizes.append(len(chunk))
        results = [function(*item) for item in chunk]
        return executor.put(chunks.ChunkResult(results, None, sum(seconds(item[0]) for item in chunk)))

    monkeypatch.setattr(Executor, "submit", submit)
    assert list(ex.map(abs, range(3000))) == list(range(3000))
    return sizes


def test_chunks_of_quick_items_double(ex: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    """M2."""
    sizes = sizes_of_chunks(ex, lambda _: 0.0, monkeypatch)
    assert sizes[0] == 1
    assert max(sizes) >= 16
    assert all(after <= 2 * max(sizes[: index + 1]) for index, after in enumerate(sizes[1:]))


def test_slow_items_go_one_by_one(ex: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    """M2."""
    assert set(sizes_of_chunks(ex, lambda _: 1.0, monkeypatch)) == {1}


def test_chunks_take_about_as_long_as_they_should(ex: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    """M2."""
    sizes = sizes_of_chunks(ex, lambda _: mapping.TARGET / 4, monkeypatch)
    assert max(sizes) == 4


def test_chunks_shrink_when_items_become_slow(ex: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    """M2: a few chunks were under way already."""
    sizes = sizes_of_chunks(ex, lambda number: 0.0 if number < 20 else 1.0, monkeypatch)
    assert max(sizes) > sizes[-1] == 1


@pytest.mark.parametrize("chunk_size", [None, 1, 2, 100])
def test_an_error_comes_at_its_place(ex: Executor, chunk_size: int | None) -> None:
    """M3, F1: what came before it is given first."""
    results = ex.map(invert, range(100), chunk_size=chunk_size)
    assert list(itertools.islice(results, 3)) == [1 / 3, 1 / 2, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert next(results, "over") == "over"


def hold(gate: Gate, gates: list[Gate], number: int) -> int:
    """Pass item 0; others are held."""
    if number:
        pass_through(gates[number - 1])
    return number


def test_closing_the_iterator_cancels(ex: Executor, gate: Gate) -> None:
    """M3: what runs is interrupted, what waits never starts."""
    gates = [Gate() for _ in range(8)]
    results = ex.map(hold, [gate] * 9, [gates] * 9, range(9), chunk_size=1)
    assert next(results) == 0
    for held in gates[:2]:
        held.wait()
    results.close()
    assert ex.submit(abs, -3).result(LIMIT) == 3
    ex.close()
    assert [held.reached.is_set() for held in gates] == [True] * 2 + [False] * 6


def test_a_timeout(ex: Executor, gate: Gate) -> None:
    """W5, M3: for the next result; the map is over then."""
    results = ex.map(pass_through, [gate], timeout=0.01)
    with pytest.raises(TimeoutError):
        next(results)
    assert next(results, "over") == "over"


def test_progress(ex: Executor) -> None:
    """It is told here, as results are taken."""
    seen: list[int] = []
    results = ex.map(abs, range(3), progress=seen.append)
    assert seen == []
    for count, _ in enumerate(results, start=1):
        assert seen == list(range(1, count + 1))


@pytest.mark.parametrize("option", [{"buffer": 0}, {"chunk_size": 0}, {"buffer": 1.5}, {"chunk_size": True}])
def test_bad_numbers(ex: Executor, option: dict[str, Any]) -> None:
    """They are refused at once, and not by the first ``next``."""
    with pytest.raises(polyexec.SpecificationError):
        ex.map(abs, [1], **option)
    with pytest.raises(polyexec.SpecificationError, match="at least one iterable"):
        ex.map(abs)


def test_an_iterable_that_raises(ex: Executor) -> None:
    """M3: its error comes through, after which nothing is left behind."""

    def items() -> Iterator[int]:
        yield 1
        raise KeyError("items")

    with pytest.raises(KeyError, match="items"):
        list(ex.map(abs, items()))


@pytest.mark.parametrize("done", [0, 2])
def test_a_chunk_hands_over_what_it_has_and_what_it_has_not_begun(done: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """M2: each result is given once, and each item is worked on once."""
    handed: list[chunks.Handover] = []
    monkeypatch.setattr(chunks, "fulfil", lambda _, handover: handed.append(handover))
    run = chunks._Run(abs, [(-number,) for number in range(5)])
    run._results += [abs(*run._left.popleft()) for _ in range(done)]
    run.watch(cast("Any", None), 0, threading.Event())
    assert [(handover.results, handover.left) for handover in handed] == [(list(range(done)), 5 - done)]
    assert run.result().results == []


def test_a_chunk_that_cannot_hand_over_does_it_all_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """M1, F9: no item is lost because the executor is being closed meanwhile."""

    def closed(*_: Any) -> None:
        raise polyexec.ExecutorClosed("closed")

    monkeypatch.setattr(chunks, "fulfil", closed)
    run = chunks._Run(abs, [(-number,) for number in range(5)])
    run._results.append(abs(*run._left.popleft()))
    run.watch(cast("Any", None), 0, threading.Event())
    assert run.result().results == [0, 1, 2, 3, 4]

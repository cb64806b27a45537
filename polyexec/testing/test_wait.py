"""Chapter W: waiting for Futures."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from polyexec import Executor, Future
from polyexec.testing import bodies
from polyexec.testing.executors import Executors
from polyexec.testing.helpers import LIMIT, require
from polyexec.testing.marks import clause
from polyexec.testing.target import Target
from polyexec.testing.tools import Gate, Marks, eventually, never


@clause("W1")
def test_wait_splits_its_input(ex: Executor, gate: Gate, new_gate: Callable[[], Gate], marks: Marks) -> None:
    """W1 ``wait`` gives done and pending in the order of the input, together exactly the input."""
    slow = [ex.submit(bodies.pass_gate, marks, gate, number) for number in range(2)]
    fast = [ex.put(number) for number in range(2)]
    futures = [slow[0], fast[0], slow[1], fast[1]]
    done, pending = ex.wait(futures, num_returns=2, timeout=LIMIT)
    assert isinstance(done, list)
    assert isinstance(pending, list)
    if not gate.is_open():
        assert done == fast
        assert pending == slow
    assert sorted(map(id, done + pending)) == sorted(map(id, futures))
    gate.open()
    assert ex.wait(futures, timeout=LIMIT) == (futures, [])


@clause("W1")
def test_wait_gives_at_most_num_returns(ex: Executor) -> None:
    """W1 At most ``num_returns`` are in ``done``, even if more are done; the others are pending."""
    futures = [ex.put(number) for number in range(5)]
    done, pending = ex.wait(futures, num_returns=3)
    assert done == futures[:3]
    assert pending == futures[3:]


@clause("W1")
def test_wait_for_failures_and_for_nothing(ex: Executor) -> None:
    """W1 A failed Future is done, ``wait`` raises nothing for it; an empty input is split at once."""
    failed = ex.submit(bodies.fail, ValueError("bad"))
    assert ex.wait([failed], timeout=LIMIT) == ([failed], [])
    assert isinstance(failed.exception(), ValueError)
    assert ex.wait([]) == ([], [])


@clause("W2")
def test_wait_times_out(ex: Executor, gate: Gate, marks: Marks, target: Target) -> None:
    """W2 On time-out what is done so far is returned, and nothing is raised; 0 polls."""
    slow = ex.submit(bodies.pass_gate, marks, gate)
    fast = ex.put(1)
    for timeout in (0, 0.05):
        done, pending = ex.wait([slow, fast], timeout=timeout)
        assert (done, pending) == (([slow, fast], []) if target.capabilities.inline else ([fast], [slow]))
    gate.open()
    assert ex.wait([slow], timeout=LIMIT) == ([slow], [])
    assert ex.wait([slow], timeout=0) == ([slow], [])


@clause("W3")
def test_a_future_given_twice_counts_once(ex: Executor) -> None:
    """W3 A Future given twice counts once, at its first place."""
    first, second = ex.put(1), ex.submit(bodies.add, 1, 1)
    assert ex.wait([first, second, first], timeout=LIMIT) == ([first, second], [])
    done, pending = ex.wait([first, first, first], num_returns=2, timeout=LIMIT)
    assert (done, pending) == ([first], [])
    assert sorted(future.result() for future in ex.as_completed([second, first, second])) == [1, 2]


@clause("W3")
@pytest.mark.parametrize("thing", [1, None, "text", [1]], ids=repr)
def test_what_is_no_future_raises_at_once(ex: Executor, gate: Gate, marks: Marks, thing: Any) -> None:
    """W3 Something that is not a Future raises at once, from ``wait`` and from ``as_completed``."""
    slow = ex.submit(bodies.pass_gate, marks, gate)
    with pytest.raises((TypeError, ValueError)):
        ex.wait([slow, thing])
    with pytest.raises((TypeError, ValueError)):
        ex.as_completed([slow, thing])
    with pytest.raises((TypeError, ValueError)):
        ex.wait(slow)  # type: ignore[arg-type]


@clause("W3")
def test_a_future_of_another_executor_raises_at_once(
    foreign: Future[Any], single: Executor, gate: Gate, marks: Marks
) -> None:
    """W3 A Future of another executor raises at once; its own value stays good."""
    slow = single.submit(bodies.pass_gate, marks, gate)
    with pytest.raises(ValueError, match="executor"):
        single.wait([slow, foreign])
    with pytest.raises(ValueError, match="executor"):
        single.as_completed([slow, foreign])
    with pytest.raises(ValueError, match="executor"):
        single.submit(bodies.give, foreign)
    assert foreign.result(LIMIT) == 0


@pytest.fixture
def foreign(executors: Executors) -> Future[Any]:
    """A Future of an executor that is closed."""
    return executors.close_one()[1] if executors.closed is None else executors.closed[1]


@clause("W4")
def test_as_completed_yields_in_completion_order(
    ex: Executor, new_gate: Callable[[], Gate], marks: Marks, target: Target
) -> None:
    """W4 ``as_completed`` yields each Future when it completes."""
    gates = [new_gate() for _ in range(2)]
    if target.capabilities.inline:
        for gate in gates:
            gate.open()
    else:
        require(ex, cpus=2)
    futures = [ex.submit(bodies.pass_gate, marks, gate, number) for number, gate in enumerate(gates)]
    order: list[int] = []
    for opening, future in zip((1, 0), _stepwise(ex.as_completed(futures), gates), strict=True):
        order.append(future.result())
        assert target.capabilities.inline or order[-1] == opening
    assert sorted(order) == [0, 1]


def _stepwise(completed: Any, gates: list[Gate]) -> Any:
    for gate in reversed(gates):
        gate.open()
        yield next(completed)
    assert next(completed, None) is None


@clause("W4")
def test_as_completed_times_out(ex: Executor, gate: Gate, marks: Marks, target: Target) -> None:
    """W4 ``as_completed`` with a timeout yields what is done and raises ``TimeoutError``, as the standard library's."""
    slow, fast = ex.submit(bodies.pass_gate, marks, gate), ex.put(1)
    completed = ex.as_completed([slow, fast], timeout=0.1)
    if target.capabilities.inline:
        assert len(list(completed)) == 2
        return
    assert next(completed) is fast
    with pytest.raises(TimeoutError):
        next(completed)
    gate.open()
    assert slow.result(LIMIT) == ""


@clause("W4")
def test_as_completed_costs_the_same_for_each_future(ex: Executor) -> None:
    """W4 ``as_completed`` costs O(n) for n Futures, counted in lines of Python that the caller's thread runs."""
    counts = {number: _lines_for(ex, number) for number in (50, 400)}
    assert counts[400] < 24 * counts[50], f"lines run for 50 and 400 Futures: {counts}"


def _lines_for(ex: Executor, number: int) -> int:
    futures = [ex.submit(int, index) for index in range(number)]
    lines = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal lines
        lines += 1
        return trace

    previous = sys.gettrace()
    gc.collect()
    sys.settrace(trace)
    try:
        found = sum(1 for _ in ex.as_completed(futures))
    finally:
        sys.settrace(previous)
    assert found == number
    return lines


@clause("W5")
def test_result_times_out_and_the_task_goes_on(ex: Executor, gate: Gate, marks: Marks, target: Target) -> None:
    """W5 ``result(timeout)`` and ``exception(timeout)`` raise ``TimeoutError`` and leave the task running."""
    future = ex.submit(bodies.pass_gate, marks, gate, "it")
    if not target.capabilities.inline:
        for ask in (future.result, future.exception):
            with pytest.raises(TimeoutError):
                ask(0.05)
        assert not future.done()
        gate.open()
    assert future.result(LIMIT) == "it"
    assert marks.lines() == ["start it", "end it"]


@clause("W6")
def test_waiting_from_threads(ex: Executor, gate: Gate, marks: Marks) -> None:
    """W6 Any number of threads may wait for the same Future."""
    future = ex.submit(bodies.pass_gate, marks, gate, "it")
    results: list[Any] = []

    def work() -> None:
        done, _ = ex.wait([future], timeout=LIMIT)
        results.append(done[0].result(LIMIT))

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    gate.open()
    for thread in threads:
        thread.join(LIMIT)
    assert results == ["it"] * 5


@clause("W6")
def test_waiting_from_a_callback(ex: Executor) -> None:
    """W6 A callback may wait for another task, also for one that it has submitted."""
    results: list[Any] = []

    def callback(done: Future[Any]) -> None:
        other = ex.submit(bodies.add, done.result(), 10)
        ex.wait([other], timeout=LIMIT)
        results.append(other.result(LIMIT))

    ex.submit(bodies.add, 1, 1).add_done_callback(callback)
    eventually(lambda: results, "the callback has waited", LIMIT)
    assert results == [12]


@clause("W6")
def test_waiting_from_a_task(ex: Executor) -> None:
    """W6 A task may ``wait``, go through ``as_completed`` and ask for results."""

    def work() -> Any:
        import polyexec

        inner = polyexec.current()
        futures = [inner.submit(bodies.add, number, 1) for number in range(4)]
        done, pending = inner.wait(futures, timeout=LIMIT)
        completed = sorted(future.result() for future in inner.as_completed(futures))
        return len(done), len(pending), completed, inner.wait([inner.put(1)], timeout=0)[1]

    assert ex.submit(work).result(LIMIT) == (4, 0, [1, 2, 3, 4], [])


@clause("W6")
def test_a_task_times_out_waiting(ex: Executor, gate: Gate, marks: Marks, target: Target) -> None:
    """W6 A task's own waits honour their timeout."""
    slow = ex.submit(bodies.pass_gate, marks, gate, "slow")

    def work() -> Any:
        import polyexec

        try:
            slow.result(0.05)
        except TimeoutError:
            done, pending = polyexec.current().wait([slow], timeout=0.05)
            return "timed out", len(done), len(pending)
        return "in time"

    assert ex.submit(work).result(LIMIT) == ("in time" if target.capabilities.inline else ("timed out", 0, 1))
    gate.open()
    assert slow.result(LIMIT) == "slow"


@clause("W6")
def test_awaiting_in_asyncio(ex: Executor, gate: Gate, marks: Marks, target: Target) -> None:
    """W6 A Future can be awaited in asyncio; the loop goes on meanwhile."""

    async def main() -> tuple[Any, Any, str]:
        slow = ex.submit(bodies.pass_gate, marks, gate, "slow")
        fast = await ex.submit(bodies.add, 1, 1)
        assert target.capabilities.inline or not slow.done()
        gate.open()
        both = await asyncio.gather(slow, ex.submit(bodies.give, slow))
        try:
            await ex.submit(bodies.fail, ValueError("bad"))
        except ValueError as error:
            return fast, both, str(error)
        return fast, both, "nothing raised"

    assert asyncio.run(asyncio.wait_for(main(), LIMIT)) == (2, ["slow", "slow"], "bad")


@clause("W6")
def test_a_wait_without_timeout_ends_with_its_task(ex: Executor, gate: Gate, marks: Marks, target: Target) -> None:
    """W6 A wait goes on until what it waits for is done."""
    future = ex.submit(bodies.pass_gate, marks, gate, "it")
    ended = threading.Event()

    def work() -> None:
        ex.wait([future])
        ended.set()

    thread = threading.Thread(target=work)
    thread.start()
    if not target.capabilities.inline:
        never(ended.is_set, "the wait ended before its task")
    gate.open()
    thread.join(LIMIT)
    assert ended.is_set()

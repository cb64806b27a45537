from __future__ import annotations

import pytest

from polyexec.ledger import need_of
from polyexec.options import Resources
from polyexec.records import DependencyFailed, EndWait, Wake
from polyexec.stored import Tag

from .bench import Bench


def test_a_blocked_call_lends_its_cpus_and_gets_them_back() -> None:
    """R6, N1: with one cpu a parent can wait for its child."""
    bench = Bench(cpus=1)
    bench.add(1)
    bench.go()
    bench.add(2, parent=1)
    bench.wait(7, 1, 2)
    assert bench.started() == [2]
    bench.add(3)
    bench.finish(2)
    assert bench.started() == []
    assert bench.wakes() == {7: Wake.READY}
    bench.finish(1)
    assert bench.started() == [3]


def test_an_interrupted_wait_goes_on_without_waiting_for_room() -> None:
    """C2: even if its cpu is lent to a task that runs for ever."""
    bench = Bench(cpus=1)
    bench.add(1)
    bench.go()
    bench.add(2, parent=1)
    bench.wait(7, 1, 2)
    assert bench.started() == [2]
    bench.cancel(1)
    assert bench.wakes() == {7: Wake.INTERRUPTED}
    assert bench.answers() == [True]
    assert bench.halts() == []


def test_waits_end_by_timeout_exactly_once() -> None:
    """W2, W5."""
    bench = Bench(cpus=1)
    bench.add(1)
    bench.go()
    bench.add(2)
    bench.wait(7, 1, 2, timeout=3.0)
    bench.wait(8, 1, 2, timeout=0, main=False)
    assert bench.wakes() == {8: Wake.TIMEOUT}
    bench.go(3.0)
    bench.finish(2)
    assert bench.wakes() == {8: Wake.TIMEOUT, 7: Wake.TIMEOUT}
    assert sum(isinstance(action, EndWait) for action in bench.seen) == 2


@pytest.mark.parametrize("length", [3, 20_000])
def test_a_chain_of_dependents_fails_with_its_head(length: int) -> None:
    """S6, C6: however long it is."""
    bench = Bench()
    bench.add(1)
    for task in range(2, length):
        bench.add(task, dependencies=[task - 1])
    bench.go()
    bench.finish(1, Tag.ERROR)
    assert bench.ending(length - 1) == DependencyFailed(length - 2)
    assert not bench.scheduler.tasks


def test_a_dependency_that_has_failed_already() -> None:
    """S6: given twice, and together with one that is still missing."""
    bench = Bench()
    bench.scheduler.arrive(100, Tag.CANCELLED)
    bench.add(1, dependencies=[99, 100, 100])
    bench.scheduler.arrive(99, Tag.VALUE)
    assert bench.ending(1) == DependencyFailed(100)


def test_a_call_ahead_of_its_turn_that_waits_holds_nothing() -> None:
    """R6, N1: the engine may begin it before the scheduler knows that there is room."""
    bench = Bench(cpus=1, queue_limit=8)
    for task in (1, 2, 3):
        bench.add(task, function="quick")
    bench.go()
    bench.scheduler.finished(bench.call(1), Tag.VALUE, duration=0.004)
    assert bench.started() == [2, 3]
    bench.finish(2)
    bench.add(4, parent=3)
    bench.wait(7, 3, 4)
    assert bench.started() == [4]
    bench.finish(4)
    assert bench.wakes() == {7: Wake.READY}
    bench.finish(3)
    bench.add(5, need_of(Resources(1)))
    assert bench.started() == [5]


def test_a_call_ahead_of_its_turn_whose_wait_is_answered_at_once() -> None:
    """R6, R4: it takes its cpu once."""
    bench = Bench(cpus=2, queue_limit=8)
    for task in (1, 2, 3, 4):
        bench.add(task, function="quick")
    bench.go()
    bench.scheduler.finished(bench.call(1), Tag.VALUE, duration=0.004)
    assert bench.started() == [3, 4]
    bench.finish(2)
    bench.finish(3)
    bench.wait(7, 4, 1000)
    bench.scheduler.arrive(1000, Tag.VALUE)
    assert bench.wakes() == {7: Wake.READY}
    bench.finish(4)
    bench.add(5, need_of(Resources(2)))
    assert bench.started() == [5]

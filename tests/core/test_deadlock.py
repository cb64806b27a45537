from __future__ import annotations

import pytest

from polyexec.ledger import need_of
from polyexec.options import Resources
from polyexec.records import Wake
from polyexec.stored import Tag

from .bench import CPU, Bench


def test_the_only_gpu_is_held_by_the_one_that_waits() -> None:
    """N2: the wait ends with an error; the child runs once the parent has ended."""
    bench = Bench(gpus=1)
    need = need_of(Resources(1, gpus=1))
    bench.add(1, need)
    bench.go()
    bench.add(2, need, parent=1)
    bench.wait(7, 1, 2)
    assert bench.wakes() == {7: Wake.DEADLOCK}
    bench.finish(1, Tag.ERROR)
    assert bench.started() == [2]


def test_two_calls_that_wait_for_each_other() -> None:
    """N2: one of them is told, and the other goes on."""
    bench = Bench()
    bench.add(1)
    bench.add(2)
    bench.go()
    bench.wait(7, 1, 2)
    assert bench.wakes() == {}
    bench.wait(8, 2, 1)
    assert bench.wakes() == {8: Wake.DEADLOCK}
    bench.finish(2)
    assert bench.wakes() == {8: Wake.DEADLOCK, 7: Wake.READY}


def test_a_call_that_waits_for_itself() -> None:
    """N2."""
    bench = Bench()
    bench.add(1)
    bench.go()
    bench.wait(7, 1, 1)
    assert bench.wakes() == {7: Wake.DEADLOCK}


def test_a_wait_for_what_depends_on_the_waiter() -> None:
    """N2: also through tasks that have not started."""
    bench = Bench()
    bench.add(1)
    bench.go()
    bench.add(2, dependencies=[1])
    bench.add(3, dependencies=[2])
    bench.wait(7, 1, 3)
    assert bench.wakes() == {7: Wake.DEADLOCK}


def test_a_wait_with_a_timeout_is_no_deadlock() -> None:
    """N2, W5: it ends by itself."""
    bench = Bench()
    bench.add(1)
    bench.go()
    bench.wait(7, 1, 1, timeout=5.0)
    assert bench.wakes() == {}
    bench.go(5.0)
    assert bench.wakes() == {7: Wake.TIMEOUT}


def test_a_running_call_may_still_give_what_is_needed() -> None:
    """N2: nobody is told as long as somebody runs who holds it."""
    bench = Bench(gpus=2)
    need = need_of(Resources(1, gpus=1))
    bench.add(1, need)
    bench.add(2, need)
    bench.go()
    bench.add(3, need, parent=1)
    bench.wait(7, 1, 3)
    assert bench.wakes() == {}
    bench.finish(2)
    assert bench.started() == [3]


def test_halves_of_two_gpus_are_not_one_gpu() -> None:
    """N2, R5: one accelerator is free in all, but no whole one."""
    bench = Bench(cpus=4, gpus=2)
    half = need_of(Resources(1, gpus=0.5))
    for task in (1, 2, 3):
        bench.add(task, half)
    bench.go()
    bench.finish(2)
    bench.add(4, need_of(Resources(1, gpus=1)), parent=1)
    bench.wait(7, 1, 4)
    assert bench.wakes() == {}
    bench.wait(8, 3, 4)
    assert list(bench.wakes().values()) == [Wake.DEADLOCK]


def test_only_the_waits_that_cannot_be_answered_fail() -> None:
    """N2: another thread of the same task waits for something that will come."""
    bench = Bench(gpus=1)
    need = need_of(Resources(1, gpus=1))
    bench.add(1, need)
    bench.go()
    bench.add(2, need, parent=1)
    bench.add(3, CPU, parent=1)
    bench.wait(7, 1, 2)
    bench.wait(8, 1, 3, main=False)
    assert bench.wakes() == {7: Wake.DEADLOCK}
    bench.finish(3)
    assert bench.wakes() == {7: Wake.DEADLOCK, 8: Wake.READY}


@pytest.mark.parametrize("need", [Resources(1, memory=8), Resources(2, memory=5), Resources(1, memory=8, gpus=1)])
def test_what_is_kept_back_for_others_never_stops_a_child(need: Resources) -> None:
    """N1, R7: a task that waits for a parent's memory must not hold back the child that the parent waits for."""
    bench = Bench(cpus=2, gpus=1, memory=8)
    bench.add(1, need_of(Resources(1, memory=4)))
    bench.go()
    bench.add(2, need_of(need))
    bench.add(3, need_of(Resources(1, memory=1)), parent=1)
    assert bench.started() == []
    bench.wait(7, 1, 3)
    assert bench.started() == [3]
    bench.finish(3)
    assert bench.wakes() == {7: Wake.READY}
    bench.finish(1)
    assert bench.started() == [2]


def test_nested_waits_to_any_depth_need_one_cpu() -> None:
    """N1."""
    bench = Bench(cpus=1)
    bench.add(1)
    bench.go()
    for task in range(2, 200):
        bench.add(task, parent=task - 1)
        bench.wait(task, task - 1, task)
        assert bench.started() == [task]
    for task in range(199, 0, -1):
        bench.finish(task)
        bench.go()
    assert set(bench.wakes().values()) == {Wake.READY}
    assert not bench.scheduler.tasks


def test_a_call_that_is_being_stopped_is_no_deadlock() -> None:
    """N2, C2: its end is on the way."""
    bench = Bench()
    bench.add(1)
    bench.add(2)
    bench.go()
    bench.cancel(1)
    bench.wait(7, 1, 2, main=False)
    bench.wait(8, 2, 1)
    assert bench.wakes() == {}

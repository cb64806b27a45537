from __future__ import annotations

from polyexec.ledger import need_of
from polyexec.options import Resources
from polyexec.records import Start
from polyexec.stored import Tag

from .bench import Bench


def test_equal_needs_start_in_order_of_submission() -> None:
    """R8."""
    bench = Bench(cpus=1)
    for task in range(1, 6):
        bench.add(task)
    order = []
    while started := bench.started():
        order += started
        bench.finish(started[0])
    assert order == [1, 2, 3, 4, 5]


def test_priority_overrides_the_order() -> None:
    """R8."""
    bench = Bench(cpus=1)
    for task, priority in ((1, 0), (2, 0.5), (3, -1), (4, 0.5)):
        bench.add(task, priority=priority)
    order = []
    while started := bench.started():
        order += started
        bench.finish(started[0])
    assert order == [2, 4, 1, 3]


def test_a_task_that_needs_all_cpus_is_not_starved() -> None:
    """R7: small ones keep coming, and yet it starts after those that ran when it came."""
    bench = Bench(cpus=4)
    for task in range(1, 5):
        bench.add(task)
    assert bench.started() == [1, 2, 3, 4]
    bench.add(5, need_of(Resources(4)))
    for task in range(1, 5):
        bench.add(task + 10)
        bench.finish(task)
        assert bench.started() == ([5] if task == 4 else [])


def test_cpus_kept_back_do_not_idle_for_ever() -> None:
    """R7: what waits behind a large task starts as soon as the large one has ended."""
    bench = Bench(cpus=2)
    bench.add(1)
    bench.go()
    bench.add(2, need_of(Resources(2)))
    bench.add(3)
    assert bench.started() == []
    bench.finish(1)
    assert bench.started() == [2]
    bench.finish(2)
    assert bench.started() == [3]


def test_a_long_task_does_not_hold_back_short_ones() -> None:
    """R9: another worker is free, so that those behind it start."""
    bench = Bench(cpus=2)
    for task in range(1, 6):
        bench.add(task)
    assert bench.started() == [1, 2]
    for task in (2, 3, 4):
        bench.finish(task)
        assert bench.started() == [task + 1]


def test_tasks_without_cpus_are_limited_by_slots() -> None:
    """R2: ``cpus=0`` takes none, but the engine has only so many slots."""
    bench = Bench(cpus=1, slots=3)
    for task in range(1, 6):
        bench.add(task, need_of(Resources(0)))
    assert bench.started() == [1, 2, 3]


def test_calls_are_handed_over_ahead_only_where_they_are_short() -> None:
    """R8, R9: a queue in the engine hides its round trip; order and fairness stay."""
    bench = Bench(cpus=1, queue_limit=8)
    for task in range(1, 30):
        bench.add(task, function="quick")
    assert bench.started() == [1]
    bench.scheduler.finished(bench.call(1), Tag.VALUE, duration=0.004)
    started = [action for action in bench.go() if isinstance(action, Start)]
    assert [action.task for action in started] == list(range(2, 8))
    assert [action.queued for action in started] == [False] + [True] * 5

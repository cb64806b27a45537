from __future__ import annotations

import pytest

from polyexec.records import Cancelled, Died, Ended, EndWait, Halt, TimedOut, Wake
from polyexec.scheduler import FREE_RESTARTS, PATIENCE
from polyexec.spi import Death, Verdict
from polyexec.stored import Tag

from .bench import Bench


def test_cancel_reaches_a_call_that_waits_for_room_to_go_on() -> None:
    """C2: its wait has been answered, but its cpu is still lent."""
    bench = Bench(cpus=1)
    bench.add(1)
    bench.go()
    bench.scheduler.arrive(1000, Tag.VALUE)
    bench.wait(7, 1, 1001)
    bench.add(2)
    assert bench.started() == [2]
    bench.scheduler.arrive(1001, Tag.VALUE)
    assert bench.wakes() == {}
    bench.cancel(1)
    assert bench.wakes() == {7: Wake.READY}
    assert bench.halts() == [False]


@pytest.mark.parametrize("how", ["timeout", "force"])
def test_force_ends_the_wait_of_a_call_after_the_attempt_to_stop_it(how: str) -> None:
    """C3, F6: where no process can be killed, the exception is raised when the body comes back from its wait."""
    bench = Bench(cpus=1)
    bench.add(1, timeout=5.0)
    bench.go()
    bench.scheduler.started(bench.call(1))
    bench.add(2, parent=1)
    bench.wait(7, 1, 2)
    bench.go()
    if how == "force":
        bench.cancel(1, force=True)
    actions = [type(action) for action in bench.go(5.0) if isinstance(action, Halt | EndWait)]
    assert actions[:2] == [Halt, EndWait]
    assert bench.wakes() == {7: Wake.INTERRUPTED}


@pytest.mark.parametrize("verdict", list(Verdict))
def test_cancel_tells_the_truth(verdict: Verdict) -> None:
    """C1, C4, C8: the answer is what becomes of the task."""
    bench = Bench()
    bench.add(1)
    bench.go()
    bench.cancel(1)
    call = bench.call(1)
    assert bench.halts() == [False]
    bench.scheduler.stopped(call, verdict)
    assert bench.answers() == [verdict is not Verdict.LATE]
    assert (bench.ending(1) is not None) == (verdict is Verdict.REVOKED), "C8: settled before its body has ended"
    bench.scheduler.finished(call, Tag.VALUE)
    assert bench.ending(1) == (Ended(call) if verdict is Verdict.LATE else Cancelled())


def test_cancel_does_not_wait_long_for_a_verdict() -> None:
    """C8, C9: without a verdict it promises the end, and the promise is kept even if a value comes."""
    bench = Bench()
    bench.add(1)
    bench.go()
    call = bench.call(1)
    bench.cancel(1)
    assert bench.answers() == []
    bench.go(PATIENCE)
    assert bench.answers() == [True]
    bench.scheduler.finished(call, Tag.VALUE)
    assert bench.ending(1) == Cancelled()


def test_an_end_before_the_verdict_answers_false() -> None:
    """C9: the result stands."""
    bench = Bench()
    bench.add(1)
    bench.go()
    call = bench.call(1)
    bench.cancel(1)
    bench.scheduler.finished(call, Tag.VALUE)
    bench.scheduler.stopped(call, Verdict.LATE)
    assert bench.answers() == [False]
    assert bench.ending(1) == Ended(call)


def test_a_cancel_that_was_too_late_allows_no_new_attempt() -> None:
    """C8, F5: a task that somebody tried to cancel does not begin again."""
    bench = Bench()
    bench.add(1, retries=5)
    bench.go()
    call = bench.call(1)
    bench.cancel(1)
    bench.scheduler.stopped(call, Verdict.LATE)
    bench.scheduler.finished(call, Tag.ERROR, retryable=True)
    assert bench.answers() == [False]
    assert bench.ending(1) == Ended(call)


def test_a_death_after_a_cancel_that_was_too_late_is_no_cancellation() -> None:
    """C8: who was told False never sees the Future cancelled."""
    bench = Bench()
    bench.add(1, retries=5)
    bench.go()
    call = bench.call(1)
    bench.cancel(1)
    bench.scheduler.stopped(call, Verdict.LATE)
    bench.scheduler.lost(call, Death("host"))
    assert bench.ending(1) == Died(Death("host"))


def test_cancel_is_harmless_twice_and_on_what_has_ended() -> None:
    """C4."""
    bench = Bench(cpus=1)
    bench.add(1)
    bench.add(2)
    bench.go()
    bench.cancel(2)
    bench.cancel(2)
    bench.finish(1)
    bench.cancel(1)
    assert bench.answers() == [True, False, False]
    assert bench.ending(2) == Cancelled()


def test_a_call_that_was_handed_over_can_be_left_alone() -> None:
    """C4: and so can its children."""
    bench = Bench(cpus=1)
    bench.add(1)
    bench.add(2)
    bench.go()
    bench.add(3, parent=1)
    bench.cancel(1, running=False, recursive=True)
    bench.cancel(2, running=False)
    assert bench.answers() == [False, True]
    assert bench.halts() == []
    assert (bench.ending(2), bench.ending(3)) == (Cancelled(), None)


def test_force_follows_a_cancel_without_force() -> None:
    """C3: a body that ignored the first one is killed."""
    bench = Bench()
    bench.add(1)
    bench.go()
    bench.cancel(1)
    bench.scheduler.stopped(bench.call(1), Verdict.DELIVERED)
    bench.cancel(1, force=True)
    bench.cancel(1, force=True)
    assert bench.halts() == [False, True]
    bench.scheduler.lost(bench.call(1), Death("host", signal=9))
    assert bench.answers() == [True, True, True]
    assert bench.ending(1) == Cancelled()


def test_recursive_cancel_reaches_the_children() -> None:
    """C5."""
    bench = Bench(cpus=1)
    bench.add(1)
    bench.go()
    bench.add(2, parent=1)
    bench.add(3)
    bench.cancel(1, recursive=True)
    assert bench.ending(2) == Cancelled()
    assert bench.ending(3) is None


def test_a_promised_cancel_is_kept_when_the_last_start_is_refused() -> None:
    """C8, F14."""
    bench = Bench()
    bench.add(1)
    for _ in range(FREE_RESTARTS - 1):
        bench.go()
        bench.scheduler.refused(bench.call(1))
    bench.go()
    bench.cancel(1)
    bench.go(PATIENCE)
    assert bench.scheduler.refused(bench.call(1))
    assert bench.answers() == [True]
    assert bench.ending(1) == Cancelled()


@pytest.mark.parametrize("force", [True, False])
def test_a_body_that_is_being_stopped_does_not_wait_any_more(force: bool) -> None:
    """C2, C3: its wait was on its way when it was stopped; the exception is raised when it comes back."""
    bench = Bench()
    bench.add(1)
    bench.go()
    bench.cancel(1, force=force)
    bench.wait(7, 1, 1000)
    bench.wait(8, 1, 1000, main=False)
    assert bench.wakes() == {7: Wake.INTERRUPTED}


def test_a_time_limit_cancels_the_children() -> None:
    """F6, C5: as ``cancel(force=True)`` does."""
    bench = Bench(cpus=2)
    bench.add(1, timeout=5.0)
    bench.go()
    bench.scheduler.started(bench.call(1))
    bench.add(2, parent=1)
    bench.add(3, parent=1)
    bench.go()
    bench.go(5.0)
    assert bench.halts() == [True, True]
    assert bench.ending(3) == Cancelled()


@pytest.mark.parametrize("end", ["finished", "lost"])
def test_timeout_ends_the_call_by_force(end: str) -> None:
    """F6: the time runs from the start of the body."""
    bench = Bench()
    bench.add(1, timeout=5.0)
    bench.go()
    bench.go(100.0)
    assert bench.halts() == []
    bench.scheduler.started(bench.call(1))
    bench.go(5.0)
    assert bench.halts() == [True]
    bench.scheduler.stopped(bench.call(1), Verdict.DELIVERED)
    if end == "lost":
        bench.scheduler.lost(bench.call(1), Death("host", signal=9))
    else:
        bench.scheduler.finished(bench.call(1), Tag.CANCELLED)
    assert bench.ending(1) == TimedOut(5.0)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("recursive", [True, False])
def test_what_a_cancelled_body_submits(force: bool, recursive: bool) -> None:
    """C5: what was under way when its parent was cancelled, and what it submits afterwards, is cancelled as well."""
    bench = Bench(cpus=2)
    bench.add(1)
    bench.go()
    bench.scheduler.cancel(1, force=force, recursive=recursive, token="asked")
    bench.scheduler.stopped(bench.call(1), Verdict.DELIVERED)
    bench.add(2, parent=1)
    assert bench.started() == ([] if recursive else [2])
    assert bench.ending(2) == (Cancelled() if recursive else None)


def test_what_a_body_submits_when_its_time_is_over() -> None:
    """F6, C5: the time limit ends its tasks, those that come late among them."""
    bench = Bench(cpus=2)
    bench.add(1, timeout=5.0)
    bench.go()
    bench.scheduler.started(bench.call(1))
    bench.go(5.0)
    bench.add(2, parent=1)
    assert bench.ending(2) == Cancelled()

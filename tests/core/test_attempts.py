from __future__ import annotations

import pytest

from polyexec.records import Cancelled, Consult, Died, Ended, Settle, Start
from polyexec.scheduler import BACKOFF, BACKOFF_LIMIT, FREE_RESTARTS
from polyexec.spi import Death, Verdict
from polyexec.stored import Tag

from .bench import Bench


def test_retries_are_bounded_and_backed_off() -> None:
    """F5: ``retries=n`` gives n more attempts, each after a longer pause."""
    bench = Bench()
    bench.add(1, retries=9)
    attempts, pauses = [], []
    while bench.ending(1) is None:
        start = next(action for action in reversed(bench.seen) if isinstance(action, Start))
        attempts.append(start.attempt)
        bench.finish(1, Tag.ERROR, retryable=True)
        bench.go()
        pauses.append(bench.scheduler.timers.pause() or 0.0)
        bench.go(pauses[-1])
    assert attempts == list(range(1, 11))
    assert pauses[:3] == pytest.approx([BACKOFF, 2 * BACKOFF, 4 * BACKOFF])
    assert max(pauses) == pytest.approx(BACKOFF_LIMIT)


def test_exceptions_outside_of_retry_on_are_not_retried() -> None:
    """F5."""
    bench = Bench()
    bench.add(1, retries=9)
    bench.go()
    bench.finish(1, Tag.ERROR)
    assert isinstance(bench.ending(1), Ended)


@pytest.mark.parametrize(("retries", "expected"), [(0, 1), (2, 3)])
def test_worker_death_is_retried_as_often_as_allowed(retries: int, expected: int) -> None:
    """F3, F5."""
    bench = Bench()
    bench.add(1, retries=retries)
    while bench.ending(1) is None:
        bench.scheduler.lost(bench.call(1), Death("host", signal=9))
        bench.go(BACKOFF_LIMIT)
    assert sum(isinstance(action, Start) for action in bench.seen) == expected
    assert bench.ending(1) == Died(Death("host", signal=9))


def test_a_death_before_the_body_is_no_attempt() -> None:
    """F5, F13: the call is simply handed out again, a bounded number of times."""
    bench = Bench()
    bench.add(1)
    for _ in range(FREE_RESTARTS):
        bench.go()
        bench.scheduler.lost(bench.call(1), Death("host", started=False))
    starts = [action for action in bench.seen + bench.go() if isinstance(action, Start)]
    assert {action.attempt for action in starts} == {1}
    bench.scheduler.lost(bench.call(1), Death("host", started=False))
    assert isinstance(bench.ending(1), Died)


def test_refused_starts_are_bounded() -> None:
    """F14."""
    bench = Bench()
    bench.add(1)
    answers = []
    while bench.ending(1) is None:
        answers.append(bench.scheduler.refused(bench.call(1)))
    assert answers == [True] * (FREE_RESTARTS - 1) + [False]
    (settle,) = (action for action in bench.seen if isinstance(action, Settle))
    assert settle.attempts == 0, "F5: the body never started"


def test_a_hook_decides_about_a_new_attempt() -> None:
    """F5: until it has answered the task neither runs nor ends."""
    bench = Bench()
    bench.add(1, retries=1, consult=True)
    bench.go()
    bench.finish(1, Tag.ERROR, retryable=True)
    consult = next(action for action in bench.go() if isinstance(action, Consult))
    assert bench.ending(1) is None
    bench.scheduler.decided(1, consult.ending)
    assert bench.ending(1) == consult.ending


@pytest.mark.parametrize("verdict", ["revoked", "died"])
def test_a_cancelled_call_whose_body_never_began_is_no_attempt(verdict: str) -> None:
    """F5, C1."""
    bench = Bench()
    bench.add(1)
    bench.go()
    bench.cancel(1, force=True)
    if verdict == "revoked":
        bench.scheduler.stopped(bench.call(1), Verdict.REVOKED)
    else:
        bench.scheduler.lost(bench.call(1), Death("host", signal=9, started=False))
    (settle,) = (action for action in bench.go() if isinstance(action, Settle))
    assert (settle.ending, settle.attempts) == (Cancelled(), 0)

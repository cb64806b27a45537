"""Chapter F: closing, and what is left after it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

import polyexec
from polyexec import Executor
from polyexec.testing import bodies
from polyexec.testing.executors import Executors, end
from polyexec.testing.helpers import LIMIT, error_of
from polyexec.testing.marks import alone, clause, deviation
from polyexec.testing.target import Target
from polyexec.testing.tools import Gate, Marks, never
from polyexec.testing.watch import Snapshot


@alone
@clause("F9")
def test_close_waits_and_leaves_nothing(target: Target, gate: Gate, marks: Marks) -> None:
    """F9 ``close`` waits for what was submitted, and leaves no thread, process, descriptor or file."""
    before = Snapshot.take()
    _close_waits(target, gate, marks)
    before.check()


@alone
@deviation("F9")
def test_close_leaves_descriptors_alone(target: Target, gate: Gate, marks: Marks) -> None:
    """F9 (declared) ``close`` waits, and leaves no thread, process or file; some descriptors stay open."""
    before = Snapshot.take()
    _close_waits(target, gate, marks)
    before.check(descriptors=False)
    assert before.leaks(), "nothing is left: the deviation need not be declared"


def _close_waits(target: Target, gate: Gate, marks: Marks) -> None:
    ex = polyexec.connect(target.with_keys(workers=2))
    try:
        future = ex.put([0])
        futures = [ex.submit(bodies.pass_gate, marks, gate, number) for number in range(5)]
        dependent = ex.submit(bodies.give, futures[-1])
        closed = threading.Event()

        def close() -> None:
            ex.close()
            closed.set()

        thread = threading.Thread(target=close, daemon=True)
        thread.start()
        if not target.capabilities.inline:
            never(closed.is_set, "close returned before the tasks had ended")
        gate.open()
        thread.join(LIMIT)
        assert closed.is_set()
        assert [future.result(0) for future in futures] == list(range(5))
        assert dependent.result(0) == 4
        assert future.result(0) == [0]
        assert marks.count("end") == 5
        ex.close()
    finally:
        end(ex)


def _refuses_everything(ex: Executor, future: Any) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: ex.submit(bodies.add, 1, 1),
        lambda: ex.options(cpus=0).submit(bodies.add, 1, 1),
        lambda: ex.put(1),
        lambda: list(ex.map(bodies.add, [1], [1])),
        lambda: ex.stream(range, 3),
    ]
    for call in calls:
        with pytest.raises(polyexec.ExecutorClosed):
            call()
    assert ex.cancel(future) is False


@alone
@clause("S9")
def test_submit_after_close(executors: Executors) -> None:
    """S9 After ``close`` whatever needs the engine raises ``ExecutorClosed``; what is done stays good."""
    ex, future = executors.close_one()
    _refuses_everything(ex, future)
    assert future.result(0) == 0
    assert ex.wait([future]) == ([future], [])
    assert isinstance(polyexec.ExecutorClosed(""), RuntimeError)


@alone
@clause("F9")
def test_an_exception_cancels_and_leaves_nothing(target: Target, marks: Marks, tmp_path: Any) -> None:
    """F9 Leaving ``with`` by an exception cancels what runs and what is queued, and leaves nothing."""
    before = Snapshot.take()
    queued_marks = Marks(str(tmp_path / "queued"))
    futures: list[Any] = []
    with pytest.raises(LookupError, match="the caller's own"):
        _leave(target, marks, queued_marks, futures)
    if not target.capabilities.inline:
        assert all(future.cancelled() for future in futures)
        assert marks.count("start") == marks.count("end") == 2
        assert queued_marks.lines() == []
    before.check()


def _leave(target: Target, marks: Marks, queued: Marks, futures: list[Any]) -> None:
    with polyexec.connect(target.with_keys(workers=2)) as ex:
        if not target.capabilities.inline:
            futures += [ex.submit(bodies.beat, marks) for _ in range(2)]
            marks.wait_for("start", 2)
            futures += [ex.submit(bodies.mark, queued, "ran") for _ in range(5)]
        raise LookupError("the caller's own")


@clause("F9")
def test_close_may_cancel(last: Executor, marks: Marks, target: Target) -> None:
    """F9 ``close(cancel_pending=True)`` cancels; from any thread, twice, and while somebody waits."""
    if not target.capabilities.inline:
        running = last.submit(bodies.beat, marks)
        queued = last.submit(bodies.mark, marks, "queued")
        marks.wait_for("beat")
        threads = [threading.Thread(target=last.close, kwargs={"cancel_pending": True}) for _ in range(2)]
        for thread in threads:
            thread.start()
        for future in (running, queued):
            assert isinstance(error_of(future), polyexec.TaskCancelled)
        for thread in threads:
            thread.join(LIMIT)
        assert marks.lines()[-1] == "end"
        assert marks.count("queued") == 0
    last.close()
    last.close(cancel_pending=True)

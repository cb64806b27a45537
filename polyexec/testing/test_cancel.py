"""Chapter C: cancelling; that a body has stopped is observed by the marks that it leaves."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

import polyexec
from polyexec import Executor, Future
from polyexec.testing import bodies
from polyexec.testing.executors import idle
from polyexec.testing.helpers import LIMIT, assert_cancelled, error_of, hold
from polyexec.testing.marks import clause, deviation
from polyexec.testing.tools import Gate, Marks, eventually, never


@clause("C1")
def test_a_queued_task_never_runs(ex: Executor, inline: bool, gate: Gate, marks: Marks) -> None:
    """C1 A task that has not started never runs; its ``result`` raises ``TaskCancelled``."""
    if inline:
        return
    hold(ex, marks, gate, int(ex.resources().total.cpus))
    queued = [ex.options(name="victim").submit(bodies.mark, marks, f"victim {number}") for number in range(6)]
    after = ex.submit(bodies.mark, marks, "after")
    assert [ex.cancel(future) for future in queued] == [True] * 6
    for future in queued:
        assert_cancelled(future, "victim")
    gate.open()
    assert after.result(LIMIT) == "after"
    assert ex.submit(bodies.add, 1, 1).result(LIMIT) == 2
    assert marks.count("victim") == 0


@clause("C1")
def test_a_task_that_waits_for_a_dependency_never_runs(ex: Executor, inline: bool, gate: Gate, marks: Marks) -> None:
    """C1 A task that waits for its dependency is cancelled, and the dependency is not."""
    if inline:
        return
    first = ex.submit(bodies.pass_gate, marks, gate, "first")
    second = ex.submit(bodies.mark, marks, first)
    assert ex.cancel(second) is True
    assert_cancelled(second)
    gate.open()
    assert first.result(LIMIT) == "first"
    assert marks.lines() == ["start first", "end first"]


@clause("C4")
def test_what_has_begun_can_be_left_alone(ex: Executor, inline: bool, gate: Gate, marks: Marks) -> None:
    """C4 With ``running=False`` what waits is cancelled, and what a worker has goes on, in tasks as well."""
    if inline:
        return

    def cancel_both(first: Any) -> list[bool]:
        return [polyexec.current().cancel(future, running=False) for future in first]

    cpus = int(ex.resources().total.cpus)
    held = hold(ex, marks, gate, cpus)
    # None of them is handed to a worker before it can have all that it needs.
    wide = ex.options(name="victim", cpus=cpus)
    queued = [wide.submit(bodies.mark, marks, f"victim {number}") for number in range(3)]
    assert [ex.cancel(future, running=False) for future in (*held, queued[0])] == [False] * len(held) + [True]
    assert_cancelled(queued[0], "victim")
    deputy = ex.options(cpus=0).submit(cancel_both, [held[0], queued[1]])
    assert deputy.result(LIMIT) == [False, True]
    gate.open()
    assert [future.result(LIMIT) for future in held] == [f"held {number}" for number in range(len(held))]
    assert queued[2].result(LIMIT) == "victim 2"
    assert ex.cancel(queued[2], running=False) is False
    assert marks.lines().count("victim 2") == marks.count("victim") == 1


@clause("C2")
def test_a_running_loop_stops(ex: Executor, inline: bool, marks: Marks) -> None:
    """C2 A running task sees an exception, its ``finally`` runs, its Future is cancelled, and its body is over."""
    if inline:
        return
    future = ex.options(name="loop").submit(bodies.beat, marks)
    marks.wait_for("beat", 3)
    assert ex.cancel(future) is True
    assert_cancelled(future, "loop")
    count = marks.count("beat")
    assert marks.lines()[-1] == "end"
    assert marks.values("saw") == ["Interrupted"]
    never(lambda: marks.count("beat") != count, "the body runs on")
    assert ex.submit(bodies.add, 1, 1).result(LIMIT) == 2


@clause("C2")
def test_except_exception_does_not_swallow_the_interrupt(ex: Executor, inline: bool, marks: Marks) -> None:
    """C2 What a cancelled task sees is no ``Exception``, so that code that catches every ``Exception`` stops too."""
    if inline:
        return

    def stubborn() -> None:
        import time

        end = time.monotonic() + LIMIT
        marks.add("start")
        while time.monotonic() < end:
            try:
                time.sleep(0.001)
            except Exception:
                marks.add("swallowed")

    future = ex.submit(stubborn)
    marks.wait_for("start")
    assert ex.cancel(future) is True
    assert_cancelled(future)
    assert marks.lines() == ["start"]


@clause("C3")
@pytest.mark.parametrize("body", [bodies.sleep_in_c, bodies.compute_in_c, bodies.beat])
def test_force_ends_a_task_whatever_it_does(
    ex: Executor, inline: bool, body: Callable[..., Any], gate: Gate, tmp_path: Any, marks: Marks
) -> None:
    """C3 ``force=True`` ends a task in C code, in a system call or in Python, and no other task is lost."""
    if inline:
        return
    others = Marks(str(tmp_path / "others"))
    peer = hold(ex, others, gate, 1) if ex.resources().total.cpus > 1 else []
    victim = ex.options(name="victim").submit(body, marks)
    queued = [ex.submit(bodies.mark, others, f"queued {number}") for number in range(4)]
    marks.wait_for("start")
    assert ex.cancel(victim, force=True) is True
    assert_cancelled(victim, "victim")
    gate.open()
    assert [future.result(LIMIT) for future in peer] == ["held 0"] * len(peer)
    assert [future.result(LIMIT) for future in queued] == [f"queued {number}" for number in range(4)]
    assert marks.count("start") == 1
    assert others.count("start") == len(peer)


@deviation("C3")
def test_force_waits_for_c_code(ex: Executor, inline: bool, tmp_path: Any, marks: Marks) -> None:
    """C3 (declared) ``force`` interrupts Python code like a plain cancel; C code runs to its end first."""
    if inline:
        return
    pipe = str(tmp_path / "pipe")
    os.mkfifo(pipe)
    in_c = ex.submit(bodies.read_pipe, marks, pipe)
    marks.wait_for("start")
    assert ex.cancel(in_c, force=True) is True
    never(in_c.done, "the Future is done while its body is in C")
    assert not idle(ex)
    with contextlib.suppress(BrokenPipeError), open(pipe, "wb") as file:
        file.write(b"data")
    assert_cancelled(in_c)
    assert marks.count("finally") == 1
    loop = ex.submit(bodies.beat, marks)
    marks.wait_for("beat")
    assert ex.cancel(loop, force=True) is True
    assert_cancelled(loop)
    assert marks.lines()[-1] == "end"


@clause("C4")
def test_cancelling_a_finished_task(ex: Executor) -> None:
    """C4 On a finished task ``cancel`` returns False and changes nothing, whether it succeeded or failed."""
    done, failed, stored = ex.submit(bodies.add, 1, 1), ex.submit(bodies.fail, ValueError("bad")), ex.put(3)
    ex.wait([done, failed, stored], timeout=LIMIT)
    for force in (False, True):
        assert [ex.cancel(future, force=force) for future in (done, failed, stored)] == [False] * 3
    assert done.result() == 2
    assert isinstance(failed.exception(), ValueError)
    assert stored.result() == 3
    assert not done.cancelled()


@clause("C4")
def test_cancelling_twice(ex: Executor, inline: bool, gate: Gate, marks: Marks) -> None:
    """C4 Cancelling twice is harmless: the second does not interrupt what the first has set off."""
    if inline:
        return
    future = ex.submit(bodies.beat, marks, gate)
    marks.wait_for("beat")
    assert ex.cancel(future) is True
    marks.wait_for("finally")
    assert ex.cancel(future) in (True, False)
    never(future.done, "the Future is done before its body")
    gate.open()
    assert_cancelled(future)
    assert marks.lines()[-1] == "end"
    assert ex.cancel(future) is False
    assert_cancelled(future)


@clause("C8")
def test_no_future_says_cancelled_before_its_body_has_ended(
    ex: Executor, inline: bool, gate: Gate, marks: Marks
) -> None:
    """C8 While the body's ``finally`` runs, its Future is not done and what it holds is not free."""
    if inline:
        return
    future = ex.options(cpus=1).submit(bodies.beat, marks, gate)
    marks.wait_for("beat")
    assert ex.cancel(future) is True
    marks.wait_for("finally")
    never(lambda: future.done() or future.cancelled() or idle(ex), "it says cancelled, or is free, before its end")
    gate.open()
    assert_cancelled(future)
    assert marks.lines()[-1] == "end"


@clause("C8")
def test_true_means_that_it_will_not_run(ex: Executor, inline: bool, marks: Marks, gate: Gate) -> None:
    """C8 ``cancel`` returns True only if the task will not run or was interrupted; else its result stands."""
    if inline:
        return
    for number in range(30):
        future = ex.submit(bodies.mark, marks, f"ran {number}")
        if number % 3 == 0:
            future.result(LIMIT)
        told = ex.cancel(future)
        error = error_of(future)
        assert told == isinstance(error, polyexec.TaskCancelled)
        assert told or marks.count(f"ran {number}") == 1


def _noting(seen: list[str]) -> Callable[[Future[Any]], None]:
    return lambda done: seen.append("cancelled" if done.cancelled() else done.result())


@clause("C9")
def test_races_of_cancel_and_completion(ex: Executor, inline: bool, marks: Marks) -> None:
    """C9 A cancel that races with completion gives a result or ``TaskCancelled``, never a hang, never both."""
    if inline:
        return
    futures = [ex.submit(bodies.mark, marks, f"ran {number}") for number in range(120)]
    outcomes: list[list[str]] = [[] for _ in futures]
    for future, seen in zip(futures, outcomes, strict=True):
        future.add_done_callback(_noting(seen))
    told: dict[int, bool] = {}

    def race(start: int) -> None:
        for number in range(start, len(futures), 4):
            told[number] = ex.cancel(futures[number], force=number % 16 == 3)

    threads = [threading.Thread(target=race, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    ex.wait(futures, timeout=LIMIT)
    eventually(lambda: all(outcomes), "every callback was called")
    for number, future in enumerate(futures):
        expected = "cancelled" if told[number] else f"ran {number}"
        assert outcomes[number] == [expected]
        assert future.cancelled() == told[number]
        assert told[number] or future.result() == expected

"""Rows of tasks that are cancelled at every moment."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import polyexec
from polyexec import Future
from polyexec.testing import bodies
from polyexec.testing.faults.model import QUEUE, Case, Row
from polyexec.testing.faults.trial import Trial
from polyexec.testing.tools import PATIENCE, Marks, eventually

_BATCH = 50


def _is_cancelled(trial: Trial, future: Future[Any]) -> None:
    error = trial.error(future)
    assert isinstance(error, polyexec.TaskCancelled), repr(error)
    assert future.cancelled()


def _pending(trial: Trial) -> None:
    """A task that waits behind others never runs."""
    gate, held = trial.gate("held"), Marks(str(trial.folder / "held"))
    count = int(trial.ex.resources().total.cpus)
    holders = [trial.ex.submit(bodies.pass_gate, held, gate, number) for number in range(count)]
    held.wait_for("start", count)
    victim = trial.ex.submit(bodies.mark, trial.marks, "start")
    behind = trial.ex.submit(bodies.add, 1, 1)
    since = time.monotonic()
    assert trial.ex.cancel(victim) is True
    _is_cancelled(trial, victim)
    trial.injected(since)
    gate.open()
    assert [trial.value(future) for future in holders] == list(range(count))
    assert trial.value(behind) == 2
    trial.starts(0)
    trial.usable()


def _running(trial: Trial, body: Callable[..., Any], *, force: bool) -> str | None:
    """A running task ends, and nobody else is harmed; C code may end later, as declared."""
    if force and trial.target.declared("C3") is not None:
        return _waits_for_c(trial)
    others = trial.bystanders()
    victim = trial.ex.submit(body, trial.marks)
    others.queue()
    trial.marks.wait_for("start")
    since = time.monotonic()
    assert trial.ex.cancel(victim, force=force) is True
    _is_cancelled(trial, victim)
    trial.injected(since)
    others.check()
    trial.starts(1, 1)
    trial.usable()
    return None


def _waits_for_c(trial: Trial) -> str:
    pipe = str(trial.folder / "pipe")
    os.mkfifo(pipe)
    victim = trial.ex.submit(bodies.read_pipe, trial.marks, pipe)
    trial.marks.wait_for("start")
    since = time.monotonic()
    assert trial.ex.cancel(victim, force=True) is True
    assert not victim.done()
    with suppress(BrokenPipeError), open(pipe, "wb") as file:
        file.write(b"data")
    _is_cancelled(trial, victim)
    trial.injected(since)
    assert trial.marks.count("finally") == 1
    trial.usable()
    return "C3"


def _finished(trial: Trial) -> None:
    """On a finished task ``cancel`` says False, and changes nothing."""
    done, failed = trial.ex.submit(bodies.add, 1, 1), trial.ex.submit(bodies.fail, ValueError("bad"))
    since = time.monotonic()
    trial.ex.wait([done, failed], timeout=PATIENCE)
    for force in (False, True):
        assert [trial.ex.cancel(future, force=force) for future in (done, failed)] == [False, False]
    assert trial.value(done) == 2
    assert isinstance(trial.error(failed), ValueError)
    trial.injected(since, 4)
    trial.usable()


def _twice(trial: Trial) -> None:
    """The second cancel does not interrupt what the first has set off."""
    gate = trial.gate("finally")
    victim = trial.ex.submit(bodies.beat, trial.marks, gate)
    trial.marks.wait_for("beat")
    assert trial.ex.cancel(victim) is True
    trial.marks.wait_for("finally")
    trial.ex.cancel(victim)
    assert not victim.done(), "it says that it is done before its body is"
    gate.open()
    since = time.monotonic()
    _is_cancelled(trial, victim)
    trial.injected(since, 2)
    assert trial.marks.lines()[-1] == "end"
    assert trial.ex.cancel(victim) is False
    trial.usable()


def _races(trial: Trial, count: int, *, force: bool) -> None:
    """Each task has one outcome, which ``cancel`` has told, whenever it comes; each callback is called once."""
    choose = random.Random(7)
    begun = time.monotonic()
    cancelled = 0
    for start in range(0, count, _BATCH):
        cancelled += _race(trial, range(start, start + _BATCH), choose, force=force)
    seconds = time.monotonic() - begun
    trial.saw(f"{count} races in {seconds:.0f} s: {cancelled} cancelled, {count - cancelled} values")
    trial.result.injected += count
    trial.usable()


def _race(trial: Trial, numbers: range, choose: random.Random, *, force: bool) -> int:
    seen: dict[int, list[str]] = {number: [] for number in numbers}
    told: dict[int, bool] = {}
    futures = {}
    for number in numbers:
        futures[number] = trial.ex.submit(bodies.give, number)
        futures[number].add_done_callback(partial(_note, seen[number]))
    order = choose.sample(list(numbers), len(numbers))
    pauses = [choose.choice([0.0, 0.0, 0.0001, 0.0005, 0.002]) for _ in order]

    def cancel(part: int) -> None:
        for number, pause in list(zip(order, pauses, strict=True))[part::2]:
            time.sleep(pause)  # places the cancel; what holds, holds wherever it falls
            told[number] = trial.ex.cancel(futures[number], force=force and number % 25 == 0)

    threads = [threading.Thread(target=cancel, args=(part,), daemon=True) for part in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    trial.within(lambda: _all_done(list(futures.values())), "the end of tasks that were cancelled")
    eventually(lambda: all(seen.values()), "every callback was called", PATIENCE)
    for number, future in futures.items():
        expected = "cancelled" if told[number] else f"value {number}"
        assert seen[number] == [expected], f"cancel said {told[number]}, callbacks saw {seen[number]}"
        assert future.cancelled() == told[number]
    return sum(told.values())


def _note(seen: list[str], future: Future[Any]) -> None:
    seen.append("cancelled" if future.cancelled() else f"value {future.result()}")


def _all_done(futures: list[Future[Any]]) -> None:
    """Wait for Futures; raises ``TimeoutError`` if that takes too long."""
    end = time.monotonic() + PATIENCE
    for future in futures:
        with suppress(polyexec.TaskCancelled):
            future.exception(max(0.0, end - time.monotonic()))


def _dependency(trial: Trial, *, running: bool) -> None:
    """Who depends on a cancelled task never runs, and its error names the task; others are not touched."""
    gate = trial.gate("held")
    count = int(trial.ex.resources().total.cpus)
    held = Marks(str(trial.folder / "held"))
    holders = [trial.ex.submit(bodies.pass_gate, held, gate, number) for number in range(count - running)]
    held.wait_for("start", len(holders))
    first = trial.ex.options(name="first").submit(bodies.beat, trial.marks)
    if running:
        trial.marks.wait_for("beat")
    second = trial.ex.submit(bodies.mark, trial.marks, first)
    third = trial.ex.submit(bodies.give, second)
    sibling = trial.ex.submit(bodies.give, 42)
    since = time.monotonic()
    assert trial.ex.cancel(first) is True
    for future, named in ((first, "first"), (second, "first"), (third, "mark")):
        error = trial.error(future)
        assert isinstance(error, polyexec.TaskCancelled), repr(error)
        assert named in str(error), str(error)
    trial.injected(since)
    gate.open()
    assert trial.value(sibling) == 42
    assert [trial.value(future) for future in holders] == list(range(len(holders)))
    trial.starts(int(running), int(running))
    trial.usable()


_TASKS = (QUEUE,)

ROWS = (
    Row(
        "F23",
        "A task is cancelled",
        "it ends, no slot is lost, and `cancel` says what has come of it",
        ("C1", "C2", "C3", "C4", "C7", "C8", "C9"),
        (
            Case("while it is queued", _pending, _TASKS),
            Case("in a Python loop", partial(_running, body=bodies.beat, force=False), _TASKS),
            Case("asleep, by force", partial(_running, body=bodies.sleep_in_c, force=True), _TASKS),
            Case("computing in C, by force", partial(_running, body=bodies.compute_in_c, force=True), _TASKS),
            Case("when it has finished", _finished),
            Case("twice", _twice, _TASKS),
            Case("at random moments", partial(_races, count=10_000, force=False), _TASKS, limit=600.0),
            Case("at random moments, some by force", partial(_races, count=1000, force=True), _TASKS, limit=600.0),
        ),
        2.0,
    ),
    Row(
        "F24",
        "A task is cancelled on which others depend",
        "they never run, and their errors name it; others are not touched",
        ("C6", "S6"),
        (
            Case("while it is queued", partial(_dependency, running=False), _TASKS),
            Case("while it runs", partial(_dependency, running=True), _TASKS),
        ),
        2.0,
    ),
)

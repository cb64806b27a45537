"""Rows of what lives on from call to call: actors, streams, and arrays that several look at."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

import polyexec
from polyexec.testing import actors, bodies
from polyexec.testing.faults import bodies as faults
from polyexec.testing.faults.model import COPIES, PROCESSES, QUEUE, Case, Row
from polyexec.testing.faults.trial import Trial
from polyexec.testing.tools import Gate, Marks, eventually


def _actor_dies(trial: Trial, how: str) -> None:
    """The call that ran, those behind it and later ones fail with ``ActorDied``; others are not harmed."""
    others = trial.bystanders()
    actor = trial.ex.actor(actors.Counter)
    assert trial.value(actor.add()) == 1
    begun = time.monotonic()
    calls = [actor.die(how), *(actor.add() for _ in range(3))]
    others.queue()
    errors = [trial.error(call) for call in calls]
    trial.injected(begun)
    later = trial.error(actor.add())
    assert all(type(error) is polyexec.ActorDied for error in (*errors, later)), (errors, later)
    others.check()
    trial.usable()


def _actor_comes_back(trial: Trial) -> None:
    """It is made again as often as it may be, and no more."""
    others = trial.bystanders()
    actor = trial.ex.options(restarts=1).actor(actors.Counter, 10)
    begun = time.monotonic()
    death, later = actor.die("SIGKILL"), actor.add()
    others.queue()
    assert type(trial.error(death)) is polyexec.ActorDied
    assert trial.value(later) == 11
    trial.injected(begun)
    assert type(trial.error(actor.die("SIGKILL"))) is polyexec.ActorDied
    assert type(trial.error(actor.add())) is polyexec.ActorDied
    others.check()
    trial.usable()


class Unmade:
    """Cannot be made."""

    def __init__(self, marks: Marks, how: str) -> None:
        faults.begin(marks)
        if how == "raises":
            raise LookupError("the constructor's own text")
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)

    def give(self) -> int:
        """Give something."""
        return 1


def _cannot_be_made(trial: Trial, how: str, kind: type[BaseException], starts: int, **options: Any) -> None:
    """Each call fails with the reason; the constructor runs as often as it may, and no more."""
    others = trial.bystanders()
    actor = trial.ex.options(**options).actor(Unmade, trial.marks, how)
    calls = [actor.give() for _ in range(3)]
    others.queue()
    errors = [trial.error(call) for call in calls]
    trial.injected()
    assert all(isinstance(error, kind) for error in errors), errors
    others.check()
    trial.starts(starts, starts)
    trial.usable()


def _numbers(marks: Marks, count: int, how: str, read: Gate) -> Iterator[int]:
    faults.begin(marks)
    try:
        for number in range(count):
            marks.add(f"item {number}")
            yield number
        if how == "raises":
            raise LookupError("the generator's own text")
        if how != "ends":
            # What has not left the process dies with it.
            read.wait()
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
    finally:
        marks.add("finally")


def _stream_fails(trial: Trial, how: str, kind: type[BaseException]) -> None:
    """The items before the fault are good, the error comes behind them, again and again."""
    others = trial.bystanders()
    read = trial.gate("read")
    stream = trial.ex.options(buffer=8).stream(_numbers, trial.marks, 3, how, read)
    begun = time.monotonic()
    others.queue()
    items = [next(stream) for _ in range(3)]
    assert [trial.value(item) for item in items] == [0, 1, 2]
    read.open()
    for _ in range(2):
        try:
            found: Any = trial.within(lambda: next(stream), "the end of the stream")
        except polyexec.PolyexecError as error:
            found = error
        except LookupError as error:
            found = error
        assert isinstance(found, kind), repr(found)
    trial.saw(found)
    trial.injected(begun)
    assert [trial.value(item) for item in items] == [0, 1, 2]
    others.check()
    trial.starts(1, 1)
    trial.usable()


def _reader_stops(trial: Trial, how: str) -> None:
    """The generator is stopped, and its ``finally`` has run."""
    others = trial.bystanders()
    stream = trial.ex.options(buffer=2).stream(bodies.count_for_ever, trial.marks)
    assert trial.value(next(stream)) == 0
    begun = time.monotonic()
    others.queue()
    if how == "close":
        stream.close()
    del stream
    gc.collect()
    eventually(lambda: trial.marks.count("finally") == 1, "the generator has ended")
    trial.injected(begun)
    others.check()
    trial.usable()


def _reader_is_slow(trial: Trial) -> None:
    """No more than ``buffer`` items wait unread, whatever the generator could give."""
    stream = trial.ex.options(buffer=3).stream(bodies.count_for_ever, trial.marks)
    begun = time.monotonic()
    for number in range(10):
        assert trial.value(next(stream)) == number
        trial.marks.wait_for(f"item {number}")
        # One is being made while three wait.
        assert trial.marks.count("item") <= number + 1 + 3 + 1
    stream.close()
    trial.injected(begun)
    trial.usable()


def _changed(items: list[int], array: Any, table: dict[str, int]) -> Any:
    items.append(1)
    table["x"] = 1
    array = array.copy()
    array[0] = 9
    return items, array, table


def _task_changes(trial: Trial) -> None:
    begun = time.monotonic()
    items, array, table = [0], np.zeros(10), {"y": 0}
    found = trial.value(trial.ex.submit(_changed, items, array, table))
    trial.injected(begun)
    assert (items, array[0], table) == ([0], 0.0, {"y": 0})
    assert (found[0], found[1][0], found[2]) == ([0, 1], 9.0, {"y": 0, "x": 1})
    trial.usable()


def _caller_changes(trial: Trial) -> None:
    """Neither an argument nor what was put is changed by what the caller does afterwards."""
    gate = trial.gate("go")
    begun = time.monotonic()
    items, array = [0], np.zeros(100_000)
    kept = trial.ex.put(array)
    held = trial.ex.submit(lambda gate, *given: (gate.wait(), given)[1], gate, items, array, kept)
    items.append(1)
    array[:] = 5
    gate.open()
    found = trial.value(held)
    trial.injected(begun, 3)
    assert found[0] == [0] or trial.target.capabilities.inline
    assert found[1].sum() == 0
    assert found[2].sum() == 0
    assert trial.value(kept).sum() == 0
    trial.usable()


def _is_read_only(trial: Trial) -> None:
    begun = time.monotonic()
    array = np.arange(200_000.0)
    kept = trial.ex.put(array)
    assert trial.value(trial.ex.submit(bodies.overwrite, kept)).startswith("refused")
    assert bodies.overwrite(trial.value(kept)).startswith("refused")
    mine = trial.value(kept).copy()
    assert bodies.overwrite(mine) == "written"
    trial.injected(begun, 2)
    trial.usable()


def _made_here(gate: Gate, marks: Marks) -> Any:
    marks.add(f"maker {os.getpid()}")
    return np.full(500_000, 7.0)


def _maker_dies(trial: Trial) -> None:
    """A value outlives the worker that has made it, and nothing runs again for it."""
    gate = trial.gate("unused")
    made = trial.ex.submit(_made_here, gate, trial.marks)
    trial.ex.wait([made])
    pid = int(trial.marks.values("maker")[0])
    begun = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    assert trial.value(trial.ex.submit(bodies.total_of, made)) == 3_500_000
    assert trial.value(made).sum() == 3_500_000
    trial.injected(begun)
    assert trial.marks.count("maker") == 1
    trial.usable()


ROWS = (
    Row(
        "F38",
        "An actor dies, or cannot be made",
        "its calls fail with `ActorDied` or the constructor's error; `restarts` is kept",
        ("A4", "A5"),
        (
            Case("a method kills the process, calls wait", partial(_actor_dies, how="SIGKILL"), (PROCESSES,)),
            Case("a method ends the process", partial(_actor_dies, how="exit 3"), (PROCESSES,)),
            Case("it comes back once", _actor_comes_back, (PROCESSES,)),
            Case("the constructor raises", partial(_cannot_be_made, how="raises", kind=LookupError, starts=1)),
            Case(
                "the constructor kills the process",
                partial(_cannot_be_made, how="kills", kind=polyexec.ActorDied, starts=3, restarts=2),
                (PROCESSES,),
            ),
        ),
        5.0,
    ),
    Row(
        "F39",
        "A stream fails, or is not read to its end",
        "first the items, then the error; the generator is stopped",
        ("G2", "G3"),
        (
            Case("the generator raises", partial(_stream_fails, how="raises", kind=LookupError)),
            Case(
                "the generator kills its process",
                partial(_stream_fails, how="kills", kind=polyexec.WorkerDied),
                (PROCESSES,),
            ),
            Case("the reader closes it", partial(_reader_stops, how="close")),
            Case("the reader drops it", partial(_reader_stops, how="drop")),
            Case("the reader is slow", _reader_is_slow),
        ),
        5.0,
    ),
    Row(
        "F40",
        "Arguments are changed on one side",
        "the other side does not see it",
        ("S2",),
        (
            Case("by the task", _task_changes, (COPIES,)),
            Case("by the caller", _caller_changes, (COPIES, QUEUE)),
        ),
        1.0,
    ),
    Row(
        "F41",
        "A shared array is written to, or its maker dies",
        "the write is refused; the value stays",
        ("O2", "O7", "F5"),
        (
            Case("written to", _is_read_only),
            Case("its maker is killed", _maker_dies, (PROCESSES,)),
        ),
        2.0,
    ),
)

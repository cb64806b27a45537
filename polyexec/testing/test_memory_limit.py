"""Chapter F: tasks that use more memory than they asked for."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import pytest

import polyexec
from polyexec import Executor
from polyexec.testing import bodies
from polyexec.testing.executors import idle
from polyexec.testing.helpers import LIMIT, hold, require_processes, text_of
from polyexec.testing.marks import clause
from polyexec.testing.target import Target
from polyexec.testing.tools import PATIENCE, Gate, Marks, eventually
from polyexec.testing.watch import LINUX

pytestmark = pytest.mark.skipif(not LINUX, reason="memory of single processes is known on Linux alone")

_MIB = 2**20
_ASKED = 64 * _MIB
_MUCH = 320 * _MIB
_ENOUGH = 1024 * _MIB
_NOTICED = PATIENCE / 2
"""Seconds within which somebody must have noticed; a task that is not ended then ends by itself, with an error."""

_kept: list[bytes] = []


def take(marks: Marks, size: int, gate: Gate | None = None) -> int:
    """Take memory in small steps, at most so many bytes; then wait for a gate."""
    marks.add(f"start {os.getpid()}")
    held: list[bytes] = []
    while len(held) * _MIB < size:
        held.append(b"x" * _MIB)
    marks.add("took all")
    if gate is not None:
        gate.wait(_NOTICED)
    return len(held)


def keep(size: int) -> None:
    """Take memory that stays in use when the task has ended."""
    _kept.append(b"x" * size)


def add_up_for_a_while(array: Any) -> float:
    """Read all of an array, and hold it for as long as it takes others to look."""
    total = float(array.sum())
    time.sleep(1.0)
    return total


@pytest.fixture
def limited(ex: Executor, target: Target) -> Executor:
    """The shared executor, if its tasks have processes of their own and it has memory to give."""
    require_processes(target)
    if ex.resources().total.memory < _ENOUGH:
        pytest.skip("the cluster has too little memory")
    return ex


@clause("F11")
def test_a_task_that_outgrows_its_memory_is_ended(limited: Executor, gate: Gate, marks: Marks, tmp_path: Any) -> None:
    """F11 It ends with ``WorkerDied`` that says out of memory; others run on, and the capacity is back."""
    others, never_opened = Marks(str(tmp_path / "others")), Gate(str(tmp_path / "never"))
    peer = hold(limited, others, gate, 1) if limited.resources().total.cpus > 1 else []
    victim = limited.options(name="victim", memory=_ASKED).submit(take, marks, _MUCH, never_opened)
    queued = [limited.submit(bodies.mark, others, f"queued {number}") for number in range(4)]
    error = victim.exception(LIMIT)
    assert type(error) is polyexec.WorkerDied
    assert (error.task, error.pid) == ("victim", int(marks.values("start")[0]))
    assert "out of memory" in text_of(error)
    assert [future.result(LIMIT) for future in queued] == [f"queued {number}" for number in range(4)]
    gate.open()
    assert [future.result(LIMIT) for future in peer] == ["held 0"] * len(peer)
    assert (marks.count("start"), victim.attempts) == (1, 1)
    eventually(lambda: idle(limited), "the capacity is back")


@clause("F11")
def test_twice_the_memory_for_another_attempt(limited: Executor, marks: Marks, tmp_path: Any) -> None:
    """F11 A hook may give a task that ran out of memory twice as much."""
    asked: list[int] = []

    def double(error: BaseException, attempt: int, options: Any) -> Any:
        asked.append(options.memory)
        return options.evolve(memory=2 * options.memory) if "out of memory" in str(error) else None

    gates = [Gate(str(tmp_path / f"gate {number}")) for number in range(2)]
    gates[1].open()

    def body() -> int:
        return take(marks, _MUCH, gates[marks.count("start")])

    future = limited.options(memory=3 * _ASKED, retries=1, retry=double).submit(body)
    assert future.result(LIMIT) == _MUCH // _MIB
    assert (asked, future.attempts, marks.count("start")) == ([3 * _ASKED], 2, 2)


@clause("F11")
def test_a_task_within_its_memory_is_left_alone(limited: Executor, marks: Marks) -> None:
    """F11 What a task asked for it may use, and what earlier tasks have left in its worker is not its fault."""
    for future in [limited.submit(keep, 150 * _MIB) for _ in range(4)]:
        future.result(LIMIT)
    small = [limited.options(memory=_ASKED).submit(take, marks, _ASKED - 8 * _MIB) for _ in range(4)]
    assert [future.result(LIMIT) for future in small] == [_ASKED // _MIB - 8] * 4
    assert marks.count("start") == 4


@clause("F11")
def test_what_is_shared_does_not_count(limited: Executor, target: Target) -> None:
    """F11 An object that is mapped from the store is not memory of the task that reads it."""
    if not target.own_cluster:
        pytest.skip("needs workers on this machine")
    array = limited.put(np.ones(200 * _MIB // 8))
    future = limited.options(memory=16 * _MIB).submit(add_up_for_a_while, array)
    assert future.result(LIMIT) == 200 * _MIB // 8

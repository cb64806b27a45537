"""Chapter F: processes that tasks have started, when their worker dies."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

import polyexec
from polyexec import Executor
from polyexec.testing import bodies
from polyexec.testing.helpers import LIMIT, assert_cancelled, require_processes
from polyexec.testing.marks import clause, deviation
from polyexec.testing.target import Target
from polyexec.testing.tools import TASK_LIMIT, Marks, eventually
from polyexec.testing.watch import read_process

_SLEEP = ["sleep", str(int(TASK_LIMIT))]
_IN_BACKGROUND = f"{' '.join(_SLEEP)} >/dev/null & echo $!"

NEAR = ("child", "grandchild", "orphan")
"""Processes that have stayed in the task's own process group, as all do that were not told otherwise."""

FAR = ("in a group", "in a session")
"""Processes that lead a group or a session of their own, as servers do that a task starts in the background."""

_OPTIONS: dict[str, dict[str, Any]] = {"in a group": {"process_group": 0}, "in a session": {"start_new_session": True}}
_kept: list[Any] = []


def start_one(kind: str) -> int:
    """Start a process that sleeps for a long time, and give its id."""
    if kind == "orphan":
        return int(subprocess.run(["sh", "-c", _IN_BACKGROUND], stdout=subprocess.PIPE, check=True).stdout)
    if kind == "grandchild":
        _kept.append(subprocess.Popen(["sh", "-c", f"{_IN_BACKGROUND}; wait"], stdout=subprocess.PIPE))
        return int(_kept[-1].stdout.readline())
    _kept.append(subprocess.Popen(_SLEEP, **_OPTIONS.get(kind, {})))
    return int(_kept[-1].pid)


def start_and_end(marks: Marks, kinds: tuple[str, ...], end: str) -> None:
    """Start processes, mark their ids, and die in some way, or block in C until somebody else sees to that."""
    for kind in kinds:
        marks.add(f"started {start_one(kind)} {kind}")
    marks.add(f"worker {os.getpid()}")
    if end.startswith("exit"):
        os._exit(7)
    time.sleep(TASK_LIMIT)


def left(marks: Marks) -> list[str]:
    """Give the processes that were started and still live."""
    started = [line.split(maxsplit=1) for line in marks.values("started")]
    found = {pid: read_process(int(pid)) for pid, _ in started}
    return [f"{pid} {kind}" for pid, kind in started if (process := found[pid]) and "sleep" in process.command]


@pytest.fixture
def started(ex: Executor, target: Target, tmp_path: Any) -> Iterator[Marks]:
    """Where tasks mark what they have started; what is left of it at the end is killed."""
    require_processes(target)
    if not target.own_cluster:
        pytest.skip("needs workers on this machine")
    marks = Marks(str(tmp_path / "started"))
    yield marks
    for line in left(marks):
        with suppress(ProcessLookupError):
            os.kill(int(line.split()[0]), signal.SIGKILL)


def end_a_worker(ex: Executor, marks: Marks, kinds: tuple[str, ...], end: str) -> None:
    """Have a task start processes, and have its worker end."""
    future = ex.submit(start_and_end, marks, kinds, end)
    marks.wait_for("worker")
    assert marks.count("started") == len(kinds)
    if end == "force":
        assert ex.cancel(future, force=True)
        assert_cancelled(future)
        return
    if end == "SIGKILL":
        os.kill(int(marks.values("worker")[0]), signal.SIGKILL)
    assert isinstance(future.exception(LIMIT), polyexec.WorkerDied)


_ENDS = pytest.mark.parametrize("end", ["force", "SIGKILL", "exit"])


@_ENDS
@clause("F16")
def test_what_a_task_started_dies_with_its_worker(ex: Executor, started: Marks, end: str) -> None:
    """F16 However the worker ends, no process that its task has started outlives it, nor any that those started."""
    end_a_worker(ex, started, NEAR, end)
    eventually(lambda: not left(started), lambda: f"all have ended; left are {left(started)}")
    assert ex.submit(bodies.add, 1, 1).result(LIMIT) == 2


@_ENDS
@clause("F16")
def test_what_left_the_group_dies_with_the_worker(ex: Executor, started: Marks, end: str) -> None:
    """F16 A process group or a session of its own saves no process from that."""
    end_a_worker(ex, started, FAR, end)
    eventually(lambda: not left(started), lambda: f"all have ended; left are {left(started)}")


@clause("F16")
def test_what_others_started_lives_on(ex: Executor, started: Marks, tmp_path: Any) -> None:
    """F16 The end of a worker harms no process that a task on another worker has started."""
    if ex.resources().total.cpus < 2:
        pytest.skip("needs two workers")
    peers = Marks(str(tmp_path / "peers"))
    peer = ex.submit(start_and_end, peers, NEAR, "force")
    peers.wait_for("worker")
    end_a_worker(ex, started, NEAR, "SIGKILL")
    eventually(lambda: not left(started), lambda: f"all have ended; left are {left(started)}")
    assert len(left(peers)) == len(NEAR)
    assert ex.cancel(peer, force=True)
    assert_cancelled(peer)
    eventually(lambda: not left(peers), lambda: f"all have ended; left are {left(peers)}")


@_ENDS
@deviation("F16")
def test_what_stayed_in_the_group_dies_with_the_worker(ex: Executor, started: Marks, end: str) -> None:
    """F16 (declared) Processes that have stayed in the worker's process group die with it."""
    end_a_worker(ex, started, NEAR, end)
    eventually(lambda: not left(started), lambda: f"all have ended; left are {left(started)}")
    assert ex.submit(bodies.add, 1, 1).result(LIMIT) == 2


@deviation("F16")
def test_what_left_the_group_lives_on(ex: Executor, started: Marks) -> None:
    """F16 (declared) Those that have left it live on when the worker dies."""
    end_a_worker(ex, started, NEAR + FAR, "SIGKILL")
    eventually(lambda: len(left(started)) == len(FAR), lambda: f"left are {left(started)}")
    assert all(line.endswith(FAR) for line in left(started))

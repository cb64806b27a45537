"""What is told of workers that die by themselves, and what is done about those that keep dying."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import polyexec
from polyexec import memory_usage
from polyexec.testing import bodies
from polyexec.testing.tools import Gate, Marks, eventually
from polyexec_local import ProcessConfig, pool

LIMIT = 60.0


def crash_here(how: Callable[[], Any]) -> None:
    """Crash, some calls deep."""
    how()


def read_nothing() -> None:
    ctypes.string_at(0)


@pytest.mark.parametrize("how", [read_nothing, os.abort], ids=["segfault", "abort"])
@pytest.mark.parametrize("cpus", [1, 2], ids=["plain", "task"])
def test_a_crash_tells_where_it_was(how: Callable[[], Any], cpus: int) -> None:
    """The Python stack of the task is the cause of ``WorkerDied``, without what lies below the task."""
    with polyexec.connect(ProcessConfig(workers=2)) as ex:
        error = ex.options(cpus=cpus).submit(crash_here, how).exception(LIMIT)
        assert isinstance(error, polyexec.WorkerDied)
        assert error.cause == "a fault in native code"
        text = str(error.__cause__)
        assert isinstance(error.__cause__, polyexec.RemoteTraceback)
        assert f'"{__file__}", line ' in text
        assert "in crash_here" in text
        assert "polyexec_local" not in text
        assert "envelope" not in text


def test_a_crash_in_the_depth_of_a_recursion_is_told_in_part() -> None:
    def deep(level: int) -> Any:
        return deep(level - 1) if level else read_nothing()

    with polyexec.connect(ProcessConfig(workers=1)) as ex:
        text = str(ex.submit(deep, 300).exception(LIMIT).__cause__)
    assert "in read_nothing" in text
    assert "frames omitted" in text
    assert len(text) < 10_000


def test_an_actors_crash_is_told_too() -> None:
    class Fragile:
        def crash(self) -> None:
            crash_here(read_nothing)

    with polyexec.connect(ProcessConfig(workers=1)) as ex:
        error = ex.actor(Fragile).crash().exception(LIMIT)
    assert isinstance(error, polyexec.ActorDied)
    assert "in crash_here" in str(error.__cause__)


def test_other_deaths_have_no_stack() -> None:
    """What a forked child of the task wrote when it crashed is not told of the worker that was killed later."""

    def body() -> None:
        if (child := os.fork()) == 0:
            read_nothing()
        os.waitpid(child, 0)
        os.kill(os.getpid(), signal.SIGKILL)

    with polyexec.connect(ProcessConfig(workers=1)) as ex:
        error = ex.submit(body).exception(LIMIT)
    assert isinstance(error, polyexec.WorkerDied)
    assert error.signal == signal.SIGKILL
    assert error.__cause__ is None


def test_the_kernels_kill_is_told_as_such(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """F3 A worker that is killed when the kernel's count of such kills grows was out of memory."""
    counter = tmp_path / "kills"
    counter.touch()
    monkeypatch.setattr(memory_usage, "oom_kills", lambda: counter.stat().st_size)

    def body(counted: bool) -> None:
        if counted:
            counter.write_text("x")
        os.kill(os.getpid(), signal.SIGKILL)

    with polyexec.connect(ProcessConfig(workers=1)) as ex:
        causes = [ex.submit(body, counted).exception(LIMIT).cause for counted in (False, True, False)]
    assert ["out of memory: the kernel" in cause for cause in causes] == [False, True, False]


def lives(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


def numbers(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()]


def short_lived(path: Path) -> Callable[[], None]:
    """Make an initializer whose process works at first, and dies a moment later."""

    def initialize() -> None:
        with open(path, "a") as file:
            file.write(f"{os.getpid()}\n")
        threading.Timer(0.05, os._exit, (3,)).start()

    return initialize


def test_workers_that_die_when_idle_are_not_replaced_for_ever(tmp_path: Path) -> None:
    """F13 Idle workers are replaced, but not those that do nothing but die; a task that comes later starts one."""
    path = tmp_path / "starts"
    with polyexec.connect(ProcessConfig(workers=2, initializer=short_lived(path))) as ex:
        eventually(lambda: path.exists() and len(path.read_text().split()) > 4, "some workers have died", LIMIT)
        eventually(lambda: not any(map(lives, numbers(path))), "all workers have died", LIMIT)
        count = len(numbers(path))
        assert count < 40
        errors = [ex.submit(time.sleep, LIMIT).exception(LIMIT) for _ in range(3)]
        assert [type(error) for error in errors] == [polyexec.WorkerDied] * 3
        assert count < len(numbers(path)) < count + 20
        eventually(lambda: not any(map(lives, numbers(path))), "all workers have died", LIMIT)


def test_workers_are_replaced_when_idle_after_they_have_worked(tmp_path: Path) -> None:
    """F13 However often an idle worker is killed that had run a task, there are as many as before."""
    with polyexec.connect(ProcessConfig(workers=1)) as ex:
        for _ in range(12):
            os.kill(pid := ex.submit(os.getpid).result(LIMIT), signal.SIGKILL)
            eventually(lambda pid=pid: not lives(pid), "it has died", LIMIT)


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """Let this process open nothing more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_worker_that_cannot_be_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """F13 Without descriptors for a new worker the others do the work, one warning says so; later it is replaced."""
    gate = Gate(str(tmp_path / "gate"))
    marks = Marks(str(tmp_path / "marks"))
    with polyexec.connect(ProcessConfig(workers=2)) as ex:
        pair = [ex.submit(bodies.pid_at, marks, gate) for _ in range(2)]
        gate.open()
        pids = {future.result(LIMIT) for future in pair}
        assert len(pids) == 2
        with no_descriptors():
            os.kill(pid := pids.pop(), signal.SIGKILL)
            eventually(lambda: not lives(pid), "it has died", LIMIT)
            wide = ex.options(cpus=2).submit(os.getpid)
            futures = [ex.submit(os.getpid) for _ in range(20)]
            assert {future.result(LIMIT) for future in (wide, *futures)} == pids
        second = Gate(str(tmp_path / "second"))
        pair = [ex.submit(bodies.pid_at, marks, second) for _ in range(2)]
        marks.wait_for("start", 4)
        second.open()
        assert len({future.result(LIMIT) for future in pair}) == 2
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "cannot start a worker process" in warnings[0]
    assert "going on with 1" in warnings[0]


def test_calls_that_need_a_worker_that_cannot_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F14 What no worker can be had for is refused in the end, though others live: they may all wait for it."""

    def parent() -> Any:
        marks.add("start")
        gate.wait()
        return polyexec.current().submit(os.getpid).exception(LIMIT)

    monkeypatch.setattr(pool, "_PATIENCE", (0.1, 0.5))
    gate, marks = Gate(str(tmp_path / "gate")), Marks(str(tmp_path / "marks"))
    with polyexec.connect(ProcessConfig(workers=1)) as ex:
        future = ex.submit(parent)
        marks.wait_for("start", 1)
        gate.open()
        with no_descriptors():
            error = future.exception(LIMIT)
        assert isinstance(error, polyexec.BackendBroken)
        assert "Too many open files" in str(error)


def test_a_short_want_of_descriptors_costs_nothing() -> None:
    """F13 The only worker dies while no other can be started: a task that comes meanwhile runs a little later."""
    with polyexec.connect(ProcessConfig(workers=1)) as ex:
        pid = ex.submit(os.getpid).result(LIMIT)
        with no_descriptors():
            os.kill(pid, signal.SIGKILL)
            eventually(lambda: not lives(pid), "it has died", LIMIT)
            future = ex.submit(os.getpid)
        assert future.result(LIMIT) != pid

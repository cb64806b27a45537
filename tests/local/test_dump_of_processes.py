"""Where everybody is, and what waits for what: ``dump`` on processes of this machine."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import polyexec
from polyexec.dump import Dump, TaskDump
from polyexec.testing.tools import Gate, Marks, eventually

LIMIT = 60.0


@pytest.fixture
def ex() -> Iterator[polyexec.Executor]:
    executor = polyexec.connect("process?workers=2")
    try:
        yield executor
    finally:
        executor.close(cancel_pending=True)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    made = Gate(str(tmp_path / "gate"))
    yield made
    made.open()


@pytest.fixture
def marks(tmp_path: Path) -> Marks:
    return Marks(str(tmp_path / "marks"))


def hold(gate: Gate, marks: Marks, secret: str = "") -> int:
    marks.add(f"pid {os.getpid()}")
    gate.wait(LIMIT)
    return os.getpid()


def pass_on(value: Any) -> Any:
    return value


def nested(gate: Gate, marks: Marks) -> int:
    return polyexec.current().submit(hold, gate, marks).result()


def count_in_c(marks: Marks) -> None:
    marks.add(f"pid {os.getpid()}")
    # For half an hour, without ever giving up the interpreter's lock.
    sum(range(10**11))


def items(count: int) -> Iterator[int]:
    yield from range(count)


def look() -> Dump:
    return polyexec.current().dump(timeout=LIMIT)


class Server:
    def hold(self, gate: Gate, marks: Marks) -> None:
        hold(gate, marks)

    def nothing(self) -> None:
        return


def pid_in(marks: Marks) -> int:
    marks.wait_for("pid ")
    return int(marks.values("pid ")[-1])


def dump(ex: polyexec.Executor) -> Dump:
    return ex.dump(timeout=LIMIT)


def task(found: Dump, name: str, state: str | None = None) -> TaskDump:
    return next(one for one in found.tasks if one.name == name and state in (None, one.state))


def test_says_of_each_task_where_it_is_and_what_it_waits_for(ex: polyexec.Executor, gate: Gate, marks: Marks) -> None:
    running = ex.options(name="running", cpus=2).submit(hold, gate, marks)
    ex_waiting = ex.options(name="dependent").submit(pass_on, running)
    plain = [ex.submit(pass_on, number) for number in range(3)]
    pid = pid_in(marks)
    found = dump(ex)
    assert not found.unknown
    assert (found.status, found.host, found.pid) == ("open", os.uname().nodename, os.getpid())
    assert found.counts == {"running": 1, "waiting": 1, "ready": 3}
    assert task(found, "running") == TaskDump(
        id=task(found, "running").id,
        name="running",
        state="running",
        attempt=1,
        seconds=task(found, "running").seconds,
        node="local",
        pid=pid,
    )
    assert 0 < (task(found, "running").seconds or 0) < LIMIT
    assert task(found, "dependent").waits_for == ("running #1 (running)",)
    assert task(found, "pass_on").waits_for == ("1 cpu on local: 0 of 2 cpus left; held by running #1",)
    assert found.nodes[0].holders == ("running #1 holds 2 cpus",)
    gate.open()
    assert [future.result(LIMIT) for future in (ex_waiting, *plain)] == [pid, 0, 1, 2]


def test_says_of_a_plain_call_since_when_it_runs_and_where(ex: polyexec.Executor, gate: Gate, marks: Marks) -> None:
    future = ex.submit(hold, gate, marks)
    pid = pid_in(marks)
    found = task(dump(ex), "hold")
    assert (found.state, found.pid, found.node, found.attempt) == ("running", pid, "local", 1)
    assert found.seconds is not None
    gate.open()
    assert future.result(LIMIT) == pid


def test_says_what_a_task_waits_for_that_waits(ex: polyexec.Executor, gate: Gate, marks: Marks) -> None:
    future = ex.submit(nested, gate, marks)
    pid = pid_in(marks)
    found = dump(ex)
    outer = task(found, "nested")
    assert outer.state == "blocked"
    assert outer.waits_for == (f"hold #{task(found, 'hold').id >> 20} (running)",)
    assert outer.pid not in (None, pid)
    assert task(found, "hold").pid == pid
    assert task(found, "hold").parent == outer.id
    gate.open()
    assert future.result(LIMIT) == pid


def test_says_who_holds_what_an_actor_and_a_stream_wait_for(ex: polyexec.Executor, gate: Gate, marks: Marks) -> None:
    server = ex.actor(Server)
    calls = [server.hold(gate, marks), server.nothing()]
    stream = ex.options(buffer=2, name="numbers").stream(items, 10)
    pid = pid_in(marks)
    eventually(lambda: any(one.paused for one in dump(ex).streams), "the stream is paused")
    found = dump(ex)
    assert found.actors[0].running == (f"Server.hold #{calls[0]._entry.id >> 20}",)
    assert found.actors[0].queued == 1
    assert task(found, "Server.hold").pid == pid
    assert task(found, "Server.nothing").state == "ready"
    assert "its turn at actor Server #1, which runs Server.hold" in task(found, "Server.nothing").waits_for[0]
    (numbers,) = found.streams
    assert (numbers.unread, numbers.buffer, numbers.reader) == (2, 2, "the driver")
    assert task(found, "numbers").state == "paused"
    assert "its reader, the driver, to take some of the 2 items" in task(found, "numbers").waits_for[0]
    stream.close()
    gate.open()
    for call in calls:
        call.result(LIMIT)


def test_says_who_waits_for_a_reservation(ex: polyexec.Executor) -> None:
    with ex.reserve([{"cpus": 2}]):
        thread = threading.Thread(target=lambda: ex.reserve([{"cpus": 1}]).close(), name="second")
        thread.start()
        eventually(lambda: len(dump(ex).reservations) == 2, "the second one waits")
        held, waiting = dump(ex).reservations
        assert (held.held, held.bundles, held.owner) == (True, ("2 cpus on local",), "the driver")
        assert (waiting.held, waiting.bundles) == (False, ("1 cpu",))
        future = ex.submit(pass_on, 1)
        assert "held by reservation #" in task(dump(ex), "pass_on").waits_for[0]
    thread.join(LIMIT)
    assert future.result(LIMIT) == 1


def test_says_which_thread_waits_for_what(ex: polyexec.Executor, gate: Gate, marks: Marks) -> None:
    futures = [ex.options(name=name, cpus=1).submit(hold, gate, marks) for name in ("first", "second")]
    waits = {
        "result": futures[0].result,
        "wait": lambda: ex.wait(futures, num_returns=1),
        "completed": lambda: list(ex.as_completed(futures)),
    }
    threads = [threading.Thread(target=wait, name=name) for name, wait in waits.items()]
    for thread in threads:
        thread.start()

    def words() -> dict[str, str]:
        return {one.name: one.waits_for for one in dump(ex).threads if one.name in waits}

    wanted = {
        "result": "the result of first #1",
        "wait": "1 of 2: the results of first #1, second #2",
        "completed": "the results of first #1, second #2",
    }
    eventually(lambda: words() == wanted, lambda: f"{words()}")
    gate.open()
    for thread in threads:
        thread.join(LIMIT)


def test_shows_the_stack_of_a_worker_that_is_in_c_code_and_keeps_its_lock(ex: polyexec.Executor, marks: Marks) -> None:
    future = ex.submit(count_in_c, marks)
    pid = pid_in(marks)
    (worker,) = (one for one in dump(ex).workers if one.pid == pid)
    assert worker.runs == ("count_in_c #1",)
    assert worker.status == ""
    assert any(" in count_in_c" in frame for frame in worker.threads[0].frames)
    ex.cancel(future, force=True)


def test_says_of_a_worker_that_was_stopped_that_it_was(ex: polyexec.Executor, gate: Gate, marks: Marks) -> None:
    future = ex.submit(hold, gate, marks)
    pid = pid_in(marks)
    os.kill(pid, signal.SIGSTOP)
    try:
        eventually(lambda: "T" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2], "it has stopped")
        (worker,) = (one for one in ex.dump(timeout=LIMIT).workers if one.pid == pid)
        assert "stopped by a signal" in worker.status
        assert worker.threads == ()
    finally:
        os.kill(pid, signal.SIGCONT)
    gate.open()
    assert future.result(LIMIT) == pid


def test_gives_stacks_if_the_loop_is_stuck(ex: polyexec.Executor, gate: Gate, marks: Marks) -> None:
    ex.submit(hold, gate, marks)
    pid = pid_in(marks)
    stuck, entered = threading.Event(), threading.Event()

    def never_ends() -> None:
        entered.set()
        stuck.wait(LIMIT)

    ex._session._runtime.post(never_ends)  # type: ignore[attr-defined]
    assert entered.wait(LIMIT)
    try:
        found = ex.dump(timeout=1.0)
    finally:
        stuck.set()
    assert "loop has not answered" in found.unknown[0]
    assert found.tasks == ()
    assert any("never_ends" in frame for thread in found.threads for frame in thread.frames)
    (worker,) = (one for one in found.workers if one.pid == pid)
    assert any(" in hold" in frame for thread in worker.threads for frame in thread.frames)
    assert "TASKS: not known" in str(found)


def test_works_in_a_task(ex: polyexec.Executor) -> None:
    found = ex.submit(look).result(LIMIT)
    assert found.pid != os.getpid()
    assert task(found, "look").state == "running"
    assert any(" in look" in frame for thread in found.threads for frame in thread.frames)
    assert found.status == "open"


def test_works_after_close_and_leaves_nothing() -> None:
    with polyexec.connect("process?workers=1") as ex:
        ex.submit(pass_on, 1).result(LIMIT)
        before = threading.active_count(), len(os.listdir("/proc/self/fd"))
        dump(ex)
        eventually(lambda: (threading.active_count(), len(os.listdir("/proc/self/fd"))) == before, "nothing is left")
    found = dump(ex)
    assert (found.status, found.tasks, found.workers, found.unknown) == ("closed", (), (), ())
    assert found.threads


def test_shows_no_value_and_fits_into_a_terminal(ex: polyexec.Executor, gate: Gate, marks: Marks) -> None:
    ex.options(name="a-name-that-is-very-long" * 3, env={"TOKEN": "hunter2"}).submit(hold, gate, marks, "hunter2")
    pid_in(marks)
    found = dump(ex)
    assert "hunter2" not in str(found) + repr(found)
    assert max(len(line) for line in str(found).splitlines() if "a-name" not in line) <= 80
    gate.open()


def test_a_worker_runs_on_unharmed_however_often_it_is_asked(ex: polyexec.Executor, marks: Marks, gate: Gate) -> None:
    future = ex.submit(hold, gate, marks)
    pid = pid_in(marks)
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        assert next(one for one in dump(ex).workers if one.pid == pid).threads
    gate.open()
    assert future.result(LIMIT) == pid

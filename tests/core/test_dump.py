"""``dump`` where a backend says little, or nothing, and where tasks run in threads of the driver."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator, Sequence

import pytest

import polyexec
from polyexec import stacks
from polyexec.dump import Dump, number
from polyexec.spi import WorkerState
from polyexec.testing.tools import eventually

from .gates import LIMIT, Gate, pass_through
from .stub import StubBackend, StubConfig, connect_stub


@contextlib.contextmanager
def stubbed() -> Iterator[tuple[polyexec.Executor, StubBackend]]:
    ex, backend = connect_stub(StubConfig())
    try:
        yield ex, backend
    finally:
        ex.close(cancel_pending=True)


def dump(ex: polyexec.Executor) -> Dump:
    return ex.dump(timeout=LIMIT)


def test_a_backend_need_not_know_its_workers() -> None:
    with stubbed() as (ex, backend):
        future = ex.options(name="one").submit(abs, -1)
        call = backend.take()
        found = dump(ex)
        assert (found.unknown, found.workers) == ((), ())
        assert [(task.name, task.state, task.pid) for task in found.tasks] == [("one", "running", None)]
        backend.finish(call, 1)
        assert future.result(LIMIT) == 1


def test_a_backend_that_hangs_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = threading.Event()

    def inspect(self: StubBackend, timeout: float) -> Sequence[WorkerState]:
        ends.wait(LIMIT)
        return ()

    monkeypatch.setattr(StubBackend, "inspect", inspect)
    with stubbed() as (ex, _):
        found = ex.dump(timeout=0.5)
        ends.set()
    assert found.unknown == ("the backend has not looked at its workers within 0.5 s",)
    assert found.status == "open"


def test_a_backend_that_fails_is_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    def inspect(self: StubBackend, timeout: float) -> Sequence[WorkerState]:
        raise OSError("no more descriptors")

    monkeypatch.setattr(StubBackend, "inspect", inspect)
    with stubbed() as (ex, _):
        (said,) = dump(ex).unknown
    assert said == "the backend could not look at its workers: OSError: no more descriptors"


def test_shows_what_a_backend_says(monkeypatch: pytest.MonkeyPatch) -> None:
    def inspect(self: StubBackend, timeout: float) -> Sequence[WorkerState]:
        return [WorkerState("node", 4711, (call.id,), status="it sulks", threads=thread)]

    thread = (stacks.ThreadStack(1, "main", ("/somewhere/there.py:12 in compute",)),)
    with stubbed() as (ex, backend):
        future = ex.options(name="one").submit(abs, -1)
        call = backend.take()
        monkeypatch.setattr(StubBackend, "inspect", inspect)
        found = dump(ex)
        assert found.tasks[0].pid == 4711
        (worker,) = found.workers
        assert (worker.runs, worker.status, worker.threads) == (
            (f"one {number(found.tasks[0].id)}",),
            "it sulks",
            thread,
        )
        assert "process 4711 on node: runs one #1; it sulks" in str(found)
        assert "there.py:12 in compute" in str(found)
        backend.finish(call, 1)
        assert future.result(LIMIT) == 1


def test_a_lost_engine_shows() -> None:
    with stubbed() as (ex, backend):
        backend.host.broken(polyexec.BackendLost("gone"))
        eventually(lambda: dump(ex).status == "failed", "it has failed")


def test_names_the_thread_that_runs_a_task(ex: polyexec.Executor, gate: Gate) -> None:
    future = ex.submit(pass_through, gate)
    gate.wait()
    found = dump(ex)
    (thread,) = (one for one in found.threads if one.runs)
    assert thread.runs == "pass_through #1"
    assert thread.name.startswith("polyexec-worker")
    assert any(" in pass_through" in frame for frame in thread.frames)
    gate.open()
    future.result(LIMIT)


def test_in_a_task_of_the_driver_itself(ex: polyexec.Executor) -> None:
    found = ex.submit(lambda: polyexec.current().dump(timeout=LIMIT)).result(LIMIT)
    assert found.counts["running"] == 1
    with polyexec.connect("serial") as inline:
        found = inline.submit(lambda: polyexec.current().dump(timeout=LIMIT)).result(LIMIT)
    assert found.counts["running"] == 1
    assert found.unknown == ()


def test_a_finaliser_in_the_loop_may_ask() -> None:
    found: list[Dump] = []
    with stubbed() as (ex, _):
        done = threading.Event()

        def ask() -> None:
            found.append(ex.dump(timeout=LIMIT))
            done.set()

        ex._session._runtime.post(ask)  # type: ignore[attr-defined]
        assert done.wait(LIMIT)
    assert found[0].unknown == ()


@pytest.mark.parametrize("timeout", ["soon", None])
def test_a_bad_timeout_is_refused(ex: polyexec.Executor, timeout: object) -> None:
    with pytest.raises(polyexec.SpecificationError, match="timeout= takes a number"):
        ex.dump(timeout=timeout)  # type: ignore[arg-type]


def test_reads_what_faulthandler_writes() -> None:
    text = (
        "Thread 0x00007f01 (most recent call first):\n"
        '  File "/a b/c.py", line 3 in inner\n'
        "  ...\n"
        "\n"
        "Current thread 0x00007f02 [python] (most recent call first):\n"
        '  File "<string>", line ??? in <module>\n'
        "\n"
        "Thread 0x00007f03 (most recent call first):\n"
        "  <no Python frame>\n"
    )
    assert [(thread.ident, thread.frames) for thread in stacks.parse(text)] == [
        (0x7F02, ("<string>:??? in <module>",)),
        (0x7F01, ("/a b/c.py:3 in inner",)),
        (0x7F03, ()),
    ]


def test_a_process_that_offers_nothing_is_not_touched() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert stacks.ask([process.pid, 2**22 - 1], LIMIT) == {
            process.pid: stacks.ProcessStacks("it does not offer its stacks"),
            2**22 - 1: stacks.ProcessStacks("it has ended"),
        }
        process.communicate(b"\n", LIMIT)
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()


STUCK = """
    import ctypes, os, signal, sys, threading
    import polyexec

    ex = polyexec.connect("threads?workers=1")
    ex.options(name="never-ends").submit(lambda: threading.Event().wait())
    print("ready", flush=True)
    # Comes back from no signal, and lets other threads run meanwhile.
    mutex = ctypes.create_string_buffer(64)
    ctypes.CDLL(None).pthread_mutex_lock(mutex)
    ctypes.CDLL(None).pthread_mutex_lock(mutex)
"""


def test_a_signal_brings_a_dump_even_if_the_main_thread_is_in_c_code() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(STUCK)],
        env=os.environ | {"POLYEXEC_DUMP_SIGNAL": "usr1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGUSR1)
        said = ""
        while "THREADS OF PROCESS" not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
        assert "never-ends: running for" in said
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("name", ["nonsense", "KILL"])
def test_a_bad_signal_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("POLYEXEC_DUMP_SIGNAL", name)
    with pytest.raises(polyexec.SpecificationError, match="POLYEXEC_DUMP_SIGNAL"):
        polyexec.connect("serial")

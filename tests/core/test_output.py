"""The streams that stand for those of a worker's process."""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from polyexec import output
from polyexec.errors import ResourceExhausted
from polyexec.output import TaskStream
from polyexec.remote import RemoteSession
from polyexec.session import current_session
from polyexec.stored import Stored
from polyexec.tidings import Tidings

from .gates import LIMIT


class Uplink:
    """Keeps what is told, and counts what is asked."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.asked = 0
        self.full = False
        self._tidings = Tidings()
        self._tidings.listen("output", lambda call_id, buffers, *fields: self.heard.append(fields))

    def request(self, message: Stored) -> tuple[bytes, Sequence[Stored]]:
        self.asked += 1
        return b"\x80\x04\x8c\x02ok\x94N\x86\x94.", ()

    def tell(self, message: Stored) -> None:
        if self.full:
            raise ResourceExhausted("shared-memory", "none")
        self._tidings.take(1, message)

    def lines(self) -> list[tuple[int, str]]:
        return [line for *_, lines in self.heard for line in lines]


@pytest.fixture
def uplink(monkeypatch: pytest.MonkeyPatch) -> Iterator[Uplink]:
    # No thread sends by itself, so that a test sees what it has caused.
    monkeypatch.setattr(output, "_sender", output._Sender())
    monkeypatch.setattr(output, "_unwritten", [0])
    output._forwarding.add("executor")
    yield Uplink()
    output._forwarding.clear()


@pytest.fixture
def task(uplink: Uplink) -> Iterator[RemoteSession]:
    session = RemoteSession("executor", uplink, inline=False, name="task", task_id=7)
    token = current_session.set(session)
    yield session
    current_session.reset(token)


def stream() -> tuple[TaskStream, io.TextIOWrapper]:
    original = io.TextIOWrapper(io.BytesIO(), encoding="latin-1", write_through=True)
    return TaskStream(0, original), original


def written(original: io.TextIOWrapper) -> bytes:
    buffer = original.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue()


def in_thread(function: Callable[[], object]) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join(LIMIT)


def test_what_no_task_writes_goes_where_it_went(uplink: Uplink) -> None:
    ours, original = stream()
    print("text", file=ours)
    ours.buffer.write(b"bytes\n")
    ours.buffer.flush()
    assert written(original) == b"text\nbytes\n"
    assert uplink.heard == []


def test_what_a_task_of_another_executor_writes_goes_where_it_went(task: RemoteSession, uplink: Uplink) -> None:
    output._forwarding.clear()
    ours, original = stream()
    print("text", file=ours)
    assert (written(original), uplink.heard) == (b"text\n", [])


def test_a_session_that_is_no_tasks_own_prints_nothing(uplink: Uplink) -> None:
    token = current_session.set(RemoteSession("executor", uplink, inline=False, name=None))
    ours, original = stream()
    print("text", file=ours)
    current_session.reset(token)
    assert written(original) == b"text\n"


def test_lines_are_told_with_their_task(task: RemoteSession, uplink: Uplink) -> None:
    ours, original = stream()
    other = TaskStream(1, None)
    print("one", "two", file=ours)
    print("error", file=other)
    print("rest", end="", file=ours)
    task.finish_output()
    assert [fields[:3] for fields in uplink.heard] == [(7, "task", os.getpid())]
    assert uplink.lines() == [(0, "one two"), (1, "error"), (0, "rest")]
    assert written(original) == b""


def test_lines_of_threads_do_not_mix(task: RemoteSession, uplink: Uplink) -> None:
    ours, _ = stream()
    ours.write("begun ")

    def other() -> None:
        token = current_session.set(task)
        print("of another", file=ours)
        ours.write("left by another")
        current_session.reset(token)

    in_thread(other)
    print("ended", file=ours)
    task.finish_output()
    assert uplink.lines() == [(0, "of another"), (0, "begun ended"), (0, "left by another")]


def test_the_sender_takes_whole_lines_meanwhile(task: RemoteSession, uplink: Uplink) -> None:
    output._sender.start()
    ours, _ = stream()
    heard = threading.Event()
    uplink._tidings.listen("output", lambda call_id, buffers, *fields: (uplink.heard.append(fields), heard.set()))
    ours.write("whole\npart")
    assert heard.wait(LIMIT)
    assert uplink.lines() == [(0, "whole")]


def test_large_outputs_are_told_in_parts(task: RemoteSession, uplink: Uplink) -> None:
    ours, _ = stream()
    for _ in range(10):
        print("x" * 20_000, file=ours)
    task.finish_output()
    assert len(uplink.lines()) == 10
    assert 2 <= len(uplink.heard) < 10


def test_whoever_prints_too_much_waits(task: RemoteSession, uplink: Uplink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "CREDIT", 1000)
    ours, _ = stream()
    print("x" * 900, file=ours)
    assert uplink.asked == 0
    print("x" * 200, file=ours)
    assert uplink.asked == 1
    print("x" * 900, file=ours)
    assert uplink.asked == 1


def test_what_finds_no_room_harms_no_task(task: RemoteSession, uplink: Uplink) -> None:
    ours, _ = stream()
    print("lost", file=ours)
    uplink.full = True
    task.finish_output()
    uplink.full = False
    print("told", file=ours)
    task.finish_output()
    assert uplink.lines() == [(0, "told")]


def test_bytes_are_part_of_the_text(task: RemoteSession, uplink: Uplink) -> None:
    ours, _ = stream()
    assert ours.buffer.write(bytearray(b"latin \xe4 ")) == 8
    ours.buffer.writelines([b"and", b" more\n"])
    print("text", file=ours)
    task.finish_output()
    assert uplink.lines() == [(0, "latin \xe4 and more"), (0, "text")]


def test_it_is_a_stream(task: RemoteSession) -> None:
    ours, original = stream()
    assert (ours.isatty(), ours.readable(), ours.writable(), ours.closed) == (False, False, True, False)
    assert (ours.encoding, ours.name, ours.mode, ours.line_buffering) == ("latin-1", "<stdout>", "w", True)
    assert (TaskStream(1, None).encoding, TaskStream(1, None).name) == ("utf-8", "<stderr>")
    ours.reconfigure(line_buffering=True, encoding="ascii")
    ours.close()
    print("still open", file=ours)
    with pytest.raises(TypeError, match="must be str, not bytes"):
        ours.write(b"bytes")  # type: ignore[arg-type]
    with pytest.raises(io.UnsupportedOperation):
        TaskStream(0, None).fileno()
    original.close()
    ours.flush()


def test_a_forked_process_writes_by_itself(task: RemoteSession) -> None:
    reader, writer = os.pipe()
    with open(writer, "w", encoding="utf-8") as original:
        ours = TaskStream(0, original)
        ours.write("of the task ")
        child = os.fork()
        if child == 0:
            print("of the child", file=ours, flush=True)
            os._exit(0)
        os.waitpid(child, 0)
    with open(reader, encoding="utf-8") as file:
        assert file.read() == "of the child\n"


def test_installing_replaces_streams_once(monkeypatch: pytest.MonkeyPatch, uplink: Uplink) -> None:
    output._forwarding.clear()
    original = io.StringIO()
    monkeypatch.setattr(sys, "stdout", original)
    monkeypatch.setattr(sys, "stderr", None)
    handler = logging.StreamHandler(original)
    logging.getLogger().addHandler(handler)
    try:
        output.install("one")
        ours = sys.stdout
        output.install("two")
        assert sys.stdout is ours is handler.stream
    finally:
        logging.getLogger().removeHandler(handler)
    assert isinstance(sys.stdout, TaskStream)
    assert isinstance(sys.stderr, TaskStream)
    assert output._forwarding == {"one", "two"}
    print("nobody sees this", file=sys.stderr)
    print("outside of tasks")
    assert original.getvalue() == "outside of tasks\n"

"""Chapter D: what tasks print and log."""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import pytest

import polyexec
from polyexec import Executor
from polyexec.testing import bodies
from polyexec.testing.drivers import Driver
from polyexec.testing.executors import Executors
from polyexec.testing.helpers import LIMIT, error_of, require, require_processes
from polyexec.testing.marks import alone, clause, deviation
from polyexec.testing.target import Target
from polyexec.testing.tools import Gate, Marks, eventually

_MARKED = re.compile(r"\((?P<name>\S+) pid=(?P<pid>\d+)(, host=\S+)?\) (?P<text>.*)")


@attrs.frozen
class Said:
    """A line as the driver shows it."""

    name: str
    pid: int
    text: str


def said(output: str) -> list[Said]:
    """Read lines, each of which must bear a mark."""
    found = []
    for line in output.split("\n")[:-1]:
        match = _MARKED.fullmatch(line)
        assert match is not None, f"no mark: {line[:200]!r}"
        found.append(Said(match["name"], int(match["pid"]), match["text"]))
    return found


def texts(output: str) -> list[str]:
    """Give what stands behind the marks."""
    return [line.text for line in said(output)]


def speak(*lines: str, stream: str = "stdout") -> int:
    """Print lines, and give the process id."""
    for line in lines:
        print(line, file=getattr(sys, stream))
    return os.getpid()


@clause("D2")
def test_what_a_task_prints_bears_its_mark(ex: Executor, capsys: pytest.CaptureFixture[str]) -> None:
    """D2 Lines come on the stream on which the task printed them, in order, with its name and process id."""
    pid = ex.submit(speak, "one", "", "two äöü \u2028 三 \N{SNAKE}").result(LIMIT)
    errors = ex.options(name="renamed").submit(speak, "three", stream="stderr").result(LIMIT)
    captured = capsys.readouterr()
    expected = [Said("speak", pid, text) for text in ("one", "", "two äöü \u2028 三 \N{SNAKE}")]
    assert said(captured.out) == expected
    assert said(captured.err) == [Said("renamed", errors, "three")]


@clause("D2")
def test_what_a_task_logs_reaches_the_driver(ex: Executor, capsys: pytest.CaptureFixture[str]) -> None:
    """D2 Log records, with or without handlers that the task makes, and warnings reach the driver as well."""

    def body() -> None:
        logging.getLogger("polyexec.testing.task").warning("without a handler")
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
        logger = logging.getLogger("polyexec.testing.own")
        logger.propagate = False
        logger.addHandler(handler)
        try:
            logger.error("by a handler")
        finally:
            logger.removeHandler(handler)
        warnings.simplefilter("always")
        warnings.warn("a warning", stacklevel=1)

    ex.submit(body).result(LIMIT)
    found = texts(capsys.readouterr().err)
    assert found[:2] == ["without a handler", "ERROR by a handler"]
    assert any(line.endswith("UserWarning: a warning") for line in found)


@clause("D2")
def test_lines_are_made_whole(ex: Executor, capsys: pytest.CaptureFixture[str]) -> None:
    """D2 A line may be written in pieces, by bytes, anew after each carriage return, and without an end."""

    def body() -> None:
        for piece in "pieces":
            sys.stdout.write(piece)
            sys.stdout.flush()
        sys.stdout.write(" of a line\nthe next\nand")
        sys.stdout.writelines([" another\n", "ending so\r\n"])
        sys.stdout.buffer.write("bytes ä".encode()[:-1])
        sys.stdout.buffer.write("ä".encode()[1:] + b"\n")
        for percent in range(0, 101, 10):
            print(f"\r{percent} %", end="")
        print()
        print("without an end", end="")

    ex.submit(body).result(LIMIT)
    lines = ["pieces of a line", "the next", "and another", "ending so", "bytes ä", "100 %", "without an end"]
    assert texts(capsys.readouterr().out) == lines


@clause("D2")
def test_long_lines_stay_whole(ex: Executor, capsys: pytest.CaptureFixture[str]) -> None:
    """D2 A line of a megabyte stays one line."""

    def body() -> None:
        print("x" * (1 << 20))
        print("after it")

    ex.submit(body).result(LIMIT)
    assert [len(text) for text in texts(capsys.readouterr().out)] == [1 << 20, len("after it")]


@clause("D2")
def test_tasks_that_print_at_the_same_time(ex: Executor, marks: Marks, capsys: pytest.CaptureFixture[str]) -> None:
    """D2 Lines of tasks that run at the same time are not mixed, and each task's come in their order."""
    require(ex, cpus=2)

    def body(name: str) -> None:
        marks.add("start")
        marks.wait_for("start", 2)
        for number in range(300):
            print(name, end=" ")
            print(number)

    for future in [ex.options(name=name).submit(body, name) for name in ("left", "right")]:
        future.result(LIMIT)
    found = said(capsys.readouterr().out)
    for name in ("left", "right"):
        assert [line.text for line in found if line.name == name] == [f"{name} {number}" for number in range(300)]
    assert len(found) == 600


@clause("D2")
def test_threads_of_a_task_print_for_it(ex: Executor, capsys: pytest.CaptureFixture[str]) -> None:
    """D2 What the threads of a task print bears its mark; their lines are not mixed either."""

    def body() -> None:
        def count(name: str) -> None:
            for number in range(100):
                print(name, number)

        threads = [threading.Thread(target=count, args=(name,)) for name in ("one", "two")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    ex.options(name="threaded").submit(body).result(LIMIT)
    found = said(capsys.readouterr().out)
    assert {line.name for line in found} == {"threaded"}
    for name in ("one", "two"):
        assert [line.text for line in found if name in line.text] == [f"{name} {number}" for number in range(100)]


@clause("D2")
def test_nested_tasks_bear_their_own_marks(ex: Executor, capsys: pytest.CaptureFixture[str]) -> None:
    """D2 A task that waits for another prints under its own name before and after."""

    def body() -> None:
        print("before")
        polyexec.current().options(name="child").submit(speak, "child").result(LIMIT)
        print("after")

    ex.options(name="parent").submit(body).result(LIMIT)
    found = [(line.name, line.text) for line in said(capsys.readouterr().out)]
    assert sorted(found) == [("child", "child"), ("parent", "after"), ("parent", "before")]
    assert [text for name, text in found if name == "parent"] == ["before", "after"]


@clause("D2")
@pytest.mark.parametrize("error", [ValueError("failed"), SystemExit(3)])
def test_what_a_failing_task_has_printed(
    ex: Executor, error: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    """D2 What a task prints before it fails or exits is there when its error is."""

    def body() -> None:
        print("before the end")
        print("and without an end", end="")
        raise error

    assert error_of(ex.submit(body)) is not None
    assert texts(capsys.readouterr().out) == ["before the end", "and without an end"]


@clause("D2")
def test_lines_come_while_the_task_runs(
    ex: Executor, marks: Marks, gate: Gate, capsys: pytest.CaptureFixture[str], target: Target
) -> None:
    """D2 Whole lines come while the task runs, so that they are there if it dies."""
    require_processes(target)

    def body() -> None:
        print("alive")
        gate.wait()
        bodies.die(marks, "SIGKILL")

    future = ex.submit(body)
    output = ""

    def has_come() -> bool:
        nonlocal output
        output += capsys.readouterr().out
        return "alive" in output

    eventually(has_come, "the line", LIMIT)
    assert texts(output) == ["alive"]
    gate.open()
    assert isinstance(error_of(future), polyexec.WorkerDied)


@clause("D2")
def test_streams_of_a_task_are_streams(ex: Executor) -> None:
    """D2 They are no terminals, have an encoding, and the descriptor of the process for what the task starts."""

    def body() -> list[Any]:
        found: list[Any] = []
        for stream in (sys.stdout, sys.stderr):
            found += [stream.isatty(), stream.writable(), "".encode(stream.encoding), stream.fileno()]
        return found

    assert ex.submit(body).result(LIMIT) == [False, True, b"", 1, False, True, b"", 2]


class _Blocked:
    """A stream that takes nothing until it is told to; it is the driver's, and no task writes to it."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.free = threading.Event()
        self.texts: list[str] = []

    def write(self, text: str) -> int:
        self.free.wait(LIMIT)
        self.texts.append(text)
        return len(text)

    def flush(self) -> None:
        """Do nothing: it keeps no text back."""


@contextmanager
def _blocked(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Blocked]:
    stream = _Blocked()
    with monkeypatch.context() as context:
        context.setattr(sys, "stdout", stream)
        try:
            yield stream
        finally:
            stream.free.set()


def _flood(marks: Marks, mebibytes: int) -> None:
    try:
        for _ in range(mebibytes):
            print("x" * 1023, *["y" * 1023] * 1023, sep="\n")
            marks.add("mebibyte")
    finally:
        marks.add("finally")


@clause("D2")
def test_a_flood_waits_for_the_driver(ex: Executor, marks: Marks, monkeypatch: pytest.MonkeyPatch) -> None:
    """D2 A task that prints faster than the driver writes waits, can be cancelled, and holds back no other task."""
    require(ex, cpus=2)
    with _blocked(monkeypatch):
        flood = ex.submit(_flood, marks, 1 << 20)
        marks.wait_for("mebibyte", 3)
        quick = [ex.submit(bodies.add, number, 1) for number in range(20)]
        assert len(ex.wait(quick, timeout=LIMIT)[0]) == 20
        assert ex.cancel(flood)
        marks.wait_for("finally")
        assert marks.count("mebibyte") < 64
    assert flood.cancelled() or isinstance(error_of(flood), polyexec.TaskCancelled)


@clause("D2")
def test_a_flood_is_complete(ex: Executor, marks: Marks, monkeypatch: pytest.MonkeyPatch) -> None:
    """D2 Nothing of a flood is lost."""
    with _blocked(monkeypatch) as stream:
        flood = ex.submit(_flood, marks, 12)
        marks.wait_for("mebibyte", 3)
        stream.free.set()
        flood.result(LIMIT)
        eventually(lambda: sum(text.count("\n") for text in stream.texts) == 12 << 10, "all lines", LIMIT)


_PROGRAM = """
    import sys
    import polyexec

    def speak(*lines):
        for line in lines:
            print(line)

    with polyexec.connect(sys.argv[1]) as ex:
        print("first")
        ex.submit(speak, "second").result()
        print("third", flush=True)
        ex.submit(speak, "fourth", "fifth")
    print("sixth")
"""


@alone
@clause("D2")
def test_a_program_and_its_tasks_print_in_order(driver: Driver) -> None:
    """D2 A task's lines come before what its program says about the result, and all of them before ``close`` ends."""
    ended = driver.run(_PROGRAM)
    assert ended.code == 0, ended.errors
    marked = re.compile(r"\(speak pid=\d+\) ")
    lines = ended.output.splitlines()
    assert [marked.sub("", line) for line in lines] == ["first", "second", "third", "fourth", "fifth", "sixth"]
    assert [bool(marked.match(line)) for line in lines] == [False, True, False, True, True, False]


@alone
@clause("D2")
def test_it_can_be_turned_off(executors: Executors, capsys: pytest.CaptureFixture[str]) -> None:
    """D2 With ``log_to_driver=False`` nothing that tasks print comes to the driver's streams, nor does it harm them."""
    with executors.opened(workers=1, log_to_driver="0") as ex:
        assert ex.submit(speak, "quiet").result(LIMIT)
        assert ex.submit(speak, "quiet", stream="stderr").result(LIMIT)
    captured = capsys.readouterr()
    assert "quiet" not in captured.out + captured.err


@deviation("D2")
def test_what_tasks_in_this_process_print(ex: Executor, capsys: pytest.CaptureFixture[str]) -> None:
    """D2 (declared) Tasks print to the streams of the driver itself: lines are there at once, without a mark."""
    ex.submit(speak, "one", "two").result(LIMIT)
    ex.submit(speak, "three", stream="stderr").result(LIMIT)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("one\ntwo\n", "three\n")

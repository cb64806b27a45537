"""What tasks have printed, on the driver's streams."""

from __future__ import annotations

import io
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest

from polyexec import display
from polyexec.display import Display

from .gates import LIMIT

HOST = socket.gethostname()


@pytest.fixture
def shown() -> Iterator[Display]:
    found = Display()
    yield found
    found.stop(LIMIT)


def show(shown: Display, *lines: tuple[int, str], task: int = 1, name: str = "task", host: str = HOST) -> None:
    shown.show(1, (), task, name, 42, host, lines)


def test_each_line_is_marked(shown: Display, capsys: pytest.CaptureFixture[str]) -> None:
    show(shown, (0, "one\n\ntwo"), (1, "error"), (0, "three"))
    show(shown, (0, "four"), name="", host="elsewhere")
    shown.settle()
    captured = capsys.readouterr()
    marked = ["one", "", "two", "three"]
    assert captured.out.split("\n") == [
        *(f"(task pid=42) {text}" for text in marked),
        "(pid=42, host=elsewhere) four",
        "",
    ]
    assert captured.err == "(task pid=42) error\n"


def test_it_goes_to_the_streams_of_the_moment(shown: Display, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("one", "two"):
        stream = io.StringIO()
        monkeypatch.setattr(sys, "stdout", stream)
        show(shown, (0, text))
        shown.settle()
        assert stream.getvalue() == f"(task pid=42) {text}\n"
    monkeypatch.setattr(sys, "stdout", None)
    show(shown, (0, "lost"))
    shown.settle()


def test_it_owes_what_is_not_written(shown: Display, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stuck()
    monkeypatch.setattr(sys, "stdout", stream)
    for task in (1, 2, 1):
        show(shown, (0, "text"), task=task)
    assert set(shown.owed) == {1, 2}
    stream.free.set()
    shown.settle()
    assert not shown.owed


class Stuck(io.StringIO):
    """Takes nothing until it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.free = threading.Event()

    def write(self, text: str) -> int:
        self.free.wait(LIMIT)
        return super().write(text)


def test_nobody_waits_long_for_a_stream_that_takes_nothing(shown: Display, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "_PATIENCE", 0.01)
    stream = Stuck()
    monkeypatch.setattr(sys, "stdout", stream)
    show(shown, (0, "text"))
    shown.settle()
    monkeypatch.setattr(display, "_PATIENCE", LIMIT)
    # Once is enough as long as nothing is written.
    shown.settle()
    assert stream.getvalue() == ""
    stream.free.set()
    shown.settle()


def test_jobs_come_after_what_was_shown_before(shown: Display, monkeypatch: pytest.MonkeyPatch) -> None:
    stream, found, done = io.StringIO(), list[str](), threading.Event()
    monkeypatch.setattr(sys, "stdout", stream)
    show(shown, (0, "text"))
    shown.when_written(lambda: found.append(stream.getvalue()))
    shown.when_written(done.set)
    assert done.wait(LIMIT)
    assert found == ["(task pid=42) text\n"]


def test_all_is_written_before_it_stops(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Display()
    for number in range(1000):
        show(shown, (0, str(number)))
    shown.stop(None)
    assert capsys.readouterr().out.count("\n") == 1000
    Display().stop(None)


class Failing(io.StringIO):
    """Raises."""

    def write(self, text: str) -> int:
        raise OSError("its reader is gone")


def test_streams_that_fail_do_no_harm(shown: Display, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    for stream in (Failing(), closed):
        monkeypatch.setattr(sys, "stdout", stream)
        show(shown, (0, "lost"))
        shown.settle()
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", narrow)
    show(shown, (0, "ä \udc80"))
    shown.settle()
    assert narrow.buffer.getvalue() == b"(task pid=42) \\xe4 \\udc80\n"  # type: ignore[attr-defined]


def test_bars_of_tqdm_stand_aside(shown: Display, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)

    class Bars:
        _instances: tuple[Any, ...] = ()

        @staticmethod
        @contextmanager
        def external_write_mode(file: Any) -> Iterator[None]:
            file.write("<")
            yield
            file.write(">")

    module = ModuleType("tqdm")
    monkeypatch.setitem(sys.modules, "tqdm", module)
    expected = ""
    for ready in (False, True):
        # A module that is only half imported has nothing yet.
        if ready:
            module.tqdm = Bars  # type: ignore[attr-defined]
        show(shown, (0, "text"))
        shown.settle()
        expected += "(task pid=42) text\n"
    Bars._instances = (1,)
    show(shown, (0, "text"))
    shown.settle()
    assert stream.getvalue() == expected + "<(task pid=42) text\n>"

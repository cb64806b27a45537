"""Chapter M: maps from the inside, and what they show."""

from __future__ import annotations

import contextlib
import itertools
import os
import pty
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import polyexec
from polyexec import Executor
from polyexec.testing import bodies
from polyexec.testing.executors import idle
from polyexec.testing.helpers import LIMIT
from polyexec.testing.marks import clause
from polyexec.testing.target import Target
from polyexec.testing.tools import Marks, eventually

_CURSOR_HIDDEN, _CURSOR_SHOWN = "\x1b[?25l", "\x1b[?25h"


def _last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("map ")][-1]


@clause("M1")
def test_progress_in_lines(ex: Executor, capsys: pytest.CaptureFixture[str]) -> None:
    """M1 Where there is no terminal ``progress=True`` writes lines; the last one says how far the map came."""
    assert list(ex.map(bodies.add, range(7), range(9), progress=True)) == [2 * number for number in range(7)]
    assert _last_line(capsys).startswith("map add: 7/7 100% 00:")
    named = ex.options(name="score").map(abs, itertools.count(), progress=True)
    assert list(itertools.islice(named, 5)) == [0, 1, 2, 3, 4]
    named.close()
    assert _last_line(capsys).startswith("map score: 5 00:")


@clause("M1")
def test_progress_says_that_an_error_ended_it(ex: Executor, marks: Marks, capsys: pytest.CaptureFixture[str]) -> None:
    """M1 So it does when an error ends the map."""
    with pytest.raises(ValueError, match="item 5"):
        list(ex.map(bodies.fail_at, range(20), [5] * 20, [marks] * 20, progress=True))
    line = _last_line(capsys)
    assert line.startswith("map fail_at: 5/20 25% 00:")
    assert line.endswith("ended early")


@contextlib.contextmanager
def _terminal(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let standard error be a terminal; what is written there comes into a file."""
    master, slave = pty.openpty()

    def copy() -> None:
        with path.open("wb") as file, contextlib.suppress(OSError):
            while data := os.read(master, 4096):
                file.write(data)

    reader = threading.Thread(target=copy)
    reader.start()
    try:
        with open(slave, "w") as stream, monkeypatch.context() as changed:
            changed.setenv("TERM", "xterm")
            changed.setattr("sys.stderr", stream)
            yield
    finally:
        reader.join(LIMIT)
        os.close(master)


@clause("M1")
@pytest.mark.parametrize("ending", ["end", "error", "close"])
def test_progress_at_a_terminal(
    ex: Executor, marks: Marks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """M1 At a terminal ``progress=True`` draws a bar, which is closed however the map ends."""
    pytest.importorskip("rich")
    shown, culprit = tmp_path / "shown", 5 if ending == "error" else -1
    with _terminal(shown, monkeypatch):
        results = ex.map(bodies.fail_at, range(20), [culprit] * 20, [marks] * 20, progress=True)
        expected = pytest.raises(ValueError, match="item 5") if ending == "error" else contextlib.nullcontext()
        with expected:
            assert len(list(itertools.islice(results, 7 if ending == "close" else None))) >= 7
        results.close()
    text = shown.read_text()
    count = {"end": 20, "error": 5, "close": 7}[ending]
    assert f"{count}/20" in text
    assert text.rindex(_CURSOR_SHOWN) > text.rindex(_CURSOR_HIDDEN)
    for thread in threading.enumerate():
        if type(thread).__module__.startswith("rich"):
            # It has been told to end, which rich does not wait for.
            thread.join(LIMIT)
            assert not thread.is_alive()


@clause("M1")
def test_a_wish_that_is_none(ex: Executor) -> None:
    """M1 ``progress`` takes a truth value or a function, and says so at once."""
    for wish in (0.5, "yes"):
        with pytest.raises(polyexec.SpecificationError, match="progress"):
            ex.map(abs, [1], progress=wish)  # type: ignore[arg-type]
    assert list(ex.map(abs, [-1], progress=False)) == [1]


def sum_of_map(first: int, count: int) -> int:
    """Map over an endless iterable in a task."""
    results = polyexec.current().map(bodies.add, itertools.count(first), itertools.repeat(1), progress=True)
    total = int(sum(itertools.islice(results, count)))
    results.close()
    return total


@clause("M1")
def test_map_in_a_task(ex: Executor) -> None:
    """M1 A task maps as the caller does, over endless iterables too, while others do."""
    futures = [ex.submit(sum_of_map, first, 20) for first in (0, 100)]
    assert [future.result(LIMIT) for future in futures] == [sum(range(first + 1, first + 21)) for first in (0, 100)]
    eventually(lambda: idle(ex), "what is not needed has ended")


def fail_once(number: int, marks: Marks) -> int:
    """Fail when a number comes for the first time."""
    marks.add(f"item {number}.")
    if marks.count(f"item {number}.") == 1:
        raise ConnectionError(number)
    return number


@clause("M2")
def test_items_are_repeated_one_by_one(ex: Executor, marks: Marks) -> None:
    """M2 With ``retries`` each item runs again for itself, as if it had been submitted."""
    patient = ex.options(retries=1, retry_on=ConnectionError)
    assert list(patient.map(fail_once, range(6), [marks] * 6)) == list(range(6))
    assert sorted(marks.values("item")) == sorted(f"{number}." for number in range(6) for _ in range(2))


@clause("M3")
def test_an_error_as_it_comes(ex: Executor, marks: Marks) -> None:
    """M3 With ``ordered=False`` an error ends the iteration as well, also that over an endless iterable."""
    results: Any = ex.map(
        bodies.fail_at, itertools.count(), itertools.repeat(5), itertools.repeat(marks), ordered=False, buffer=8
    )
    found: list[int] = []
    with pytest.raises(ValueError, match="item 5"):
        found.extend(results)
    assert len(set(found)) == len(found)
    assert 5 not in found
    assert next(results, "over") == "over"
    eventually(lambda: idle(ex), "what is not needed has ended")


def beat_unless_first(number: int, marks: Marks) -> int:
    """Return 0, and beat for all other numbers."""
    if number:
        bodies.beat(marks)
    return number


@clause("M3")
def test_ctrl_c_ends_a_map(ex: Executor, marks: Marks, target: Target, capsys: pytest.CaptureFixture[str]) -> None:
    """M3 Ctrl-C while a result is waited for ends the map, cancels the rest, and its progress says so."""
    if target.capabilities.inline:
        pytest.skip("nothing is ever waited for")
    # So few that all are submitted before the first result comes: Ctrl-C may lose a task that is being submitted.
    results = ex.map(beat_unless_first, range(3), [marks] * 3, progress=True, chunk_size=1)
    assert next(results) == 0

    def interrupt() -> None:
        marks.wait_for("beat")
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)

    def wait() -> None:
        thread.start()
        next(results)

    # Where this runs in the background of a shell the signal is ignored.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            wait()
    finally:
        signal.signal(signal.SIGINT, handler)
    thread.join()
    results.close()
    assert _last_line(capsys).endswith("ended early")
    assert next(results, -1) == -1
    eventually(lambda: idle(ex), "what is not needed has ended")
    assert marks.count("start") == marks.count("end")

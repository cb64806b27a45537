from __future__ import annotations

import io
import itertools
import sys
from typing import Any

import pytest

from polyexec import progress
from polyexec.progress import length_of, report_for


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("iterables", "expected"),
    [
        ([range(5)], 5),
        ([range(5), [1, 2], "abc"], 2),
        ([iter(range(3))], 3),
        ([itertools.repeat(0, 4), range(9)], 4),
        ([range(5), itertools.count()], None),
        ([], None),
        ([(number for number in (1, 2))], None),
    ],
)
def test_the_length_of_iterables(iterables: list[Any], expected: int | None) -> None:
    """M1: known if all iterables tell theirs."""
    assert length_of(iterables) == expected


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the clock shows, to be changed by the test."""
    shown = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: shown[0])
    return shown


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_lines_are_few(capsys: pytest.CaptureFixture[str], seconds: list[float]) -> None:
    """M1: at most one a second, one for each tenth, and pauses between others that grow."""
    report = report_for(True, "score", 1000, at_terminal=False)
    assert report is not None
    report.open()
    for count in range(1, 1001):
        seconds[0] += 1 / 64
        report.told(count)
    report.close()
    lines = lines_of(capsys)
    assert lines[0] == "map score: 64/1000 6% 00:01"
    assert [line.split()[3] for line in lines[2:-1]] == [f"{tenth}0%" for tenth in range(2, 11)]
    assert lines[-1] == "map score: 1000/1000 100% 00:15"


def test_lines_of_a_slow_map(capsys: pytest.CaptureFixture[str], seconds: list[float]) -> None:
    """M1: they come less and less often, but at least every half minute."""
    report = report_for(True, "score", None, at_terminal=False)
    assert report is not None
    report.open()
    for count in range(1, 961):
        seconds[0] += 1 / 8
        report.told(count)
    report.close()
    times = [line.split()[-1] for line in lines_of(capsys)]
    assert times == ["00:01", "00:03", "00:07", "00:15", "00:31", "01:01", "01:31", "02:00"]


def test_a_terminal_without_rich_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """M1: a program need not be changed for want of a bar."""
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    monkeypatch.setattr(sys, "stderr", Terminal())
    report = report_for(True, "score", 3, at_terminal=True)
    assert isinstance(report, progress._Lines)


def test_a_task_draws_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """M1: the terminal is the caller's."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert isinstance(report_for(True, "score", 3, at_terminal=False), progress._Lines)


def test_bars_share_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """M1: each is a row of one display, which goes with the last."""
    pytest.importorskip("rich")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    first, second = (report_for(True, name, 3, at_terminal=True) for name in ("first", "second"))
    assert first is not None
    assert second is not None
    first.open()
    second.open()
    second.told(2)
    first.close()
    assert len(progress._rows) == 1
    second.close()
    assert not progress._rows
    assert "2/3" in terminal.getvalue()
    assert sys.stderr is terminal

"""Lines that are written in pieces."""

from __future__ import annotations

import random

import pytest

from polyexec import lines
from polyexec.lines import Line


@pytest.mark.parametrize(
    ("texts", "complete", "rest"),
    [
        (["one\n"], ["one"], ""),
        (["o", "ne", "\n"], ["one"], ""),
        (["one\ntwo\nthr", "ee"], ["one", "two"], "three"),
        (["\n\n", "x"], ["", ""], "x"),
        (["one\r\n", "two\r", "\n"], ["one", "two"], ""),
        (["1 %\r", "2 %\r", "3 %\r"], [], "3 %"),
        (["\r1 %", "\r2 %", "\n"], ["2 %"], ""),
        (["1 %\r2 %\nnext\r"], ["2 %"], "next"),
        (["50 %\r", "done\n"], ["done"], ""),
        ([""], [], ""),
    ],
)
def test_lines_and_what_is_left(texts: list[str], complete: list[str], rest: str) -> None:
    line = Line()
    assert [found for text in texts for found in line.add(text)] == complete
    assert line.end() == rest
    assert line.end() == ""


def test_any_cuts_give_the_same_lines() -> None:
    dice = random.Random(7)
    for _ in range(300):
        whole = "".join(dice.choice("ab \u2028\n") for _ in range(40))
        line, found, left = Line(), list[str](), whole
        while left:
            size = dice.randint(1, 6)
            found += line.add(left[:size])
            left = left[size:]
        assert [*found, line.end()] == whole.split("\n")


def test_a_line_that_never_ends_is_given_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LIMIT", 10)
    line = Line()
    found = [part for _ in range(5) for part in line.add("xxxx")]
    assert found == ["x" * 12]
    assert line.end() == "x" * 8


def test_a_line_that_is_written_anew_shows_from_time_to_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "REDRAW", 0.0)
    line = Line()
    found = [state for percent in (1, 2, 3) for state in line.add(f"\r{percent} %")]
    assert found == ["1 %", "2 %"]
    assert line.end() == "3 %"


def test_a_line_that_is_written_anew_takes_no_room() -> None:
    line = Line()
    for number in range(10_000):
        line.add(f"\r{number}")
    assert sum(map(len, line._pieces)) < 10

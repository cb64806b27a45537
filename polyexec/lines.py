"""A line that is being written, piece by piece."""

from __future__ import annotations

import time

LIMIT = 4 << 20
"""Characters of a line that is never ended, after which a part of it is taken for a line."""

REDRAW = 1.0
"""Seconds for which one state of a line that is written again and again, as progress bars are, stands for all."""


class Line:
    """What one thread has written on one stream since the last line break.

    A carriage return lets the line be written anew; what was there before is dropped, but shown from time to time.
    """

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._size = 0
        self._shown = time.monotonic()

    def add(self, text: str) -> list[str]:
        """Add a text, and give the lines that are complete.

        Args:
            text: what is written; it may end anywhere.

        Returns:
            Complete lines, without their ends.
        """
        first, *others = text.split("\n")
        if not others:
            return self._hold(first)
        *whole, rest = others
        lines = [_last_state(self._take() + first), *map(_last_state, whole)]
        return lines + self._hold(rest) if rest else lines

    def end(self) -> str:
        """Give what has no end, and forget it."""
        return _last_state(self._take())

    def _take(self) -> str:
        pieces, self._pieces, self._size = self._pieces, [], 0
        return "".join(pieces)

    def _hold(self, text: str) -> list[str]:
        before = ""
        if "\r" in text:
            before = self._take()
            text = _without_past(before + text)
        self._pieces.append(text)
        self._size += len(text)
        if self._size > LIMIT:
            return [self.end()]
        return self._seen(_last_state(before)) if before else []

    def _seen(self, state: str) -> list[str]:
        now = time.monotonic()
        if now - self._shown < REDRAW:
            return []
        self._shown = now
        return [state]


def _last_state(line: str) -> str:
    """Give what a terminal would show of a line, more or less: what stands behind the last carriage return."""
    return line.rstrip("\r").rpartition("\r")[2] if "\r" in line else line


def _without_past(line: str) -> str:
    return _last_state(line) + ("\r" if line.endswith("\r") else "")

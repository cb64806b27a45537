"""What tests and tasks use to meet and to leave traces; imported by workers, so only the standard library."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import attrs

PATIENCE = float(os.environ.get("POLYEXEC_TESTING_PATIENCE", "30"))
"""Seconds that the suite waits for what must come; its own tests, which break promises on purpose, set less."""

TASK_LIMIT = 1.5 * PATIENCE
"""Seconds after which a task of the suite gives up waiting, so that no failed test leaves one for ever."""


def eventually(condition: Callable[[], object], what: str | Callable[[], str] = "", limit: float = 10.0) -> None:
    """Wait until a condition holds.

    Args:
        condition: asked again and again.
        what: what is waited for, for the error, or a function that says so at the end.
        limit: seconds; generous, never a measure.

    Raises:
        AssertionError: it did not hold within the limit.
    """
    end = time.monotonic() + limit
    pause = 0.001
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {limit:g} s: {what() if callable(what) else what}")
        time.sleep(pause)
        pause = min(2 * pause, 0.05)


def never(condition: Callable[[], object], what: str = "", during: float = 0.3) -> None:
    """Watch that a condition does not come to hold.

    Args:
        condition: asked again and again.
        what: what must not happen, for the error.
        during: seconds to watch.

    Raises:
        AssertionError: it came to hold.
    """
    end = time.monotonic() + during
    while time.monotonic() < end:
        if condition():
            raise AssertionError(f"happened: {what or condition}")
        time.sleep(0.005)


@attrs.frozen
class Gate:
    """A file that tasks wait for; it works across processes, and leaves nothing behind.

    Attributes:
        path: the file.
    """

    path: str

    def open(self) -> None:
        """Let everyone through."""
        with open(self.path, "w", encoding="ascii"):
            pass

    def is_open(self) -> bool:
        """Tell whether it has been opened."""
        return os.path.exists(self.path)

    def wait(self, limit: float = TASK_LIMIT) -> None:
        """Wait until it is open; raises ``TimeoutError`` after ``limit`` seconds."""
        end = time.monotonic() + limit
        while not os.path.exists(self.path):
            if time.monotonic() > end:
                raise TimeoutError(f"nobody opened {self.path}")
            time.sleep(0.005)


@attrs.frozen
class Marks:
    """A file to which tasks append lines; what it says happened, whatever the executor says.

    Attributes:
        path: the file.
    """

    path: str

    def add(self, text: str) -> None:
        """Append one line, whole even if many processes do."""
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, f"{text}\n".encode())
        finally:
            os.close(descriptor)

    def lines(self) -> list[str]:
        """Give all lines so far."""
        try:
            with open(self.path, encoding="utf-8") as file:
                return file.read().splitlines()
        except FileNotFoundError:
            return []

    def count(self, start: str = "") -> int:
        """Give the number of lines that begin with a text."""
        return sum(line.startswith(start) for line in self.lines())

    def values(self, start: str) -> list[str]:
        """Give what follows a word on the lines that begin with it."""
        return [line[len(start) :].strip() for line in self.lines() if line.startswith(start)]

    def wait_for(self, start: str, count: int = 1, limit: float = PATIENCE * 2 / 3) -> None:
        """Wait until at least ``count`` lines begin with a text; raises ``AssertionError`` after ``limit`` seconds."""
        eventually(lambda: self.count(start) >= count, lambda: f"{count} x {start!r} in {self.lines()[-20:]}", limit)

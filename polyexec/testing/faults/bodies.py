"""Functions that the matrix runs as tasks; workers import them from here."""

from __future__ import annotations

import ctypes
import os
import time
from typing import Any

from polyexec.testing import bodies
from polyexec.testing.tools import Marks


def begin(marks: Marks) -> None:
    """Mark a start, and that the fault comes now."""
    marks.add(f"start {os.getpid()}")
    now(marks)


def now(marks: Marks) -> None:
    """Mark that the fault comes now."""
    marks.add(f"fault {time.monotonic()}")


def die(marks: Marks, how: str) -> None:
    """End this process at once: by a signal's name, or ``exit N``."""
    now(marks)
    bodies.die(marks, how)


def crash(marks: Marks) -> None:
    """Read from address 0."""
    begin(marks)
    bodies.crash_in_c()


def abort(marks: Marks) -> None:
    """Call ``abort`` of the C library."""
    begin(marks)
    os.abort()


def overflow_in_c(marks: Marks) -> None:
    """Let the C library recurse until the stack of this thread is full: its regular expressions do, nested deeply."""
    begin(marks)
    library = ctypes.CDLL(None)
    extended = 1
    library.regcomp(ctypes.create_string_buffer(256), b"(" * 20_000_000, extended)


def leave(marks: Marks, code: Any) -> None:
    """Call ``sys.exit``."""
    begin(marks)
    bodies.leave(code)


def fail(marks: Marks, error: BaseException) -> None:
    """Raise."""
    begin(marks)
    raise error


def recurse(marks: Marks, limit: int | None) -> int:
    """Call a function that calls itself without end, with another recursion limit if one is given."""
    import sys

    begin(marks)
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(limit or before)
    try:
        return _deep()
    finally:
        sys.setrecursionlimit(before)


def _deep() -> int:
    return 1 + _deep()

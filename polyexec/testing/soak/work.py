"""What tasks of a soak run; imported by workers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import polyexec
from polyexec.testing.tools import Marks

LIMIT = 300.0
"""Seconds after which something that does not come is taken for lost; machines may be busy."""

MEGABYTE = 1 << 20
WAYS_TO_DIE = ("SIGKILL", "SIGSEGV", "exit")


def give(value: Any) -> Any:
    """Return it."""
    return value


def add(one: int, other: int) -> int:
    """Add."""
    return one + other


def pid(_: object = None) -> int:
    """Give the worker's process id."""
    return os.getpid()


def fail(number: int) -> None:
    """Raise an error that can be told from others."""
    raise LookupError(number)


def start_and_die(marks: Marks, number: int, how: str | None) -> int:
    """Say that this has started and where, and work for a moment, or end the process."""
    marks.add(f"start {number} {os.getpid()}")
    if how is None:
        time.sleep(0.0005)
        return number
    if how == "exit":
        os._exit(3)
    os.kill(os.getpid(), signal.Signals[how])
    time.sleep(LIMIT)
    return number


def block(number: int) -> bytearray:
    """Make a megabyte."""
    return bytearray([number % 256]) * MEGABYTE


def look(data: bytearray) -> tuple[int, int, int]:
    """Look at a megabyte."""
    return len(data), data[0], data[-1]


def seen(number: int) -> tuple[int, int, int]:
    """Give what ``look`` sees in a block."""
    return MEGABYTE, number % 256, number % 256


def count_up(marks: Marks, number: int, length: int) -> Iterator[int]:
    """Give numbers; leave marks at the beginning and at the end, however that comes."""
    try:
        marks.add(f"begin {number}")
        yield from range(length)
    finally:
        marks.add(f"end {number}")


def numbers(length: int) -> Iterator[int]:
    """Give numbers."""
    yield from range(length)


def sum_of_tasks(count: int, retries: int) -> int:
    """Submit tasks, and add their results."""
    ex = polyexec.current().options(retries=retries)
    return sum(future.result() for future in [ex.submit(add, number, 1) for number in range(count)])


class Counter:
    """Counts its calls."""

    def __init__(self) -> None:
        self._count = 0

    def next(self) -> int:
        """Count one more."""
        self._count += 1
        return self._count

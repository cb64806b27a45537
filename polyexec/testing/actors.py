"""Classes that the suite runs as actors; workers import them from here."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from typing import Any

import polyexec
from polyexec.testing import bodies
from polyexec.testing.tools import TASK_LIMIT, Gate, Marks


class Counter:
    """Counts."""

    def __init__(self, start: int = 0) -> None:
        self.value = start

    def add(self, amount: int = 1) -> int:
        """Count on."""
        self.value += amount
        return self.value

    def pid(self) -> int:
        """Give the process id."""
        return os.getpid()

    def call(self, function: Any, *args: Any) -> Any:
        """Call anything."""
        return function(*args)

    def die(self, how: str) -> None:
        """End the process at once, by a signal's name, or ``exit N``."""
        if how.startswith("exit"):
            os._exit(int(how.split()[1]))
        os.kill(os.getpid(), signal.Signals[how])
        time.sleep(TASK_LIMIT)

    def leave(self, code: Any) -> None:
        """Call ``sys.exit``."""
        sys.exit(code)


class Log:
    """Notes what it is told, and how many do so at the same time."""

    def __init__(self) -> None:
        self.lines: list[Any] = []
        self.inside = 0
        self.most = 0

    def note(self, line: Any) -> int:
        """Note a line."""
        self.inside += 1
        self.most = max(self.most, self.inside)
        # Somebody else gets the chance to come in.
        time.sleep(0)
        self.lines.append(line)
        self.inside -= 1
        return len(self.lines)

    def read(self) -> tuple[list[Any], int]:
        """Give all lines, and the largest number of calls at a time."""
        return self.lines, self.most


def note_all(log: Any, caller: int, count: int) -> list[int]:
    """Tell a log in order."""
    return [future.result() for future in [log.note((caller, number)) for number in range(count)]]


class Meeting:
    """Has methods that end only together."""

    def __init__(self) -> None:
        self.here = 0

    def meet(self, count: int) -> int:
        """Wait until so many calls are here."""
        self.here += 1
        end = time.monotonic() + TASK_LIMIT
        while self.here < count and time.monotonic() < end:
            time.sleep(0.001)
        return self.here


class AsyncMeeting:
    """Has coroutines that end only together."""

    def __init__(self) -> None:
        self.here = 0
        self.changed = asyncio.Event()

    async def wait(self) -> str:
        """Wait until somebody opens."""
        await asyncio.wait_for(self.changed.wait(), TASK_LIMIT)
        return "open"

    async def open(self) -> None:
        """Let those who wait go on."""
        self.changed.set()

    def plain(self) -> int:
        """Do without waiting."""
        self.here += 1
        return self.here

    async def child(self, value: int) -> int:
        """Await a task."""
        executor = polyexec.current()
        await asyncio.sleep(0)
        return int(await executor.submit(bodies.add, value, 1))

    async def beat(self, marks: Marks) -> None:
        """Wait for ever."""
        marks.add("start")
        try:
            await asyncio.sleep(TASK_LIMIT)
        finally:
            marks.add("finally")


class Node:
    """Knows another actor."""

    def __init__(self, other: Any = None) -> None:
        self.other = other

    def meet(self, other: Any) -> None:
        """Keep a handle, that comes inside a list."""
        (self.other,) = other

    def forget(self) -> None:
        """Let the handle go."""
        self.other = None

    def ask(self, depth: int) -> int:
        """Ask the other one, which asks back without waiting for more."""
        return 1 + int(self.other.tell(depth).result())

    def tell(self, depth: int) -> int:
        """Answer, and call back."""
        if depth and self.other is not None:
            self.other.tell(0)
        return depth

    def circle(self) -> Any:
        """Wait for the other one, which waits for this one."""
        return self.other.back().result()

    def back(self) -> Any:
        """Wait for whoever waits for this."""
        return self.other.tell(0).result()

    def is_other(self, handle: Any) -> bool:
        """Compare handles."""
        return bool(self.other == handle) and hash(self.other) == hash(handle)


class Worker:
    """Has methods that take their time, and that need tasks."""

    def __init__(self, *values: Any) -> None:
        self.values = values

    def get(self) -> Any:
        """Give what the constructor got."""
        return self.values

    def beat(self, marks: Marks) -> None:
        """Leave marks for ever."""
        bodies.beat(marks)

    def pass_gate(self, marks: Marks, gate: Gate, name: Any = "") -> Any:
        """Wait for a gate."""
        return bodies.pass_gate(marks, gate, name)

    def sleep_in_c(self, marks: Marks) -> None:
        """Block in a system call."""
        bodies.sleep_in_c(marks)

    def child(self, left: int, right: int) -> int:
        """Wait for a task that needs a cpu."""
        return int(polyexec.current().submit(bodies.add, left, right).result())

    def family(self, marks: Marks) -> None:
        """Submit a task that beats, and wait for it."""
        polyexec.current().submit(bodies.beat, marks).result()

    def wait_for_itself(self, me: Any) -> str:
        """Wait for a call that stands behind this one."""
        try:
            me.get().result()
        except polyexec.DeadlockError as error:
            return f"deadlock: {error}"
        return "no deadlock"

    def mark(self, marks: Marks, text: str) -> str:
        """Leave a mark."""
        marks.add(text)
        return text

    def keep(self, value: Any) -> None:
        """Keep a value."""
        self.values = (value,)

    def result(self) -> Any:
        """Ask the Future that is kept."""
        return self.values[0][0].result()


class Failing:
    """Cannot be made."""

    def __init__(self, error: BaseException) -> None:
        raise error

    def get(self) -> None:
        """Do nothing."""

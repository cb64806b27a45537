"""Waiting for what the loop has to say.

A mailbox has one reader; the loop writes. ``_is_helpless`` is set by the reader before it blocks and cleared by the
first who writes, or by the reader; if both do so at the same time the loop counts one thread too few, which costs a
moment and no more.
"""

from __future__ import annotations

import time
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from polyexec import blocking
from polyexec.errors import DeadlockError
from polyexec.loop import Loop

T = TypeVar("T")


class Mailbox(Generic[T]):
    """A queue from the loop to one thread, which may be the loop while it waits.

    Args:
        loop: who writes.
    """

    __slots__ = ("_is_helpless", "_items", "_loop")

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._items: SimpleQueue[T] = SimpleQueue()
        self._is_helpless = False

    def put(self, item: T) -> None:
        """Add an item. Does not block."""
        self._items.put(item)
        self._is_helped()

    def take(self, timeout: float | None = None) -> T:
        """Take an item. Blocks; raises ``queue.Empty`` if none comes in time.

        Args:
            timeout: seconds; None for ever.

        Returns:
            The item.
        """
        end = None if timeout is None else time.monotonic() + timeout
        if self._items.empty():
            self._loop.visit_until(self._has_come, timeout)
        try:
            return self._items.get_nowait()
        except Empty:
            return self._wait(None if end is None else max(0.0, end - time.monotonic()))

    def _has_come(self) -> bool:
        return not self._items.empty()

    def _wait(self, timeout: float | None) -> T:
        if self._loop.is_current():
            raise DeadlockError("a finaliser waits for the executor in the middle of whose work it runs")
        self._is_helpless = True
        self._loop.count_helpless(1)
        try:
            return blocking.take(self._items, timeout)
        finally:
            self._is_helped()

    def _is_helped(self) -> None:
        if self._is_helpless:
            self._is_helpless = False
            self._loop.count_helpless(-1)

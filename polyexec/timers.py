"""Timers on an injected clock."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable


class Timer:
    """One thing to do later; ``action`` is None once it is done or cancelled."""

    __slots__ = ("action",)

    def __init__(self, action: Callable[[], None]) -> None:
        self.action: Callable[[], None] | None = action


class Timers:
    """A heap of timers; for one thread.

    Args:
        clock: gives seconds; never goes back.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.now = clock
        self._heap: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()
        self._cancelled = 0

    def after(self, seconds: float, action: Callable[[], None]) -> Timer:
        """Do something later."""
        timer = Timer(action)
        heapq.heappush(self._heap, (self.now() + seconds, next(self._numbers), timer))
        return timer

    def cancel(self, timer: Timer) -> None:
        """Do not do it after all."""
        if timer.action is None:
            return
        timer.action = None
        self._cancelled += 1
        if self._cancelled * 2 > len(self._heap) > 64:
            self._heap = [item for item in self._heap if item[2].action is not None]
            heapq.heapify(self._heap)
            self._cancelled = 0

    def run_due(self) -> None:
        """Do what is due."""
        while self._heap and self._heap[0][0] <= self.now():
            timer = heapq.heappop(self._heap)[2]
            action, timer.action = timer.action, None
            if action is None:
                self._cancelled = max(0, self._cancelled - 1)
            else:
                action()

    def pause(self) -> float | None:
        """Give the seconds until something is due, None if nothing is."""
        return max(0.0, self._heap[0][0] - self.now()) if self._heap else None

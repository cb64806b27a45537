"""Lanes: how work reaches a thread that waits for it, for backends that run calls inline.

The thread that submits a task opens a lane, hands its number over with the task, and serves the lane until the task
is settled. A lane's two queues are all that threads share: posting adds work to the one and wakes by the other.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Protocol

import attrs

from polyexec import blocking


class Work(Protocol):
    """What is posted to a lane; one of the two is called, or both if Ctrl-C comes in between."""

    def run(self) -> None:
        """Do it, in the thread that serves the lane."""

    def abandon(self) -> None:
        """Report that nobody will do it, unless its end was reported before."""


@attrs.define(eq=False)
class _Lane:
    posted: deque[Work] = attrs.field(factory=deque)
    wake: SimpleQueue[bool] = attrs.field(factory=SimpleQueue)


_numbers = itertools.count(1)
_lanes: dict[int, _Lane] = {}


@contextmanager
def opened() -> Iterator[int]:
    """Make a lane and give its number; abandon what is left in it at the end."""
    number = next(_numbers)
    lane = _lanes[number] = _Lane()
    try:
        yield number
    finally:
        del _lanes[number]
        # Ctrl-C may have come wherever the thread was, between waking up and running the work too.
        for work in lane.posted:
            work.abandon()


def post(number: int, work: Work) -> None:
    """Let the thread that serves a lane run some work."""
    lane = _lanes.get(number)
    if lane is not None:
        lane.posted.append(work)
        lane.wake.put(True)
    if number not in _lanes:
        # The thread has left, now or before.
        work.abandon()


def close_lane(number: int) -> None:
    """Let the thread that serves a lane go on once it has done what was posted before."""
    lane = _lanes.get(number)
    if lane is not None:
        lane.wake.put(False)


def serve(number: int) -> None:
    """Run what is posted to a lane, in this thread, until the lane is closed."""
    lane = _lanes[number]
    while blocking.take(lane.wake):
        lane.posted[0].run()
        lane.posted.popleft()

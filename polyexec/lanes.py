"""Lanes: how work reaches a thread that waits for it, for backends that run calls inline.

The thread that submits a task opens a lane, hands its number over with the task, and serves the lane until the task
is settled. A lane's queue is the only thing that threads share.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from queue import SimpleQueue
from typing import TypeAlias

Work: TypeAlias = Callable[[], None]

_numbers = itertools.count(1)
_lanes: dict[int, SimpleQueue[Work | None]] = {}


def open_lane() -> int:
    """Make a lane, and give its number."""
    number = next(_numbers)
    _lanes[number] = SimpleQueue()
    return number


def post(lane: int, work: Work) -> None:
    """Let the thread that serves the lane run some work."""
    _lanes[lane].put(work)


def close_lane(lane: int) -> None:
    """Let the thread that serves the lane go on once it has done what was posted before."""
    queue = _lanes.get(lane)
    if queue is not None:
        queue.put(None)


def serve(lane: int) -> None:
    """Run what is posted to a lane, in this thread, until the lane is closed."""
    queue = _lanes[lane]
    try:
        while (work := queue.get()) is not None:
            work()
    finally:
        del _lanes[lane]


def discard(lane: int) -> None:
    """Forget a lane that nobody will serve."""
    _lanes.pop(lane, None)

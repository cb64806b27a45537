"""Waiting so that Ctrl-C gets through (W7).

CPython notices a signal before it blocks on a lock, or when the signal interrupts the blocking. One that comes in
between, while the thread gives up the interpreter's lock, is noticed only when the thread wakes up by itself. So the
main thread, which alone runs signal handlers, wakes up now and then.
"""

from __future__ import annotations

import queue
import threading
import time
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")

_SLICE = 0.2
"""Seconds after which the main thread wakes up; the contract allows 0.5 until Ctrl-C is seen."""


def take(items: SimpleQueue[T], timeout: float | None = None) -> T:
    """Take an item from a queue.

    Args:
        items: the queue.
        timeout: seconds to wait at most; None for ever.

    Returns:
        The item.

    Raises:
        queue.Empty: none has come in time.
    """
    if threading.current_thread() is not threading.main_thread():
        return items.get(timeout=timeout)
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        left = _SLICE if deadline is None else deadline - time.monotonic()
        try:
            return items.get(timeout=max(0.0, min(left, _SLICE)))
        except queue.Empty:
            if left <= _SLICE and deadline is not None:
                raise


def wait(event: threading.Event, timeout: float | None = None) -> bool:
    """Wait for an event; say whether it is set.

    Args:
        event: the event.
        timeout: seconds to wait at most; None for ever.

    Returns:
        Whether it is set.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    while not event.is_set():
        left = _SLICE if deadline is None else min(_SLICE, deadline - time.monotonic())
        if left <= 0:
            return False
        event.wait(left)
    return True

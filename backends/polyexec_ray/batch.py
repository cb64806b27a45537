"""Several short calls that a worker was given at once.

What has ended must not wait for long because a later call takes longer than was expected, and what has not begun must
not either: a thread gives both back, in the middle of a body, when the batch has taken its time.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from polyexec_ray.freight import unframe

_PATIENCE = 0.03


class Batch:
    """The calls of one batch.

    The main thread takes frames from the left, the flusher from the right; an outcome goes to whoever takes it first.
    All of that is done by atomic operations of deques.

    Attributes:
        done: calls that have ended, with their outcomes.
    """

    def __init__(self, frames: Sequence[bytes]) -> None:
        self.done: deque[tuple[int, Any]] = deque()
        self._frames = deque(frames)

    def __iter__(self) -> Iterator[bytes]:
        with contextlib.suppress(IndexError):
            while True:
                yield self._frames.popleft()

    def take(self) -> list[tuple[int, Any]]:
        """Give the outcomes that nobody has taken yet."""
        taken: list[tuple[int, Any]] = []
        with contextlib.suppress(IndexError):
            while True:
                taken.append(self.done.popleft())
        return taken

    def drain(self) -> list[int]:
        """Take away all calls that have not begun, and give their ids in order."""
        taken: list[int] = []
        with contextlib.suppress(IndexError):
            while True:
                taken.append(unframe(self._frames.pop())[0])
        return taken[::-1]


class Flusher:
    """The thread that gives back what is held up.

    Args:
        give: takes outcomes and calls that have not begun to the driver.
    """

    def __init__(self, give: Callable[[list[tuple[int, Any]], list[int]], object]) -> None:
        self._give = give
        self._wake = threading.Event()
        self._batch = Batch(())
        threading.Thread(target=self._watch, name="polyexec-flusher", daemon=True).start()

    def begin(self, frames: Sequence[bytes]) -> Batch:
        """Make a batch, and watch it."""
        self._batch = Batch(frames)
        self._wake.set()
        return self._batch

    def _watch(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            batch = self._batch
            time.sleep(_PATIENCE)
            returned, outcomes = batch.drain(), batch.take()
            if returned or outcomes:
                self._give(outcomes, returned)

"""The worker's side of maps: running a chunk of items, and handing over what is left of one that takes long.

The body's thread takes items from the left of a deque and a watching thread from its right, both by atomic operations.
``_given`` is written by the watching thread alone, and read when that has ended.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import attrs

from polyexec import outcome
from polyexec.future import Future, fulfil
from polyexec.stored import Stored


@attrs.frozen(eq=False)
class ChunkResult:
    """What a chunk's task returns.

    Attributes:
        results: of its items in order, up to the first error; without those that were handed over.
        error: the error, encoded.
        seconds: how long it took.
    """

    results: list[Any]
    error: Stored | None
    seconds: float


@attrs.frozen(eq=False)
class Handover:
    """What a worker gives while a chunk still runs.

    Attributes:
        results: of the first items.
        left: number of items at the end that it has not begun, and never will.
    """

    results: list[Any]
    left: int


def run_one(function: Callable[..., Any], /, *item: Any) -> ChunkResult:
    """Apply a function to one item."""
    return _Run(function, [item]).result()


def run_chunk(
    function: Callable[..., Any], items: Sequence[tuple[Any, ...]], where: tuple[Future[Handover], float] | None
) -> ChunkResult:
    """Apply a function to some items.

    Args:
        function: called with the parts of each item.
        items: the items.
        where: what to hand over to, and after how many seconds; None for never.

    Returns:
        The results.
    """
    run = _Run(function, items)
    if where is None:
        return run.result()
    ended = threading.Event()
    watch = threading.Thread(target=run.watch, args=(*where, ended), name="polyexec-chunk", daemon=True)
    try:
        watch.start()
        run.work()
    finally:
        try:
            ended.set()
        finally:
            # Again, because an interrupt may have come before it; there is no second.
            ended.set()
            if watch.ident is not None:
                watch.join()
    return run.result()


def try_one(function: Callable[..., Any], /, *item: Any) -> ChunkResult:
    """Apply a function to one item; its error is the task's own, which may run again after it."""
    return try_chunk(function, [item])


def try_chunk(function: Callable[..., Any], items: Sequence[tuple[Any, ...]]) -> ChunkResult:
    """Apply a function to some items; an error is the task's own, which may run again after it, as a whole."""
    began = time.perf_counter()
    results = [function(*item) for item in items]
    return ChunkResult(results, None, time.perf_counter() - began)


class _Run:
    def __init__(self, function: Callable[..., Any], items: Sequence[tuple[Any, ...]]) -> None:
        self._function = function
        self._left = deque(items)
        self._results: list[Any] = []
        self._given = 0
        self._error: Stored | None = None
        self._began = time.perf_counter()

    def work(self) -> None:
        """Work on the items that are left, until there is an error."""
        while self._error is None and (item := _popped(self._left.popleft)) is not None:
            try:
                self._results.append(self._function(*item))
            except Exception as error:
                self._error = outcome.encode_error(error)

    def watch(self, handover: Future[Handover], patience: float, ended: threading.Event) -> None:
        """Hand over when the items take long."""
        if ended.wait(patience):
            return
        taken = []
        while (item := _popped(self._left.pop)) is not None:
            taken.append(item)
        given = self._results[:]
        if not given and not taken:
            return
        try:
            fulfil(handover, Handover(given, len(taken)))
        except Exception:
            # The executor is being closed, for example: then the task does and gives it all itself.
            self._left.extend(reversed(taken))
        else:
            self._given = len(given)

    def result(self) -> ChunkResult:
        """Work on what is left, and give what was not handed over."""
        self.work()
        return ChunkResult(self._results[self._given :], self._error, time.perf_counter() - self._began)


def _popped(pop: Callable[[], tuple[Any, ...]]) -> tuple[Any, ...] | None:
    try:
        return pop()
    except IndexError:
        return None

"""Lazy, bounded maps with chunks of measured size.

Everything runs in the thread that iterates. A chunk's task returns the results of its items up to the first error, and
how long they took; the next chunks hold as many items as take ``TARGET`` seconds together.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from polyexec import outcome
from polyexec.errors import SpecificationError
from polyexec.stored import Stored

if TYPE_CHECKING:
    from polyexec.executor import Executor
    from polyexec.future import Future

T = TypeVar("T")

TARGET = 0.05
"""Seconds of work in a chunk: long against the cost of a task, short for those who wait for its other items."""

CHUNK_LIMIT = 4096
CHUNKS_AHEAD = 4
"""Chunks in flight for each cpu."""


def _positive(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise SpecificationError(f"map: {attribute.name}= takes an integer of at least 1, not {value!r}")


@attrs.frozen
class Settings:
    """How to map; see ``Executor.map``."""

    ordered: bool
    buffer: int | None = attrs.field(validator=_positive)
    chunk_size: int | None = attrs.field(validator=_positive)
    progress: Callable[[int], object] | None
    timeout: float | None


@attrs.frozen(eq=False)
class ChunkResult:
    """What a chunk's task returns: the results up to the first error, that error encoded, and the seconds it took."""

    results: list[Any]
    error: Stored | None
    seconds: float


def run_chunk(function: Callable[..., Any], items: Sequence[tuple[Any, ...]]) -> ChunkResult:
    """Apply a function to some items, on a worker."""
    began = time.perf_counter()
    results: list[Any] = []
    for item in items:
        try:
            results.append(function(*item))
        except Exception as error:
            return ChunkResult(results, outcome.encode_error(error), time.perf_counter() - began)
    return ChunkResult(results, None, time.perf_counter() - began)


def run(
    executor: Executor, function: Callable[..., T], iterables: Sequence[Iterable[Any]], settings: Settings
) -> Generator[T, None, None]:
    """Start a map; see ``Executor.map``."""
    if not iterables:
        raise SpecificationError("map takes a function and at least one iterable")
    state = _Map(executor, function, zip(*iterables, strict=False), settings)
    return state.results()


@attrs.define(eq=False)
class _Map:
    executor: Executor
    function: Callable[..., Any]
    items: Iterator[tuple[Any, ...]]
    settings: Settings
    in_flight: deque[tuple[Future[ChunkResult], int]] = attrs.field(factory=deque)
    taken: int = 0
    given: int = 0
    size: int = 1
    exhausted: bool = False

    def results(self) -> Generator[Any, None, None]:
        try:
            self._fill()
            while self.in_flight:
                chunk = self._next_chunk()
                for result in chunk.results:
                    self.given += 1
                    if self.settings.progress is not None:
                        self.settings.progress(self.given)
                    yield result
                    self._fill()
                if chunk.error is not None:
                    raise outcome.decode_error(chunk.error)
                self._fill()
        finally:
            # The last ones first, so that none starts in the place of one that was cancelled before it.
            for future, _ in reversed(self.in_flight):
                self.executor.cancel(future)

    def _next_chunk(self) -> ChunkResult:
        if self.settings.ordered:
            future, count = self.in_flight[0]
        else:
            done, _ = self.executor.wait([f for f, _ in self.in_flight], num_returns=1, timeout=self.settings.timeout)
            future, count = next((f, c) for f, c in self.in_flight if not done or f is done[0])
        chunk = future.result(self.settings.timeout)
        self.in_flight.remove((future, count))
        self._learn(chunk, count)
        return chunk

    def _learn(self, chunk: ChunkResult, count: int) -> None:
        if self.settings.chunk_size is None and chunk.error is None:
            fitting = int(TARGET * count / chunk.seconds) if chunk.seconds > 0 else CHUNK_LIMIT
            # Grows by doubling, so that one quick item does not put slow ones into one chunk.
            self.size = max(1, min(fitting, self.size * 2, CHUNK_LIMIT))

    def _fill(self) -> None:
        ahead = max(2, CHUNKS_AHEAD * self.executor.info.workers)
        limit = self.settings.buffer
        while not self.exhausted and len(self.in_flight) < ahead:
            size = self.settings.chunk_size or self.size
            if limit is not None:
                room = limit - (self.taken - self.given)
                size = min(size, room, max(1, limit // 2))
            if size < 1:
                return
            chunk = tuple(itertools.islice(self.items, size))
            self.exhausted = len(chunk) < size
            if chunk:
                self.taken += len(chunk)
                self.in_flight.append((self.executor.submit(run_chunk, self.function, chunk), len(chunk)))

"""Lazy, bounded maps with chunks of measured size.

Everything runs in the thread that iterates. A chunk's task returns the results of its items up to the first error, and
how long they took; the next chunks hold as many items as take ``TARGET`` seconds together. When a chunk takes much
longer than that, its worker hands over what it has, and the items that it has not begun come into a new chunk.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from polyexec import outcome
from polyexec.chunks import ChunkResult, Handover, run_chunk, run_one, try_chunk, try_one
from polyexec.errors import SpecificationError
from polyexec.future import Future, promise
from polyexec.prepare import function_name
from polyexec.progress import Report
from polyexec.session import Session

if TYPE_CHECKING:
    from polyexec.executor import Executor

T = TypeVar("T")

TARGET = 0.05
"""Seconds of work in a chunk: long against the cost of a task, short for those who wait for its other items."""

PATIENCE = 0.2
"""Seconds after which a chunk is divided."""

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
    report: Report | None
    timeout: float | None


@attrs.define(eq=False)
class _Chunk:
    """Items that one task works on; ``handover`` is None once it has come, or if it never will."""

    future: Future[ChunkResult]
    items: tuple[tuple[Any, ...], ...]
    handover: Future[Handover] | None

    def watched(self) -> list[Future[Any]]:
        return [self.future] if self.handover is None else [self.handover, self.future]


def run(
    executor: Executor,
    function: Callable[..., T],
    iterables: Sequence[Iterable[Any]],
    settings: Settings,
    *,
    session: Session,
    divisible: bool,
) -> Generator[T, None, None]:
    """Start a map; see ``Executor.map``.

    Args:
        executor: what runs the chunks.
        function: called with the parts of each item.
        iterables: where the parts come from.
        settings: how to map.
        session: the executor's.
        divisible: chunks may be divided while they run, because none runs again.
    """
    if not iterables:
        raise SpecificationError("map takes a function and at least one iterable")
    state = _Map(executor, function, zip(*iterables, strict=False), settings, session, divisible)
    return state.results()


@attrs.define(eq=False)
class _Map:
    executor: Executor
    function: Callable[..., Any]
    items: Iterator[tuple[Any, ...]]
    settings: Settings
    session: Session
    divisible: bool
    in_flight: deque[_Chunk] = attrs.field(factory=deque)
    taken: int = 0
    given: int = 0
    size: int = 1
    exhausted: bool = False

    def results(self) -> Generator[Any, None, None]:
        report = self.settings.report
        if report is None:
            yield from self._results()
            return
        report.open()
        try:
            yield from self._results()
        finally:
            report.close()

    def _results(self) -> Generator[Any, None, None]:
        try:
            self._fill()
            while self.in_flight:
                results, error = self._next()
                yield from results if self._is_simple() else self._given(results)
                if error is not None:
                    raise error
                self._fill()
        finally:
            # The last ones first, so that none starts in the place of one that was cancelled before it.
            for chunk in reversed(self.in_flight):
                self.executor.cancel(chunk.future)

    def _is_simple(self) -> bool:
        return self.settings.report is None and self.settings.buffer is None

    def _given(self, results: Sequence[Any]) -> Iterator[Any]:
        """Give results one by one, where somebody counts them, or more may be taken for each."""
        for result in results:
            self.given += 1
            if self.settings.report is not None:
                self.settings.report.told(self.given)
            yield result
            self._fill()

    def _next(self) -> tuple[list[Any], BaseException | None]:
        chunk = self._ready_chunk()
        if chunk.handover is not None and chunk.handover.done():
            return self._divide(chunk, chunk.handover.result()), None
        found = chunk.future.result()
        self._learn(found, len(chunk.items))
        self.in_flight.remove(chunk)
        return found.results, None if found.error is None else outcome.decode_error(found.error)

    def _ready_chunk(self) -> _Chunk:
        chunks = [self.in_flight[0]] if self.settings.ordered else list(self.in_flight)
        watched = [future for chunk in chunks for future in chunk.watched()]
        done, _ = self.executor.wait(watched, num_returns=1, timeout=self.settings.timeout)
        if not done:
            raise TimeoutError(f"map: no result within {self.settings.timeout:g} s")
        return next(chunk for chunk in chunks if done[0] in chunk.watched())

    def _divide(self, chunk: _Chunk, handover: Handover) -> list[Any]:
        """Put what a chunk has not begun into a new one, and give what it has done."""
        begun = len(chunk.items) - handover.left
        rest = chunk.items[begun:]
        chunk.items, chunk.handover = chunk.items[len(handover.results) : begun], None
        self.size = max(1, self.size // 2)
        if rest:
            self.in_flight.insert(self.in_flight.index(chunk) + 1, self._submit(rest))
        return handover.results

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
                size = min(size, limit - (self.taken - self.given), max(1, limit // 2))
            if size < 1:
                return
            chunk = self._take(size)
            if chunk:
                self.taken += len(chunk)
                self.in_flight.append(self._submit(chunk))

    def _take(self, size: int) -> tuple[tuple[Any, ...], ...]:
        """Take some items; one with a Future among its arguments goes alone, because it waits for that Future."""
        chunk = tuple(itertools.islice(self.items, size))
        kinds = set(map(type, itertools.chain.from_iterable(chunk)))
        if not any(issubclass(kind, Future) for kind in kinds):
            self.exhausted = len(chunk) < size
            return chunk
        first = next(place for place, item in enumerate(chunk) if _has_future(item))
        count = max(1, first)
        self.items = itertools.chain(chunk[count:], self.items)
        return chunk[:count]

    def _submit(self, items: tuple[tuple[Any, ...], ...]) -> _Chunk:
        if len(items) == 1:
            one = run_one if self.divisible else try_one
            return _Chunk(self.executor.submit(one, self.function, *items[0]), items, None)
        # What has been handed over must not be worked on again, so a chunk that may run again is not divided.
        if not self.divisible:
            return _Chunk(self.executor.submit(try_chunk, self.function, items), items, None)
        handover = promise(self.session, function_name(self.function))
        # In a tuple, so that it is not taken for a dependency.
        where = (handover, PATIENCE) if handover is not None else None
        return _Chunk(self.executor.submit(run_chunk, self.function, items, where), items, handover)


def _has_future(item: tuple[Any, ...]) -> bool:
    return any(isinstance(argument, Future) for argument in item)

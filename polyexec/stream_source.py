"""Streams, on the worker's side: what iterates over a generator and sends its items.

The body's thread encodes items and puts them into a queue; a thread of the stream's own sends all that it finds there
in one request, so that a single item leaves at once, and many leave together. The body's thread takes no lock, because
it may be interrupted anywhere. ``_Window`` is what the two share: single attributes that either replaces as a whole.
"""

from __future__ import annotations

import contextlib
import pickle
import threading
from collections.abc import AsyncIterable, Callable, Generator, Iterator
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias

import attrs

from polyexec import outcome, shipped
from polyexec.errors import PolyexecError, SpecificationError
from polyexec.plain import is_small_atom
from polyexec.session import task_session
from polyexec.stored import VALUE_MARK, Head, Stored, value_head

_SMALL = 64 * 1024
"""Bytes up to which an item is sent together with others."""

_BATCH = 1 << 20
"""Bytes of items in one request, about."""

_END: Any = object()
_PLAIN_HEAD = value_head(0.0)

Item: TypeAlias = bytes | tuple[bytes, tuple[bytes, ...]] | None


def iterated(value: Any) -> Iterator[Any] | None:
    """Give an iterator over what a function has given, be it asynchronous; None if it has no items."""
    if isinstance(value, AsyncIterable):
        return _stepped(value)
    try:
        items: Iterator[Any] = iter(value)
    except TypeError:
        return None
    return items


def _stepped(value: AsyncIterable[Any]) -> Generator[Any]:
    """Run an asynchronous iterator item by item, in an asyncio loop of its own."""
    import asyncio

    with asyncio.Runner() as runner:
        items = aiter(value)

        async def step() -> Any:
            return await anext(items, _END)

        while (item := runner.run(step())) is not _END:
            yield item


@contextlib.contextmanager
def closing(items: Iterator[Any]) -> Iterator[None]:
    """Close a generator at the end, so that its ``finally`` blocks run here and now."""
    try:
        yield
    finally:
        if isinstance(items, Generator):
            items.close()


@attrs.define(eq=False)
class _Window:
    """How many items may be given in all, negative to stop; and what went wrong with sending."""

    allowed: int = 0
    error: PolyexecError | None = None


class _Outlet:
    """Sends items.

    Args:
        name: of the task.
    """

    def __init__(self, name: str) -> None:
        self._queue: SimpleQueue[Item | _Stop] = SimpleQueue()
        session: Any = task_session()
        self._ask: Callable[..., Any] = session.ask
        self._name = name
        self._given = 0
        self._is_lent = shipped.is_lent()
        self._window = _Window()
        self._sent: SimpleQueue[None] = SimpleQueue()
        # It does not know this object, so that it ends with it if nothing else ends it.
        work = (self._ask, self._queue, self._sent, self._window)
        threading.Thread(target=_send, args=work, name=f"polyexec-stream-{name}", daemon=True).start()

    def has_room(self) -> bool:
        """Wait until an item may be given; False if no more shall be."""
        window = self._window
        allowed = window.allowed
        while self._given >= allowed:
            if window.error is not None:
                raise window.error
            allowed = window.allowed = self._ask("stream_room", self._given)[0]
            if allowed < 0:
                return False
        return True

    def give(self, item: Item) -> bool:
        """Send an encoded item; then do as ``has_room`` does."""
        self._given += 1
        if not self._is_lent:
            self._queue.put(item)
            return self.has_room()
        # Its reader is in this very process.
        with shipped.waiting():
            self._queue.put(item)
            return self.has_room()

    def encoded(self, value: Any) -> Item:
        """Encode an item, and send it before its turn if it is large."""
        if is_small_atom(value):
            return _PLAIN_HEAD + pickle.dumps(value, 5)
        stored = outcome.encode_value(self._name, value)
        if stored.nbytes > _SMALL or not stored.data.startswith(VALUE_MARK):
            # By itself, and at once: its memory may change after this, and what it refers to may be dropped.
            self._ask("stream_value", _head(stored), value=stored)
            return None
        return (stored.data, tuple(map(bytes, stored.buffers))) if stored.buffers else stored.data

    def finish(self) -> None:
        """Wait until everything has been sent."""
        self._queue.put(_STOP)
        self._sent.get()
        if self._window.error is not None:
            raise self._window.error

    def __del__(self) -> None:
        # An interrupt may have come before there was a queue.
        with contextlib.suppress(AttributeError):
            self._queue.put(_STOP)


class _Stop:
    """Ends the thread that sends."""


_STOP = _Stop()


def _send(ask: Callable[..., Any], queue: SimpleQueue[Any], sent: SimpleQueue[None], window: _Window) -> None:
    goes_on = True
    while goes_on:
        items, goes_on = _gathered(queue)
        try:
            if items and window.error is None:
                window.allowed = ask("stream_items", items)[0]
        except PolyexecError as error:
            window.error = error
    sent.put(None)


def _gathered(queue: SimpleQueue[Any]) -> tuple[list[Item], bool]:
    """Wait for items; give all that are there, and whether there may be more."""
    items: list[Item] = []
    size = 0
    with contextlib.suppress(Empty):
        item = queue.get()
        while not isinstance(item, _Stop):
            items.append(item)
            size += _size(item)
            if size > _BATCH:
                return items, True
            item = queue.get_nowait()
        return items, False
    return items, True


def _size(item: Item) -> int:
    if isinstance(item, bytes):
        return len(item)
    return 0 if item is None else len(item[0]) + sum(map(len, item[1]))


@attrs.frozen
class StreamBody:
    """The body of a stream: iterates over what a function gives, as fast as its reader allows.

    Attributes:
        function: what the user has given.
        name: of the task.
    """

    function: Callable[..., Any]
    name: str

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Run the function, and send its items."""
        outlet = _Outlet(self.name)
        try:
            if outlet.has_room():
                self._give_all(self.function(*args, **kwargs), outlet)
        finally:
            outlet.finish()

    def _give_all(self, value: Any, outlet: _Outlet) -> None:
        items = iterated(value)
        if items is None:
            raise SpecificationError(
                f"task {self.name!r} was started by stream, which takes a generator function or one that returns an "
                f"iterable, but {type(value).__name__} is none"
            )
        with closing(items):
            goes_on = True
            while goes_on:
                item = next(items, _END)
                if item is _END:
                    return
                encoded = outlet.encoded(item)
                # Nothing of it may live until the next one comes (O5).
                del item
                goes_on = outlet.give(encoded)
                del encoded


def _head(stored: Stored) -> bytes:
    return stored.data[: Head.decode(stored.data)[1]]

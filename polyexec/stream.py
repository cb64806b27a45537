"""Streams as users hold them: an iterator of Futures, one for each item that a generator gives on a worker.

A ``Stream`` has no state of its own that changes: what its threads share is in its ``ItemSource`` and in the entry of
its end, whose only Future it holds; when that goes, the generator is stopped.
"""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import Any, Generic, NoReturn, TypeVar

from polyexec.errors import SpecificationError
from polyexec.future import Future
from polyexec.session import Entry, ItemSource, Session, task_session

T = TypeVar("T")


class Stream(Generic[T]):
    """Gives the items of a generator task, each as a Future that is done, in order and as they come (G1).

    Made by ``Executor.stream``. ``next`` waits for the next item, or raises what ended the generator, after all items
    that came before it (G3); ``async for`` does the same without blocking its loop. Closing it, leaving its ``with``
    block, or dropping it stops the generator: a paused one at its ``yield``, a running one as ``cancel`` does.

    Any number of threads may read a stream; each item goes to one of them. It is read where it was made: it cannot be
    passed to a task, but the Futures that it gives can, and their values then need not come here. It lives no longer
    than the task or the executor that made it; one that a method has made is read by all methods of its actor, and
    lives as long as that.
    """

    __slots__ = ("__weakref__", "_end", "_items", "_session")

    def __init__(self, session: Session, end: Future[Any], items: ItemSource) -> None:
        self._session = session
        self._end = end
        self._items = items

    @property
    def name(self) -> str:
        """Name of the task."""
        return self._end.name

    @property
    def attempts(self) -> int:
        """How often the body of the task has started (F5)."""
        return self._end.attempts

    def done(self) -> bool:
        """Say whether the task has ended; items may still be unread. Does not block."""
        return self._end.done()

    def cancel(self, *, force: bool = False, recursive: bool = True) -> bool:
        """Stop the task as ``Executor.cancel`` does; ``next`` raises ``TaskCancelled`` after the unread items.

        Blocks until it is known whether that worked, about a second at most.

        Args:
            force: end it whatever it does.
            recursive: cancel the tasks that it has submitted, too.

        Returns:
            Whether it will end as cancelled; False if it was too late (C8).
        """
        self._check_place()
        session, entry = self._end._here()
        return session.cancel(entry, force=force, recursive=recursive)

    def close(self) -> None:
        """Drop the unread items and stop the generator, whose ``finally`` blocks run (G3).

        Does not wait for its end. Harmless when called again, and when the stream has ended.
        """
        self._check_place()
        self._items.close()

    def __iter__(self) -> Stream[T]:
        return self

    def __next__(self) -> Future[T]:
        self._check_place()
        entry = self._items.poll() or self._items.take() or self._items.poll()
        if entry is None:
            self._raise_end()
            raise StopIteration
        return Future(self._session, entry)

    def __enter__(self) -> Stream[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __aiter__(self) -> Stream[T]:
        return self

    async def __anext__(self) -> Future[T]:
        self._check_place()
        entry = self._items.poll()
        while entry is None and not self._items.is_over():
            entry = await self._wait()
        entry = entry or self._items.poll()
        if entry is None:
            self._raise_end()
            raise StopAsyncIteration
        return Future(self._session, entry)

    async def _wait(self) -> Entry | None:
        """Wait until something has happened; give the next item if that was it."""
        import asyncio

        loop = asyncio.get_running_loop()
        woken: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            # A loop that is closed has given up waiting.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(lambda: None if woken.done() else woken.set_result(None))

        self._items.subscribe(wake)
        # What came before this was subscribed to wakes nobody.
        entry = self._items.poll()
        if entry is None and not self._items.is_over():
            await woken
            entry = self._items.poll()
        return entry

    async def aclose(self) -> None:
        """Do as ``close`` does."""
        self.close()

    async def __aenter__(self) -> Stream[T]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Stream is read where it was made and cannot be passed on: pass the Futures that it gives")

    def __repr__(self) -> str:
        return f"<Stream of {self.name!r}>"

    def _raise_end(self) -> None:
        """Raise what ended the generator, unless it is at its own end or was closed here."""
        self._items.raise_if_cut()
        if self._items.is_closed:
            return
        error = self._end.exception()
        if error is not None:
            try:
                raise error
            finally:
                # Breaks the cycle between the error's traceback and this frame.
                del self, error

    def _check_place(self) -> None:
        session = task_session()
        if session is None or session.executor_id != self._session.executor_id:
            return
        if not session.is_akin(self._session):
            raise SpecificationError(
                f"the stream {self.name!r} is used in a task that has not made it: pass the Futures that it gives"
            )

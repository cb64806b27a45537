"""Futures, and waiting for them.

A Future is a thin handle on an ``Entry``; all that several threads share is in the entry, which the session sets.
The decoded value is kept in the Future: two threads that ask at the same time may both decode, and either result
is kept.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from itertools import islice
from operator import attrgetter
from typing import Any, Generic, TypeVar, cast

from polyexec import outcome
from polyexec.errors import SpecificationError, TaskCancelled
from polyexec.payload import Reference
from polyexec.session import Entry, Session, session_for, task_session
from polyexec.stored import Stored, Tag

T = TypeVar("T")
_logger = logging.getLogger("polyexec")
_UNSET: Any = object()
_FEW = 8


class Future(Reference, Generic[T]):
    """A value that exists, or will: the result of a task, or something that was ``put``.

    Thread-safe. Executors make Futures. As a top-level argument of ``submit`` a Future is a dependency and is replaced
    by its value; elsewhere it stays a Future (S5). When the last Future of a value goes, the value is freed (O5); the
    task that makes it runs on (S16).
    """

    __slots__ = ("__weakref__", "_entry", "_memo", "_session")

    def __init__(self, session: Session, entry: Entry) -> None:
        self._memo: Any = _UNSET
        self._session = session
        self._entry = entry

    @property
    def reference_id(self) -> int:  # type: ignore[override]
        """Identify the value among those of its executor; whoever asks passes it on."""
        self._session.expose(self._entry)
        return self._entry.id

    @property
    def executor_id(self) -> str:
        """Identify the executor."""
        return self._session.executor_id

    @property
    def name(self) -> str:
        """Name of the task, or of the operation, that makes the value."""
        return self._entry.name

    @property
    def attempts(self) -> int:
        """How often the body of the task has started (F5)."""
        session, entry = self._here()
        session.refresh(entry)
        return entry.attempts

    def done(self) -> bool:
        """Say whether the value or its error is there. Does not block."""
        session, entry = self._here()
        if entry.tag is None:
            session.refresh(entry)
        return entry.tag is not None

    def running(self) -> bool:
        """Say whether the task has been handed to a worker and has not ended. Does not block."""
        session, entry = self._here()
        session.refresh(entry)
        return entry.running and entry.tag is None

    def cancelled(self) -> bool:
        """Say whether the task was cancelled, and has ended. Does not block."""
        return self.done() and self._here()[1].tag is Tag.CANCELLED

    def failed(self) -> bool:
        """Say whether the task has ended with an error, which a cancellation is not.

        Does not block, and does not fetch the error.
        """
        return self.done() and self._here()[1].tag in (Tag.ERROR, Tag.BROKEN)

    def cancel(self) -> bool:
        """Cancel the task as ``Executor.cancel`` does without force."""
        session, entry = self._here()
        return session.cancel(entry, force=False, recursive=True)

    def result(self, timeout: float | None = None, *, writable: bool = False) -> T:
        """Wait for the value and give it.

        Args:
            timeout: seconds to wait at most; None for ever.
            writable: give a copy that nobody else has, with arrays that can be changed, each time anew.

        Returns:
            The value; without ``writable`` it is the same each time, and arrays inside are read-only (O2).

        Raises:
            TimeoutError: it is not there in time; the task runs on (W5).
            TaskCancelled: the task was cancelled.
            Exception: what the task raised, with the traceback of the worker as its cause (F1).
        """
        value, error = self._copied(timeout) if writable else self._settled(timeout)
        if error is not None:
            try:
                raise error
            finally:
                # Breaks the cycle between the error's traceback and this frame.
                del self, error
        return cast(T, value)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the task to end and give its error, None if it has none.

        Args:
            timeout: seconds to wait at most; None for ever.

        Returns:
            The error.

        Raises:
            TimeoutError: the task has not ended in time.
            TaskCancelled: it was cancelled.
        """
        _, error = self._settled(timeout)
        if isinstance(error, TaskCancelled) and self._here()[1].tag is Tag.CANCELLED:
            raise error
        return error

    def add_done_callback(self, callback: Callable[[Future[T]], object]) -> None:
        """Call back with this Future once it is done; at once and here if it is done already.

        Args:
            callback: runs in a thread of the executor's own; what it raises is logged (S16).
        """
        session, entry = self._here()
        session.subscribe(entry, lambda: run_callback(callback, self))

    def __await__(self) -> Generator[Any, None, T]:
        """Wait in an asyncio coroutine, without blocking its loop."""
        import asyncio

        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def wake(_: object) -> None:
            # A loop that is closed has given up waiting.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(lambda: None if done.done() else done.set_result(None))

        self.add_done_callback(wake)
        yield from done.__await__()
        return self.result()

    def __reduce__(self) -> tuple[Any, ...]:
        entry = self._entry
        self._session.expose(entry)
        return _restore, (self._session.executor_id, entry.id, entry.name, entry.item)

    def __repr__(self) -> str:
        tag = self._entry.tag
        state = ("running" if self._entry.running else "pending") if tag is None else tag.name.lower()
        return f"<Future {self._entry.id} of {self._entry.name!r}: {state}>"

    def __del__(self) -> None:
        try:
            self._session.release(self._entry)
        except AttributeError:
            # The constructor failed, or the interpreter is going down.
            return

    def _here(self) -> tuple[Session, Entry]:
        """Give the session to ask: in a task that shares the driver's memory it is the task's, not the driver's."""
        session = task_session()
        if session is None or session is self._session or session.executor_id != self._session.executor_id:
            return self._session, self._entry
        return session, session.adopt(self._entry)

    def _settled(self, timeout: float | None) -> tuple[Any, BaseException | None]:
        if self._memo is _UNSET:
            session, entry = self._waited(timeout)
            self._memo = _decoded(session.fetch(entry), entry)
        return cast("tuple[Any, BaseException | None]", self._memo)

    def _copied(self, timeout: float | None) -> tuple[Any, BaseException | None]:
        session, entry = self._waited(timeout)
        stored = session.fetch(entry)
        return _decoded(stored, entry, buffers=[bytearray(buffer) for buffer in stored.buffers])

    def _waited(self, timeout: float | None) -> tuple[Session, Entry]:
        session, entry = self._here()
        if entry.tag is None:
            check_timeout(timeout)
            session.wait([entry], 1, timeout)
            if entry.tag is None:
                raise TimeoutError(f"task {entry.name!r} has not ended within {timeout:g} s; it runs on")
        entry.retrieved = self._entry.retrieved = True
        return session, entry


def _decoded(
    stored: Stored, entry: Entry, *, buffers: list[bytearray] | None = None
) -> tuple[Any, BaseException | None]:
    if entry.tag is not Tag.VALUE:
        error = outcome.decode_error(stored)
        if entry.note:
            # Some exceptions, frozen data classes among them, refuse notes.
            with contextlib.suppress(Exception):
                error.add_note(entry.note)
        return None, error
    try:
        value = outcome.decode(stored, entry.name, buffers=buffers)
    except KeyboardInterrupt:
        raise
    except Exception as failure:
        return None, failure
    return (value if entry.item is None else value[entry.item]), None


def _restore(executor_id: str, entry_id: int, name: str, item: int | None) -> Future[Any]:
    session = session_for(executor_id)
    return Future(session, session.pin(entry_id, name, item))


def promise(session: Session, name: str) -> Future[Any] | None:
    """Make a Future that a task will fulfil; None where tasks run inline."""
    entry = session.promise(name)
    return None if entry is None else Future(session, entry)


def fulfil(future: Future[T], value: T) -> None:
    """Give a promised Future its value, once."""
    session, entry = future._here()
    session.fulfil(entry, value)


def run_callback(callback: Callable[[Future[T]], object], future: Future[T]) -> None:
    """Run a callback; log what it raises."""
    try:
        callback(future)
    except BaseException:
        # Even SystemExit: a callback must not end a thread that serves others (S16).
        _logger.exception("a callback of %r raised", future)


def check_timeout(timeout: float | None) -> None:
    """Check that a time to wait is a number, or None."""
    if timeout is not None and not hasattr(timeout, "__float__"):
        raise SpecificationError(f"timeout= takes a number of seconds, or None to wait for ever, not {timeout!r}")


def entries_of(session: Session, futures: Iterable[Any]) -> list[Entry]:
    """Check that all are Futures of a session's executor, and give their entries (W3)."""
    entries = []
    for future in futures:
        if not isinstance(future, Future):
            raise SpecificationError(f"expected Futures, got {future!r} of type {type(future).__name__}")
        if future.executor_id != session.executor_id:
            raise SpecificationError(f"{future!r} belongs to another executor")
        entries.append(future._here()[1])
    return entries


_session_of = attrgetter("_session")
_entry_of = attrgetter("_entry")


def wait(
    session: Session, futures: Sequence[Future[T]], count: int | None, timeout: float | None
) -> tuple[list[Future[T]], list[Future[T]]]:
    """Wait for some Futures; see ``Executor.wait``."""
    unique, entries = _distinct(session, futures)
    wanted = len(unique) if count is None else min(count, len(unique))
    session.wait(entries, wanted, timeout)
    found = list(islice((index for index, entry in enumerate(entries) if entry.tag is not None), wanted))
    done = [unique[index] for index in found]
    if len(found) <= _FEW:
        # The others are copied as a whole, so that a program which takes one Future after the other is not held up.
        pending = list(unique)
        for index in reversed(found):
            del pending[index]
    else:
        taken = set(found)
        pending = [future for index, future in enumerate(unique) if index not in taken]
    return done, pending


def _distinct(session: Session, futures: Sequence[Future[T]]) -> tuple[Sequence[Future[T]], list[Entry]]:
    """Check Futures, and give them and their entries, each once; quickly if there is nothing unusual about them."""
    if set(map(type, futures)) <= {Future} and set(map(_session_of, futures)) <= {session}:
        entries = list(map(_entry_of, futures))
        if len(set(entries)) == len(entries):
            return futures, entries
    pairs = list(_paired(session, futures))
    return [future for future, _ in pairs], [entry for _, entry in pairs]


def _paired(session: Session, futures: Iterable[Future[T]]) -> Iterator[tuple[Future[T], Entry]]:
    futures = list(futures)
    seen: set[int] = set()
    for future, entry in zip(futures, entries_of(session, futures), strict=True):
        if entry.id not in seen:
            seen.add(entry.id)
            yield future, entry


def as_completed(session: Session, futures: Iterable[Future[T]], timeout: float | None) -> Iterator[Future[T]]:
    """Give Futures as they complete; see ``Executor.as_completed``."""
    waiting = {entry.id: (future, entry) for future, entry in _paired(session, futures)}
    completed = session.completed([entry for _, entry in waiting.values()], timeout)
    return (waiting.pop(entry.id)[0] for entry in completed)

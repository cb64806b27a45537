"""A Future of ``concurrent.futures`` that stands for one of polyexec.

What ``concurrent.futures`` needs to know, that it is over and how, the base class knows, as soon as ``settle`` has been
called: by the Future of polyexec that is done, or by a thread that waits for it, whichever comes first. The value or
the error is fetched and deserialised where somebody asks for it, once.

State: ``_claim`` is taken, for ever, by the one who settles; ``_lock`` guards ``_outcome`` once it is set; ``_source``
is set by the desk, under its lock, and cleared when there is an outcome.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import threading
import time
from typing import Any, Protocol, TypeVar, cast

import polyexec
from polyexec.adapters.standard_errors import InitializerFailed, translated

T = TypeVar("T")
_numbers = itertools.count()

_UNREAD = RuntimeError("the error of a call that nobody has asked for yet")
"""Tells the base class that there is an error."""


class Desk(Protocol):
    """What a Future needs of its executor."""

    executor: polyexec.Executor
    has_initializer: bool

    def ended(self, future: StandardFuture[Any]) -> None:
        """Learn that a call has ended."""

    def withdraw(self, future: StandardFuture[Any]) -> bool:
        """Take a call back that has not been handed to the executor; False if it has."""

    def await_place(self, future: StandardFuture[Any], timeout: float | None) -> None:
        """Wait until a call may have been handed to the executor, or until the time is over."""

    def break_down(self, error: InitializerFailed) -> None:
        """Learn that the initializer has failed."""


class StandardFuture(concurrent.futures.Future[T]):
    """What ``PolyexecExecutor.submit`` gives.

    Attributes:
        number: those that were made later have higher ones.
    """

    def __init__(self, desk: Desk) -> None:
        super().__init__()
        self.number = next(_numbers)
        self._desk = desk
        self._source: polyexec.Future[T] | None = None
        self._claim = threading.Lock()
        self._lock = threading.Lock()
        self._outcome: tuple[T | None, BaseException | None] | None = None

    def result(self, timeout: float | None = None) -> T:
        """Wait for the value and give it, the same each time; arrays in it can be changed.

        Args:
            timeout: seconds to wait at most; None for ever.

        Returns:
            The value.

        Raises:
            TimeoutError: it is not there in time; the call runs on.
            CancelledError: the call was cancelled.
            BaseException: what the call has raised.
        """
        value, error = self._outcome_within(timeout)
        if error is not None:
            try:
                raise error
            finally:
                # Breaks the cycle between the error's traceback and this frame.
                del self, error
        return cast(T, value)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the call to end and give its error, None if it has none; see ``result``."""
        return self._outcome_within(timeout)[1]

    def running(self) -> bool:
        """Say whether a worker has the call. Does not block."""
        source = self._source
        return source is not None and not self.done() and source.running()

    def cancel(self) -> bool:
        """Take the call back, if no worker has begun it, and say whether that worked.

        A call that runs is left alone, as with all executors of the standard library.
        """
        if self.done():
            return self.cancelled()
        if self._desk.withdraw(self):
            self._finish_cancelled()
            return True
        source = self._source
        if source is not None and self._desk.executor.cancel(source, running=False):
            self.await_end(None)
        return self.cancelled()

    def __repr__(self) -> str:
        if not self.done() or self.cancelled():
            state = "cancelled" if self.done() else "running" if self.running() else "pending"
        elif self._outcome is None:
            state = "finished"
        else:
            value, error = self._outcome
            state = f"finished returned {type(value).__name__}" if error is None else f"raised {type(error).__name__}"
        return f"<PolyexecExecutor's Future at {id(self):#x} state={state}>"

    # For the desk

    @property
    def source(self) -> polyexec.Future[T] | None:
        """The Future of polyexec, None if there is none yet, or no need of it any more."""
        return self._source

    def begin(self, source: polyexec.Future[T]) -> None:
        """Take the Future of polyexec; ``settle`` has to be called when it is done."""
        self._source = source

    def fail(self, error: BaseException) -> None:
        """End the call with an error that came instead of a Future of polyexec."""
        self._claim.acquire(blocking=False)
        self._outcome = (None, error)
        self._desk.ended(self)
        super().set_exception(error)

    def settle(self) -> bool:
        """Learn that the Future of polyexec is done; False if another thread is about to."""
        if not self._claim.acquire(blocking=False):
            return False
        source = self._source
        assert source is not None
        cancelled, failed = source.cancelled(), source.failed()
        if failed and self._desk.has_initializer:
            error = self.load()[1]
            if isinstance(error, InitializerFailed):
                self._desk.break_down(error)
        self._desk.ended(self)
        if cancelled:
            self._finish_cancelled()
        elif failed:
            super().set_exception(_UNREAD)
        else:
            super().set_result(cast(T, None))
        return True

    def load(self) -> tuple[T | None, BaseException | None]:
        """Give the value or the error of a call that has ended, and was not cancelled."""
        source = self._source
        if self._outcome is None and source is not None:
            found = _fetched(source)
            with self._lock:
                self._outcome = self._outcome or found
            # What the engine has stored can go.
            self._source = None
        assert self._outcome is not None
        return self._outcome

    def await_end(self, timeout: float | None) -> None:
        """Wait for the call to end; raises ``TimeoutError``. Tells the scheduler of polyexec who waits for what."""
        end = None if timeout is None else time.monotonic() + timeout
        while not self.done():
            source, left = self._source, _left(end)
            if source is None:
                self._desk.await_place(self, left)
            elif self._desk.executor.wait([source], timeout=left)[0]:
                if not self.settle():
                    # Whoever settles it needs nothing but a moment.
                    with contextlib.suppress(concurrent.futures.CancelledError):
                        super().exception()
                return
            if end is not None and time.monotonic() >= end and not self.done():
                raise TimeoutError

    def _outcome_within(self, timeout: float | None) -> tuple[T | None, BaseException | None]:
        self.await_end(timeout)
        if self.cancelled():
            raise concurrent.futures.CancelledError
        return self.load()

    def _finish_cancelled(self) -> None:
        super().cancel()
        super().set_running_or_notify_cancel()


def _fetched(source: polyexec.Future[T]) -> tuple[T | None, BaseException | None]:
    try:
        return source.result(writable=True), None
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return None, translated(error.with_traceback(None))


def _left(end: float | None) -> float | None:
    return None if end is None else max(0.0, end - time.monotonic())

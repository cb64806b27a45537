"""What a ``PolyexecExecutor`` and its Futures share: the calls that have not ended, and whether more are taken.

State: ``_lock`` guards everything whose name begins with an underscore; ``_moved`` is notified when a call has been
handed over, or has ended. The lock is never held while calls are serialised or user code runs. An executor that was
given with a bound on its calls (``limit``) is handed no more than that; the others wait here.
"""

from __future__ import annotations

import atexit
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any, TypeAlias

import polyexec
from polyexec import errors
from polyexec.adapters.standard_errors import InitializerFailed, translated
from polyexec.adapters.standard_future import StandardFuture

Job: TypeAlias = Callable[[polyexec.Executor], polyexec.Future[Any]]


class Desk:
    """Takes calls, and ends when all have ended.

    Args:
        executor: runs the calls.
        owned: close it at the end, at the exit of the program at the latest.
        limit: calls that it may be given at the same time; None for any number.
        workers: calls that are expected to run at the same time.
    """

    def __init__(self, executor: polyexec.Executor, *, owned: bool, limit: int | None, workers: int) -> None:
        self.executor = executor
        self.has_initializer = False
        self._owned = owned
        self._limit = limit
        self._workers = workers
        self._lock = threading.Lock()
        self._moved = threading.Condition(self._lock)
        self._pending: set[StandardFuture[Any]] = set()
        self._waiting: dict[StandardFuture[Any], Job] = {}
        self._made: weakref.WeakSet[StandardFuture[Any]] = weakref.WeakSet()
        self._handed = 0
        self._is_advancing = False
        self._is_shut = ""
        self._failure: InitializerFailed | None = None
        if owned:
            atexit.register(self._close, "interpreter shutdown")

    @property
    def is_broken(self) -> bool:
        """Whether the initializer has failed."""
        return self._failure is not None

    def submit(self, job: Job) -> StandardFuture[Any]:
        """Take a call.

        Raises:
            RuntimeError: the executor has been shut down.
            BrokenExecutor: the initializer has failed, or the engine is gone.
        """
        future: StandardFuture[Any] = StandardFuture(self)
        with self._lock:
            self._check()
            self._pending.add(future)
            if self._owned:
                self._made.add(future)
            if self._limit is not None and (self._waiting or self._handed >= self._limit):
                self._waiting[future] = job
                return future
            self._handed += 1
        error = self._hand(future, job)
        if error is None or isinstance(error, errors.SerializationError):
            return future
        if isinstance(error, errors.ExecutorClosed):
            raise RuntimeError(f"cannot schedule new futures after shutdown: {error}") from None
        raise translated(error) from None

    def _check(self) -> None:
        if self._failure is not None:
            raise InitializerFailed(*self._failure.args)
        if self._is_shut:
            raise RuntimeError(f"cannot schedule new futures after {self._is_shut}")

    def _hand(self, future: StandardFuture[Any], job: Job) -> Exception | None:
        """Hand a call to the executor; one that it does not take ends with its error, which is given."""
        try:
            source = job(self.executor)
        except Exception as error:
            future.fail(translated(error))
            return error
        with self._lock:
            future.begin(source)
            self._moved.notify_all()
        source.add_done_callback(lambda _: future.settle())
        return None

    # For the Futures

    def ended(self, future: StandardFuture[Any]) -> None:
        """Learn that a call has ended, and hand over the next."""
        with self._lock:
            self._pending.discard(future)
            self._handed -= 1
            self._moved.notify_all()
        self._advance()

    def _advance(self) -> None:
        """Hand over what there is room for; one thread at a time, which sees what the others do meanwhile."""
        while True:
            with self._lock:
                if self._is_advancing or not self._waiting or self._handed >= (self._limit or 0):
                    return
                future = next(iter(self._waiting))
                job = self._waiting.pop(future)
                self._handed += 1
                self._is_advancing = True
            try:
                self._hand(future, job)
            finally:
                self._is_advancing = False

    def withdraw(self, future: StandardFuture[Any]) -> bool:
        """Take a call back that waits here."""
        with self._lock:
            if self._waiting.pop(future, None) is None:
                return False
            self._pending.discard(future)
            self._moved.notify_all()
            return True

    def await_place(self, future: StandardFuture[Any], timeout: float | None) -> None:
        """Wait until a call may have been handed over, by waiting for those before it."""
        with self._lock:
            before = {one.source: one for one in self._pending if one.source is not None}
            if future.source is not None or future.done():
                return
            if not before:
                # Another thread is about to hand something over.
                self._moved.wait(timeout)
                return
        # A wait of the executor's own, so that in a task the scheduler knows what is waited for.
        done, _ = self.executor.wait(before, num_returns=1, timeout=timeout)
        for source in done:
            one = before[source]
            if not one.settle():
                one.await_end(None)

    def break_down(self, error: InitializerFailed) -> None:
        """Take no more calls."""
        with self._lock:
            self._failure = error

    # The end

    def shut_down(self, *, wait: bool, cancel: bool) -> None:
        """Take no more calls; see ``Executor.shutdown``."""
        with self._lock:
            self._is_shut = self._is_shut or "shutdown"
            pending = sorted(self._pending, key=lambda one: one.number) if cancel else []
        # The oldest are left alone: workers begin them, or are about to. The last ones come first, so that none starts
        # in the place of one that was cancelled before it.
        for future in reversed(pending[self._workers :]):
            future.cancel()
        if wait:
            self._close()
        elif self._owned:
            # The interpreter waits for this thread, as it waits for the calls of all executors.
            threading.Thread(target=self._close, name="polyexec-shutdown").start()

    def abandon(self) -> None:
        """Finish what there is: nobody refers to the executor any more."""
        if not self._is_shut:
            self.shut_down(wait=False, cancel=False)

    def _close(self, why: str = "shutdown") -> None:
        with self._lock:
            self._is_shut = self._is_shut or why
        self._drain()
        if self._owned:
            for future in tuple(self._made):
                # What the engine holds goes with it, and results can be asked for later.
                if future.done() and not future.cancelled():
                    future.load()
            self.executor.close()
            atexit.unregister(self._close)

    def _drain(self) -> None:
        while True:
            with self._lock:
                future = next(iter(self._pending), None)
            if future is None:
                return
            try:
                future.await_end(None)
            except CancelledError:
                continue

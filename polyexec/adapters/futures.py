"""An executor of ``concurrent.futures`` that runs its calls on any backend."""

from __future__ import annotations

import concurrent.futures
import time
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any, ParamSpec, TypeVar

import polyexec
from polyexec.adapters.desk import Desk
from polyexec.adapters.initializer import Initializer, forget, make_initializer, run_initialized
from polyexec.adapters.standard_future import StandardFuture
from polyexec.connection import connect_sized
from polyexec.prepare import function_name
from polyexec.session import task_session

P = ParamSpec("P")
T = TypeVar("T")


class PolyexecExecutor(concurrent.futures.Executor):
    """A ``concurrent.futures.Executor`` on any backend, for whatever takes one.

    Its Futures work with ``concurrent.futures.wait`` and ``as_completed``, and in asyncio. All methods may be called
    from any thread. It differs from ``ProcessPoolExecutor`` in what it allows: functions from anywhere can be submitted
    (S3), and a worker that dies costs only the call that ran there (F3), which fails with a ``BrokenProcessPool``.

    Args:
        max_workers: number of calls that run at the same time, at most; by default as many as the backend has cpus for.
        backend: a specification or a configuration, as for ``polyexec.connect``, or an open ``polyexec.Executor``,
            which is shared, and is not closed by ``shutdown``. By default as ``POLYEXEC_BACKEND`` says; in a task, the
            task's own.
        initializer: called in each worker before the first call there. If it raises an exception, the executor is
            broken.
        initargs: its arguments.

    Raises:
        ValueError: a number or a specification is wrong.
        TypeError: the initializer is not callable.
        BackendBroken: the engine does not start; ``connect`` says what else may happen.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        backend: str | polyexec.Executor | Any = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        if max_workers is not None and max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        executor, owned, limit = _opened(backend, max_workers)
        # Programs look at it to know how many calls are worth while.
        self._max_workers = max_workers or executor.info.workers
        self._desk = Desk(executor, owned=owned, limit=limit, workers=self._max_workers)
        self._initializer: Initializer | None = None
        if initializer is not None:
            name = uuid.uuid4().hex
            self._initializer = make_initializer(executor, name, initializer, tuple(initargs))
            self._desk.has_initializer = True
            weakref.finalize(self._desk, forget, name)
        self._finalizer = weakref.finalize(self, self._desk.abandon)
        self._finalizer.atexit = False

    @property
    def executor(self) -> polyexec.Executor:
        """The executor of polyexec that runs the calls."""
        return self._desk.executor

    @property
    def _broken(self) -> bool:
        """Whether the initializer has failed, under the name that the executors of the standard library have for it."""
        return self._desk.is_broken

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> StandardFuture[T]:
        """Run a function on a worker.

        Args:
            fn: any callable.
            *args: its arguments.
            **kwargs: its keyword arguments.

        Returns:
            A Future. If something cannot be serialised, that is its error, a ``PicklingError``.

        Raises:
            RuntimeError: the executor has been shut down.
            BrokenExecutor: the initializer has failed, or the engine is gone.
        """
        if not callable(fn):
            raise TypeError(f"submit takes a function and its arguments, but {fn!r} is not callable")
        return self._desk.submit(partial(_start, self._initializer, fn, args, kwargs))

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Apply a function to the items of iterables.

        Args:
            fn: called with one item of each iterable.
            *iterables: the shortest ends the map. They are read at once, without a buffer size.
            timeout: seconds from now until the last result must be there.
            chunksize: items in one call.
            buffersize: calls that are handed over and whose results have not been taken; None for any number.

        Returns:
            An iterator of results in the order of the items; an error is raised at its place. What is not needed any
            more is taken back.

        Raises:
            ValueError: a number is wrong.
            TimeoutError: from the iterator, when the time is over.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if buffersize is not None and not isinstance(buffersize, int):
            raise TypeError("buffersize must be an integer or None")
        if buffersize is not None and buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
        end = None if timeout is None else time.monotonic() + timeout
        items = zip(*iterables, strict=False)
        calls = _calls(fn, items) if chunksize == 1 else _chunks(fn, items, chunksize)
        futures = deque(self.submit(*call) for call in islice(calls, buffersize))
        found = _results(self.submit, futures, calls if buffersize is not None else iter(()), end)
        return found if chunksize == 1 else _flat(found)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls, and end the backend if this executor has started it.

        Args:
            wait: block until all calls have ended; otherwise that happens behind the scenes.
            cancel_futures: take back what no worker has begun; the oldest calls, as many as there are workers, count as
                begun.
        """
        self._desk.shut_down(wait=wait, cancel=cancel_futures)

    def __repr__(self) -> str:
        return f"<PolyexecExecutor on {self._desk.executor.info}>"


def _opened(backend: Any, max_workers: int | None) -> tuple[polyexec.Executor, bool, int | None]:
    """Give an executor, whether it is our own, and how many calls it may be given at the same time."""
    if isinstance(backend, polyexec.Executor):
        return backend, False, max_workers
    if backend is None and task_session() is not None:
        return polyexec.current(), False, max_workers
    executor, sized = connect_sized(backend, max_workers)
    return executor, True, None if sized else max_workers


def _start(
    initializer: Initializer | None,
    function: Callable[..., T],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    executor: polyexec.Executor,
) -> polyexec.Future[T]:
    if initializer is None:
        return executor.submit(function, *args, **kwargs)
    named = executor.options(name=function_name(function))
    return named.submit(run_initialized, initializer, function, *args, **kwargs)


def _calls(function: Callable[..., T], items: Iterator[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    return ((function, *item) for item in items)


def _chunks(function: Callable[..., T], items: Iterator[tuple[Any, ...]], size: int) -> Iterator[tuple[Any, ...]]:
    while chunk := tuple(islice(items, size)):
        yield _run_chunk, function, chunk


def _run_chunk(function: Callable[..., T], chunk: tuple[tuple[Any, ...], ...]) -> list[T]:
    return [function(*item) for item in chunk]


def _flat(chunks: Iterator[list[T]]) -> Iterator[T]:
    for chunk in chunks:
        chunk.reverse()
        while chunk:
            yield chunk.pop()


def _results(
    submit: Callable[..., StandardFuture[T]],
    futures: deque[StandardFuture[T]],
    calls: Iterator[tuple[Any, ...]],
    end: float | None,
) -> Iterator[T]:
    try:
        while futures:
            # Left in its place while it is waited for, so that it is taken back if the time is over.
            futures[0].await_end(None if end is None else max(0.0, end - time.monotonic()))
            for call in islice(calls, 1):
                futures.append(submit(*call))
            yield futures.popleft().result()
    finally:
        # The last ones first, so that none starts in the place of one that was cancelled before it.
        for future in reversed(futures):
            future.cancel()

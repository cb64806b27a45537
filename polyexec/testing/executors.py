"""The executors that the suite opens: one at a time, most of them shared by many tests."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import attrs

import polyexec
from polyexec import Executor, Future
from polyexec.testing.target import SHARED_KEYS, Target
from polyexec.testing.tools import PATIENCE, eventually
from polyexec.testing.watch import Snapshot

_CLOSE_LIMIT = PATIENCE


class Recorder(logging.Handler):
    """Collects the records of the logger ``polyexec``, at every level, while it is used as a context."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[logging.LogRecord] = []
        self._logger = logging.getLogger("polyexec")
        self._level = self._logger.level

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        self.records.append(record)

    def texts(self, level: int) -> list[str]:
        """Give the messages of a level."""
        return [record.getMessage() for record in self.records if record.levelno == level]

    def __enter__(self) -> Recorder:
        self._level = self._logger.level
        self._logger.setLevel(logging.DEBUG)
        self._logger.addHandler(self)
        return self

    def __exit__(self, *exc: object) -> None:
        self._logger.removeHandler(self)
        self._logger.setLevel(self._level)


@attrs.define(eq=False)
class Executors:
    """Opens and closes executors of the backend under test.

    Attributes:
        target: the backend under test.
        engine: name and version of the engine, empty until one was opened.
        on_open: told the engine each time one is opened.
        connecting: what was logged while the shared executor was opened.
        after_open: what was there when it was open and had run its first tasks.
        closed: the shared executor that was closed last, and one of its Futures.
    """

    target: Target
    engine: str = ""
    on_open: Callable[[str], object] = attrs.field(default=str)
    connecting: Recorder = attrs.field(factory=Recorder)
    after_open: Snapshot | None = None
    closed: tuple[Executor, Future[Any]] | None = None
    _kind: str = ""
    _shared: Executor | None = None
    _first: Future[Any] | None = None

    def shared(self, kind: str, keys: dict[str, Any]) -> Executor:
        """Give the open executor of a kind; opens it, after closing that of another kind."""
        if self._shared is None or self._kind != kind:
            self.close()
            self.connecting = Recorder()
            with self.connecting:
                self._shared = self._connect(keys if self.target.own_cluster else {})
            self._kind = kind
            self._first = _warm_up(self._shared)
            self.after_open = Snapshot.take()
        return self._shared

    @contextmanager
    def opened(self, **keys: Any) -> Iterator[Executor]:
        """Open an executor for one test, and close it."""
        self.close()
        executor = self._connect(keys)
        try:
            yield executor
        finally:
            end(executor)

    def close(self) -> None:
        """Close the shared executor, if one is open; raises ``AssertionError`` if that hangs."""
        executor, first = self._shared, self._first
        self._shared = self._first = self.after_open = None
        if executor is not None and first is not None:
            self.closed = executor, first
            end(executor)

    def close_one(self) -> tuple[Executor, Future[Any]]:
        """Give a shared executor that is closed, with one of its Futures; opens one for that if none was yet."""
        if self.closed is None:
            self.shared("ex", SHARED_KEYS)
        self.close()
        assert self.closed is not None
        return self.closed

    def _connect(self, keys: dict[str, Any]) -> Executor:
        executor = polyexec.connect(self.target.with_keys(**keys))
        self.engine = executor.info.engine
        self.on_open(self.engine)
        return executor


def end(executor: Executor) -> None:
    """Cancel what an executor runs and close it; raises ``AssertionError`` if that hangs."""
    thread = threading.Thread(target=executor.close, kwargs={"cancel_pending": True}, daemon=True)
    thread.start()
    thread.join(_CLOSE_LIMIT)
    if thread.is_alive():
        raise AssertionError(f"close(cancel_pending=True) hangs for {_CLOSE_LIMIT:g} s")


def _warm_up(executor: Executor) -> Future[Any]:
    count = max(2, int(executor.resources().total.cpus))
    futures = [executor.submit(int, index) for index in range(2 * count)]
    for future in futures:
        future.result(_CLOSE_LIMIT)
    return futures[0]


def idle(executor: Executor) -> bool:
    """Tell whether everything that an executor has is available."""
    resources = executor.resources()
    return resources.available == resources.total


def until_idle(executor: Executor) -> None:
    """Wait until an executor has everything available; raises ``AssertionError`` if that does not happen."""
    resources = executor.resources
    eventually(lambda: idle(executor), lambda: f"all of {resources().total} is available; {resources().available} is")

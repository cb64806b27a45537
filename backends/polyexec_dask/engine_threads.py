"""What Dask leaves behind in a process that has only borrowed it: log lines and a thread."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from types import TracebackType
from typing import ParamSpec, TypeVar

import distributed.utils
from distributed import Client, Scheduler, Worker
from distributed.core import Status

_logger = logging.getLogger("polyexec.dask")
P = ParamSpec("P")
T = TypeVar("T")
_LATE_LOGGERS = ("distributed.http.proxy",)


class Watch:
    """While it is entered, what Dask logs in this thread goes to ``polyexec.dask`` at debug level instead.

    The backend reports by itself what becomes of calls and workers. Other users of Dask in this process still see
    their own lines.
    """

    def __init__(self) -> None:
        self._thread = 0
        self._loggers: list[logging.Logger] = []

    def __enter__(self) -> None:
        self._thread = threading.get_ident()
        _install_offload_thread()
        names = [name for name in logging.root.manager.loggerDict if name.split(".")[0] == "distributed"]
        self._loggers = [logging.getLogger(name) for name in {*names, *_LATE_LOGGERS}]
        for logger in self._loggers:
            logger.addFilter(self._filter)

    def _filter(self, record: logging.LogRecord) -> bool:
        if record.thread != self._thread:
            return True
        _logger.debug("%s: %s", record.name, record.getMessage())
        return False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for logger in self._loggers:
            logger.removeFilter(self._filter)
        _retire_offload_thread()


class _LateThread(ThreadPoolExecutor):
    """One thread that still takes jobs when the interpreter exits, as the executors of the standard library do not.

    Then tasks of a program that has not closed its executor are still to be brought to their workers.
    """

    def __init__(self) -> None:
        super().__init__(max_workers=1)
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="Dask-Offload", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            del job

    def submit(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Take a job."""
        future = Future[T]()

        def job() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function(*args, **kwargs))
                except BaseException as error:
                    future.set_exception(error)

        self._jobs.put(job)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the thread after the jobs that it has."""
        self._jobs.put(None)
        if wait:
            self._thread.join()


def _install_offload_thread() -> None:
    # The one before it ends by itself when nobody uses it any more.
    if not isinstance(distributed.utils._offload_executor, _LateThread):
        distributed.utils._offload_executor = _LateThread()


def _retire_offload_thread() -> None:
    """End Dask's helper thread, which it never ends by itself, unless somebody else uses Dask in this process."""
    servers = [*Scheduler._instances, *Worker._instances]
    if any(client.status != "closed" for client in Client._instances):
        return
    if any(server.status not in (Status.closed, Status.failed) for server in servers):
        return
    old = distributed.utils._offload_executor
    distributed.utils._offload_executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="Dask-Offload")
    old.shutdown(wait=True)

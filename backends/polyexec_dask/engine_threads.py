"""What Dask leaves behind in a process that has only borrowed it: log lines and a thread."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

import distributed.utils
from distributed import Client, Scheduler, Worker
from distributed.core import Status

_logger = logging.getLogger("polyexec.dask")
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

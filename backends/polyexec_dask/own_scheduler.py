"""The scheduler of a cluster of our own, in this process, and the client that is connected to it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any

from distributed import Scheduler, SchedulerPlugin

from polyexec_dask import engine

LOOPBACK = "127.0.0.1"
_FOREVER_SECONDS = 100 * 365 * 86_400.0
_CLIENT_INTERVAL_SECONDS = 0.001


class PlainScheduler(Scheduler):
    """A scheduler without an HTTP server."""

    def start_http_server(self, *arguments: Any, **options: Any) -> None:
        """Listen for nobody."""


class Arrivals(SchedulerPlugin):
    """Tells of each new worker its name and its address."""

    name = "polyexec-arrivals"

    def __init__(self, arrived: Callable[[str, str], None]) -> None:
        self._arrived = arrived

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        self._arrived(str(scheduler.workers[worker].name), worker)


async def start(protection: Any, arrived: Callable[[str, str], None], folder: str, *, dashboard: bool) -> Any:
    """Start a scheduler in the running event loop, on the loopback interface.

    Args:
        protection: Dask's security, or None.
        arrived: called with the name and the address of each new worker.
        folder: for its temporary files.
        dashboard: whether it serves Dask's dashboard.

    Returns:
        The scheduler.
    """
    options: dict[str, Any] = {"dashboard": True, "dashboard_address": f"{LOOPBACK}:0"} if dashboard else {}
    kind: Any = Scheduler if dashboard else PlainScheduler
    scheduler = kind(
        host=LOOPBACK,
        port=0,
        security=protection,
        allowed_failures=0,
        # A worker whose task holds the interpreter lock cannot say that it lives.
        worker_ttl=_FOREVER_SECONDS,
        local_directory=folder,
        needs_workdir=False,
        **options,
    )
    # Dask puts the folder before all else on the import path of this process, and may leave it there.
    with contextlib.suppress(ValueError):
        sys.path.remove(scheduler.local_directory)
    scheduler.add_plugin(Arrivals(arrived))
    await scheduler
    return scheduler


async def stop(scheduler: Any) -> None:
    """End a scheduler.

    What it calls is taken from it: Dask keeps the methods of closed servers in a cache of its own (``lru_cache`` in
    ``distributed.core``), and with them the last ten schedulers or so.
    """
    await scheduler.close()
    scheduler.remove_plugin(Arrivals.name)


def dashboard(scheduler: Any) -> str | None:
    """Give the address of a scheduler's dashboard, if it has one."""
    service = scheduler.services.get("dashboard")
    return None if service is None else f"http://{LOOPBACK}:{service.port}/status"


async def connect(address: str, protection: Any) -> Any:
    """Connect a client that is not the default one of this process, and that sends without delay."""
    client = await engine.Client(address, security=protection, asynchronous=True, set_as_default=False)
    client.scheduler_comm.interval = _CLIENT_INTERVAL_SECONDS
    return client

"""One worker process of a cluster of our own: a plain Dask worker with our agent in it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from typing import Any

from distributed import Worker

from polyexec_dask.plugin import AgentPlugin


class PlainWorker(Worker):
    """A worker without an HTTP server."""

    def start_http_server(self, *arguments: Any, **options: Any) -> None:
        """Listen for nobody: the scheduler's dashboard is the only one."""


def main(specification: dict[str, Any], folder: str) -> None:
    """Run a worker until it is told to close.

    Args:
        specification: ``executor_id``, ``setup``, and the worker's own options under ``options``.
        folder: for Dask's temporary files; somebody else removes it.
    """
    _reseed()
    # The driver reports what becomes of workers and calls; Dask's own lines would only repeat it.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    asyncio.run(_serve(specification, folder))


async def _serve(specification: dict[str, Any], folder: str) -> None:
    plugin = AgentPlugin(specification["executor_id"], specification["setup"])
    options = specification["options"]
    worker: Any = PlainWorker(local_directory=folder, plugins=(plugin,), **options)
    # Dask puts its folder before all else on the import path.
    with contextlib.suppress(ValueError):
        sys.path.remove(worker.local_directory)
    async with worker:
        await worker.finished()


def _reseed() -> None:
    # Python reseeds ``random`` in a forked process; NumPy does not reseed its global generator.
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()

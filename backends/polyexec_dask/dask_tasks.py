"""Starting calls as Dask tasks, many at a time, and letting Dask forget them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any

from polyexec_dask.plugin import run_call

_RELEASE_SECONDS = 0.05


class DaskTasks:
    """The tasks of one executor in Dask's books.

    Args:
        client: Dask's client.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._spent: deque[Any] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def start(self, address: str, executor_id: str, numbers: Sequence[int], keys: Sequence[str]) -> list[Any]:
        """Start tasks on one worker, in order.

        Args:
            address: the worker's.
            executor_id: whose calls.
            numbers: for ``run_call``.
            keys: Dask's names for the tasks; none may ever be used again.

        Returns:
            Dask's futures.
        """
        futures: list[Any] = self._client.map(
            run_call,
            [executor_id] * len(numbers),
            list(numbers),
            key=list(keys),
            workers=[address],
            pure=False,
            retries=0,
            fifo_timeout="0s",
        )
        return futures

    def release(self, future: Any) -> None:
        """Let Dask forget a task, as soon as it knows that the task has ended: sooner would cancel it in its books."""
        self._spent.append(future)
        if self._timer is None:
            self._timer = self._loop.call_later(_RELEASE_SECONDS, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        for _ in range(len(self._spent)):
            future = self._spent.popleft()
            if not future.done():
                self._spent.append(future)
        if self._spent:
            self._timer = self._loop.call_later(_RELEASE_SECONDS, self._sweep)

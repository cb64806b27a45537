"""How worker processes of an existing cluster ended, as their nannies saw it."""

from __future__ import annotations

import asyncio
from typing import Any

from distributed import Nanny, NannyPlugin

_NAME = "polyexec-exits"
_WAIT_SECONDS = 1.0
_STEP_SECONDS = 0.02
_ends: dict[str, int] = {}


class ExitRecorder(NannyPlugin):
    """Notes the exit status of each worker process, by the worker's address.

    It stays in the nannies when an executor closes, because others may use it; it holds an integer per dead worker.
    """

    name = _NAME
    idempotent = True

    def setup(self, nanny: Nanny) -> None:
        """Listen for the ends of this nanny's workers; Dask calls this."""
        watched: Any = nanny
        original = watched._on_worker_exit_sync

        def on_exit(status: int) -> None:
            if nanny.process is not None:
                _ends[str(nanny.process.worker_address)] = status
            original(status)

        watched._on_worker_exit_sync = on_exit
        if nanny.process is not None:
            nanny.process.on_exit = on_exit


async def exit_status(address: str) -> int | None:
    """Tell how a worker ended; runs in its nanny.

    Args:
        address: Dask's address of the worker.

    Returns:
        Its exit status, negative for a signal, or None if it is not known within a second.
    """
    for _ in range(int(_WAIT_SECONDS / _STEP_SECONDS)):
        if address in _ends:
            return _ends[address]
        await asyncio.sleep(_STEP_SECONDS)
    return _ends.get(address)


def as_death(status: int | None) -> dict[str, Any]:
    """Turn an exit status into the fields of a ``Death``; Dask's own 255 means that it is not known."""
    if status is None or status == 255:
        return {}
    return {"signal": -status} if status < 0 else {"exit_code": status}

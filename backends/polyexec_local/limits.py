"""What memory calls may take, and which of them have died for lack of it (F11).

Belongs to the core's thread, like the pool of which it is a part.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import time
from collections.abc import Iterator

from polyexec import memory_usage
from polyexec_local.member import Worker
from polyexec_local.memory_watch import MemoryWatch, Shortage

_logger = logging.getLogger("polyexec")


class Limits:
    """Watches the workers whose calls have asked for memory."""

    def __init__(self) -> None:
        self._roots: dict[int, Worker] = {}
        self._watch = MemoryWatch(lambda: self._roots)
        self._kernel_kills = memory_usage.oom_kills()

    def begin(self, worker: Worker) -> None:
        """Watch a worker's call if it has asked for memory, and if the worker's process is known."""
        if worker.parcel is not None and worker.parcel.memory and worker.pid is not None and worker.root is None:
            # The keeper above it adopts what is orphaned there.
            worker.root = _parent(worker.pid) or worker.pid
            self._roots[worker.root] = worker
            self._watch.begin(worker.root, worker.parcel.memory, time.monotonic())

    def end(self, worker: Worker) -> None:
        """Forget a worker's call."""
        if worker.root is not None:
            self._watch.end(worker.root)
            del self._roots[worker.root]
            worker.root = None

    def due(self) -> float | None:
        """Give the monotonic time of the next check, None if there is nothing to watch."""
        return self._watch.due() if self._roots else None

    def outgrown(self) -> Iterator[tuple[Worker, str]]:
        """Give the workers whose calls take more than they asked for, and why they are to be ended."""
        now = time.monotonic()
        if not self._roots or now < self._watch.due():
            return
        findings = self._watch.check(now)
        for found in findings.outgrown:
            yield self._roots[found.pid], str(found)
        if findings.shortage is not None:
            _tell(findings.shortage)

    def cause_of(self, number: int | None) -> str:
        """Give the likely cause of a death by a signal, empty if nothing is known."""
        if number != signal.SIGKILL:
            return ""
        before, self._kernel_kills = self._kernel_kills, memory_usage.oom_kills()
        return memory_usage.KERNEL_KILL if self._kernel_kills > before else ""


def _tell(shortage: Shortage) -> None:
    _logger.warning(
        "the machine is nearly out of memory: %d of %d bytes are left; the largest worker, process %s, has %d",
        shortage.available,
        shortage.total,
        shortage.pid,
        shortage.used,
    )


def _parent(pid: int) -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[1])
    return None

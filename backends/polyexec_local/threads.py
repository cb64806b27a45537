"""Tasks in threads of this process.

State: ``_idle`` is a queue of free threads, to which each thread adds itself before it reports the end of its call,
and from which the core's thread takes; ``_threads`` belongs to the core's thread, and to ``close`` after it.
"""

from __future__ import annotations

import threading
from collections import deque
from queue import SimpleQueue
from typing import ClassVar

import attrs

from polyexec.config import LocalClusterConfig
from polyexec.spi import Call, Capabilities, Deviation
from polyexec_local.deviations import IN_PROCESS, SHARED_PROCESS
from polyexec_local.inprocess import InProcessBackend
from polyexec_local.sizes import slots_for


@attrs.frozen(kw_only=True)
class ThreadsConfig(LocalClusterConfig):
    """Configuration of ``threads``."""


class _Worker:
    def __init__(self, backend: ThreadsBackend, number: int) -> None:
        self.calls: SimpleQueue[Call | None] = SimpleQueue()
        self._backend = backend
        self.thread = threading.Thread(target=self._work, name=f"polyexec-worker-{number}", daemon=True)
        self.thread.start()

    def _work(self) -> None:
        self._backend.local.worker = self
        while (call := self.calls.get()) is not None:
            self._backend.run(call)
            # Nothing of the call may live until the next one comes (O5).
            del call


class ThreadsBackend(InProcessBackend):
    """Runs calls in threads that share the memory of the driver."""

    Config = ThreadsConfig
    capabilities = Capabilities(processes=False, shares_arguments=True)
    deviations: ClassVar[tuple[Deviation, ...]] = IN_PROCESS + SHARED_PROCESS

    def __init__(self, config: ThreadsConfig) -> None:
        super().__init__(config)
        self.local = threading.local()
        self._idle: deque[_Worker] = deque()
        self._threads: list[_Worker] = []

    def slots(self) -> int:
        """Leave room for tasks that hold no cpu."""
        return slots_for(self.config)

    def submit(self, call: Call) -> None:
        """Hand the call to an idle thread, or to a new one: the core never runs more calls than there may be."""
        try:
            worker = self._idle.pop()
        except IndexError:
            worker = _Worker(self, len(self._threads))
            self._threads.append(worker)
        worker.calls.put(call)

    def ended(self) -> None:
        """Add this thread to those that are idle."""
        self._idle.append(self.local.worker)

    def close(self, *, kill: bool) -> None:
        """End all threads; those that cannot be interrupted are left to end by themselves if ``kill`` is set."""
        for worker in self._threads:
            worker.calls.put(None)
        for worker in self._threads:
            if not kill:
                worker.thread.join()

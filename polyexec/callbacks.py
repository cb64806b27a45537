"""The thread on which an executor runs the code of its users: callbacks, retry hooks, log handlers.

The thread is started when it is first needed. Its queue is all that it shares; jobs run one after the other, but for
those that wait for another job: ``step_aside`` lets a new thread go on with the queue. ``_threads`` is replaced as a
whole by who posts first, and by the thread that steps aside; its last one serves the queue.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

_logger = logging.getLogger("polyexec")


class CallbackThread:
    """Runs jobs in order; for posting from one thread, the loop.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._ended = False
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def post(self, job: Callable[[], None]) -> None:
        """Run a job soon, without blocking; after ``stop`` here and now."""
        if self._ended:
            _run(job)
            return
        self._jobs.put(job)
        if not self._threads:
            self._start()

    def _start(self) -> None:
        thread = threading.Thread(target=self._work, name=self._name, daemon=True)
        self._threads = [*(one for one in self._threads if one.is_alive()), thread]
        thread.start()

    def is_current(self) -> bool:
        """Say whether this code runs in the thread, or in one that has stepped aside."""
        return bool(self._threads) and threading.current_thread() in tuple(self._threads)

    def step_aside(self) -> None:
        """Let others run while the job of this thread waits, if this is the thread: it may wait for one of them."""
        if self._threads and self._threads[-1] is threading.current_thread() and not self._ended:
            self._start()

    def stop(self, patience: float | None = None) -> None:
        """Run what was posted, then end the thread; wait for it unless this is it.

        Args:
            patience: seconds to wait for it at most.
        """
        self._ended = True
        self._jobs.put(None)
        if not self.is_current():
            for thread in tuple(self._threads):
                thread.join(patience)

    def _work(self) -> None:
        while self._threads[-1] is threading.current_thread() and (job := self._jobs.get()) is not None:
            _run(job)
            # Nothing of a job may live until the next one comes (O5).
            del job


def _run(job: Callable[[], None]) -> None:
    try:
        job()
    except BaseException:
        # A user's code must not end the thread that serves others (S16).
        _logger.exception("a callback raised")

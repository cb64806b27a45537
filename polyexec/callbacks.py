"""The thread on which an executor runs the code of its users: callbacks, retry hooks, log handlers.

The thread is started when it is first needed. Its queue is all that it shares; jobs run one after the other.
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
        self._thread: threading.Thread | None = None

    def post(self, job: Callable[[], None]) -> None:
        """Run a job soon, without blocking; after ``stop`` here and now."""
        if self._ended:
            _run(job)
            return
        self._jobs.put(job)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()

    def is_current(self) -> bool:
        """Say whether this code runs in the thread."""
        return self._thread is threading.current_thread()

    def stop(self, patience: float | None = None) -> None:
        """Run what was posted, then end the thread; wait for it unless this is it.

        Args:
            patience: seconds to wait for it at most.
        """
        self._ended = True
        if self._thread is None:
            return
        self._jobs.put(None)
        if not self.is_current():
            self._thread.join(patience)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            _run(job)
            # Nothing of a job may live until the next one comes (O5).
            del job


def _run(job: Callable[[], None]) -> None:
    try:
        job()
    except BaseException:
        # A user's code must not end the thread that serves others (S16).
        _logger.exception("a callback raised")

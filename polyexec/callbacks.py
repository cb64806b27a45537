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
    """Runs jobs in order; for posting from one thread, the loop."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def post(self, job: Callable[[], None]) -> None:
        """Run a job soon. Does not block."""
        self._jobs.put(job)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="polyexec-callbacks", daemon=True)
            self._thread.start()

    def is_current(self) -> bool:
        """Say whether this code runs in the thread."""
        return self._thread is threading.current_thread()

    def stop(self) -> None:
        """Run what was posted, then end the thread; wait for it unless this is it."""
        if self._thread is None:
            return
        self._jobs.put(None)
        if not self.is_current():
            self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except BaseException:
                # A user's code must not end the thread that serves others (S16).
                _logger.exception("a callback raised")
            # Nothing of a job may live until the next one comes (O5).
            del job

"""A thread that does slow things for one that must not wait."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any


class Helper:
    """Runs functions one after the other in a thread.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]] | None] = SimpleQueue()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._name = name

    def start(self) -> None:
        """Start the thread if it does not run. From any thread.

        Raises:
            RuntimeError: the system allows no more threads, or the interpreter is about to end.
        """
        with self._starting:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                thread.start()
                self._thread = thread

    def post(self, function: Callable[..., None], *args: Any) -> None:
        """Let a function run soon. From any thread; at once, and the thread must have been started."""
        self._jobs.put((function, args))

    def stop(self) -> None:
        """Finish what was posted, and end the thread. Blocks."""
        self._jobs.put(None)
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            function, args = job
            try:
                function(*args)
            except Exception:
                # Others wait for the jobs that follow.
                logging.getLogger("polyexec").exception("a job of the thread %s has failed", self._name)
            # Nothing of a job may live here until the next one comes (O5).
            del job, function, args

"""One thread that runs functions posted to it, and timers: the owner of all that needs one."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

_BATCH = 256

_LONGEST_PAUSE = 3600.0
"""Seconds; the system's own limit for a wait is less than what users may give as a timeout."""


class Loop:
    """Runs what is posted, in order.

    Args:
        name: of the thread.
        pause: gives the seconds until something is due, None if nothing is.
        advance: called after each batch, and when something is due.
        failed: called with what a posted function, or ``advance``, has raised.
    """

    def __init__(
        self,
        name: str,
        pause: Callable[[], float | None],
        advance: Callable[[], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self._posted: SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]]] = SimpleQueue()
        self._pause = pause
        self._advance = advance
        self._failed = failed
        self._stopped = False
        self._ended = False
        self._after_end = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def post(self, function: Callable[..., None], *args: Any) -> None:
        """Let the thread call a function. Never blocks, and may be called inside any other code."""
        self._posted.put((function, args))
        if self._ended:
            self._take_rest()

    def is_current(self) -> bool:
        """Say whether this code runs in the thread."""
        return self._thread is threading.current_thread()

    def stop(self) -> None:
        """End the thread after what was posted before; wait for its end unless this is it."""
        self.post(self._stop)
        if not self.is_current():
            self._thread.join()

    def _stop(self) -> None:
        self._stopped = True

    def _run(self) -> None:
        while not self._stopped:
            self._take_batch()
            self._guarded(self._advance)
        self._ended = True
        self._take_rest()

    def _take_rest(self) -> None:
        """Do what comes too late for the thread, in any thread: nothing that is posted may be lost.

        Whoever does not get the lock leaves its part to whoever has it, and who looks again after giving it back.
        """
        while not self._posted.empty() and self._after_end.acquire(blocking=False):
            try:
                self._guarded_item(self._posted.get_nowait())
                self._guarded(self._advance)
            finally:
                self._after_end.release()

    def _take_batch(self) -> None:
        try:
            pause = self._pause()
            function, args = self._posted.get(timeout=None if pause is None else min(pause, _LONGEST_PAUSE))
            self._guarded(function, *args)
            del function, args
            for _ in range(_BATCH):
                self._guarded_item(self._posted.get_nowait())
        except queue.Empty:
            return

    def _guarded_item(self, item: tuple[Callable[..., None], tuple[Any, ...]]) -> None:
        self._guarded(item[0], *item[1])

    def _guarded(self, function: Callable[..., None], *args: Any) -> None:
        try:
            function(*args)
        except Exception as error:
            self._failed(error)

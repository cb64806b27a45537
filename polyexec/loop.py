"""One thread that runs functions posted to it, and timers: the owner of all that needs one.

``_sleeping`` and ``_sleep_number`` are written by the thread alone, ``_woken`` by those who wake it. Whoever posts
adds to the inbox first and looks at ``_sleeping`` then; the thread sets it first and looks at the inbox then; so
either the thread sees what was posted, or it is woken.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

from polyexec.spi import Poller

_BATCH = 256

_LONGEST_POLL = 1.0
"""Seconds; Ctrl-C may come between posting and waking, and then nobody wakes the thread."""


class QueuePoller:
    """Lets the thread wait where there is nothing but posts to wait for."""

    def __init__(self) -> None:
        self._tokens: SimpleQueue[None] = SimpleQueue()

    def poll(self, timeout: float | None) -> None:
        """Wait for ``wake``."""
        try:
            self._tokens.get(timeout=timeout)
            while True:
                self._tokens.get_nowait()
        except Empty:
            return

    def wake(self) -> None:
        """End a wait, the present one or the next."""
        self._tokens.put(None)

    def close_poller(self) -> None:
        """Do nothing: there is nothing to give back."""


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
        self._posted: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._poller: Poller = QueuePoller()
        self._pause = pause
        self._advance = advance
        self._failed = failed
        self._sleeping = False
        self._sleep_number = 0
        self._woken = 0
        self._stopped = False
        self._ended = False
        self._after_end = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def wait_with(self, poller: Poller) -> None:
        """Let the thread wait for something else besides; before it starts."""
        self._poller = poller

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def post(self, function: Callable[..., None], *args: Any) -> None:
        """Let the thread call a function. Never blocks, and may be called inside any other code."""
        self._posted.append((function, args))
        self.nudge()
        if self._ended:
            self._take_rest()

    def nudge(self) -> None:
        """Let the thread call ``advance`` soon. Never blocks, and may be called inside any other code."""
        sleep = self._sleep_number
        if self._sleeping and self._woken != sleep:
            self._poller.wake()
            # Once for each sleep is enough, and once more does no harm.
            self._woken = sleep

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
            self._sleep()
            for _ in range(min(len(self._posted), _BATCH)):
                self._take_one()
            self._guarded(self._advance)
        self._poller.close_poller()
        self._ended = True
        self._take_rest()

    def _sleep(self) -> None:
        """Wait for something to do; a backend's events are dealt with meanwhile."""
        self._sleep_number += 1
        self._sleeping = True
        try:
            pause = 0.0 if self._posted else self._pause()
            self._poller.poll(_LONGEST_POLL if pause is None else min(pause, _LONGEST_POLL))
        except Exception as error:
            self._failed(error)
        finally:
            self._sleeping = False

    def _take_one(self) -> None:
        function, args = self._posted.popleft()
        self._guarded(function, *args)

    def _take_rest(self) -> None:
        """Do what comes too late for the thread, in any thread: nothing that is posted may be lost.

        Whoever does not get the lock leaves its part to whoever has it, and who looks again after giving it back.
        """
        while self._posted and self._after_end.acquire(blocking=False):
            try:
                self._take_one()
                self._guarded(self._advance)
            finally:
                self._after_end.release()

    def _guarded(self, function: Callable[..., None], *args: Any) -> None:
        try:
            function(*args)
        except Exception as error:
            self._failed(error)

"""The loop: functions posted to it, timers, and what a backend's poller brings, one after the other.

Whoever has ``_role`` is the loop, and owns all that belongs to it: usually a thread of its own, and at times a thread
of the user's that would only wait for it otherwise. After the user's threads have had the role the loop's own thread
stands back for a moment, because they will want it again; then it looks whether it is needed.

``_sleeping`` and ``_sleep_number`` are written under ``_role``, ``_woken`` by those who wake. Whoever posts adds to the
inbox first and looks at ``_sleeping`` then; the loop sets it first and looks at the inbox then; so either the loop sees
what was posted, or it is woken. ``_visits`` and ``_helpless`` may miss a count when threads meet; that costs time only.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

from polyexec.session import task_session
from polyexec.shield import Shield
from polyexec.spi import Poller

_BATCH = 256

_LONGEST_POLL = 1.0
"""Seconds; Ctrl-C may come between posting and waking, and then nobody wakes the loop."""

_STAND_BACK = 0.002
_LONGEST_STAND_BACK = 0.05
"""Seconds that the loop's own thread leaves the role to others."""

SHORT = 1e-4
"""Seconds for which it pays to watch instead of sleeping, if the last wait was as short: to wake up takes as long."""

GATHER = 0.002
"""Seconds for which results are let gather while all workers have enough to do."""

_ROOM = 300
"""Frames that are kept for the loop, and for what C code counts as frames."""

_FOR_EVER = float("inf")


def _is_deep() -> bool:
    """Say whether this thread's stack may have no room for what the loop calls."""
    try:
        sys._getframe(max(0, sys.getrecursionlimit() - _ROOM))
    except ValueError:
        return False
    return True


def _never() -> bool:
    return False


def _nothing() -> None:
    """Let the loop look around."""


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
        self._is_laden: Callable[[], bool] = _never
        self._role = threading.Lock()
        self._owner = 0
        self._shield = Shield(self.wake)
        self._shared = False
        self._visits = 0
        self._helpless = 0
        self._half_done = False
        self._watchful = False
        self._sleeping = False
        self._sleep_number = 0
        self._woken = 0
        self._stopped = False
        self._ended = False
        self._after_end = threading.Lock()
        self._come_back: SimpleQueue[None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def wait_with(self, poller: Poller, is_laden: Callable[[], bool]) -> None:
        """Wait for something else besides, and let the user's threads have the role; before the start.

        Args:
            poller: how to wait.
            is_laden: says whether all workers have enough to do for a while, and more is to come.
        """
        self._poller = poller
        self._is_laden = is_laden
        self._shared = True

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def post(self, function: Callable[..., None], *args: Any) -> None:
        """Let the loop call a function. Never blocks, and may be called inside any other code."""
        self._posted.append((function, args))
        self.nudge()
        if self._ended:
            self._take_rest()

    def nudge(self) -> None:
        """Let the loop call ``advance`` soon. Never blocks, and may be called inside any other code."""
        sleep = self._sleep_number
        if self._sleeping and self._woken != sleep:
            self.wake()
            # Once for each sleep is enough, and once more does no harm.
            self._woken = sleep

    def wake(self) -> None:
        """End the loop's wait, the present one or the next."""
        self._poller.wake()

    def is_current(self) -> bool:
        """Say whether this thread is the loop; as a finaliser, for example, code may find itself there."""
        return self._owner == threading.get_ident()

    def stop(self) -> None:
        """End the thread after what was posted before; wait for its end unless this is it."""
        self.post(self._stop)
        if not self.is_current() and self._thread is not threading.current_thread():
            self._thread.join()

    def _stop(self) -> None:
        self._stopped = True
        self._come_back.put(None)

    # For a thread of the user's

    def visit(self, *, poll: bool) -> None:
        """Be the loop for one turn if nobody else is, otherwise wake it. Does not block.

        Args:
            poll: look for what has come, too.
        """
        if not (self._shared and self._enter()):
            self.nudge()
            if self._ended:
                self.post(_nothing)
            return
        try:
            if poll:
                self._poll(0.0)
            self._work()
        finally:
            self._leave()

    def visit_until(self, is_done: Callable[[], bool], timeout: float | None, *, alone: bool = False) -> bool:
        """Be the loop until something is so.

        Args:
            is_done: asked after each event.
            timeout: seconds.
            alone: nothing else is to be expected meanwhile, so that there may be a processor to watch with.

        Returns:
            False, at once, if that is not possible, because somebody else is the loop; True after the visit, which
            ends early when the time is over. Raises what the program wants to happen on Ctrl-C.
        """
        if not (self._shared and self._enter()):
            return False
        began = time.monotonic()
        end = _FOR_EVER if timeout is None else began + timeout
        try:
            while not is_done() and not self._shield.came:
                left = end - time.monotonic()
                if left <= 0 or self._stopped:
                    break
                if alone and self._watchful:
                    self._watchful = self._watch(is_done, left)
                else:
                    self._watchful = self._wait(left)
                if is_done():
                    # The rest can wait until after the caller has what it waits for.
                    self._half_done = True
                    break
                self._work()
                if left > GATHER and self._is_laden():
                    # Results come faster than they are needed: fewer looks leave more of the processors to the workers.
                    time.sleep(GATHER)
        finally:
            self._leave(alert=time.monotonic() - began > _STAND_BACK)
        return True

    def _watch(self, is_done: Callable[[], bool], limit: float) -> bool:
        """Look again and again for a moment instead of sleeping; say whether that was worth it."""
        end = time.monotonic() + min(limit, SHORT)
        while not is_done() and time.monotonic() < end:
            self._poll(0.0)
        return is_done()

    def _wait(self, limit: float) -> bool:
        """Sleep until something comes; say whether it was so short that watching would have done."""
        began = time.monotonic()
        self._poll(min(limit, _LONGEST_POLL))
        return time.monotonic() - began < 2 * SHORT

    def count_helpless(self, change: int) -> None:
        """Note that a thread waits for the loop without being it, or does not any more.

        As long as there is one the loop's own thread does not stand back.
        """
        self._helpless = max(0, self._helpless + change)
        if change > 0:
            self._come_back.put(None)

    def _enter(self) -> bool:
        # The body of a task may be interrupted anywhere, and must not take another executor's loop with it.
        if self._stopped or task_session() is not None or _is_deep() or not self._shield.up():
            return False
        self._visits += 1
        if self._role.acquire(blocking=False):
            self._owner = threading.get_ident()
            return True
        self._shield.down()
        return False

    def _leave(self, *, alert: bool = False) -> None:
        self._visits += 1
        self._owner = 0
        self._role.release()
        if alert or self._stopped:
            self._come_back.put(None)
        self._shield.down()

    # For whoever is the loop

    def _run(self) -> None:
        seen = 0
        while not self._stopped:
            if self._visits != seen and not self._helpless:
                seen = self._visits
                self._stand_back()
                continue
            with self._role:
                self._owner = threading.get_ident()
                self._poll(_LONGEST_POLL)
                self._work()
                self._owner = 0
        with self._role:
            self._poller.close_poller()
            self._ended = True
        # Once more, for what others have left for the loop without posting anything.
        self.post(_nothing)

    def _stand_back(self) -> None:
        """Leave the role to the user's threads for a moment; longer while one of them has it."""
        pause = _STAND_BACK
        while True:
            try:
                self._come_back.get(timeout=pause)
                while True:
                    self._come_back.get_nowait()
            except Empty:
                if self._helpless or not self._role.locked():
                    return
                pause = min(2 * pause, _LONGEST_STAND_BACK)

    def _poll(self, limit: float) -> None:
        """Wait for something to do; a backend's events are dealt with meanwhile."""
        self._sleep_number += 1
        self._sleeping = True
        try:
            pause = 0.0 if self._posted or self._half_done else self._pause()
            self._poller.poll(limit if pause is None else min(pause, limit))
        except Exception as error:
            self._failed(error)
        finally:
            self._sleeping = False

    def _work(self) -> None:
        self._half_done = False
        for _ in range(min(len(self._posted), _BATCH)):
            self._take_one()
        self._guarded(self._advance)

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

"""Closing an executor, once, whoever asks for it and whatever interrupts that.

State and who owns it
    ``_claims`` counts attempts to close: who adds the next one, by the atomic ``dict.setdefault``, makes it. An attempt
    may be left by an exception at any step, as Ctrl-C does; whether one goes on is therefore read from the stacks of
    all threads, and if none does somebody else makes the next. ``closed`` is set at the end of the first that comes
    that far. No lock is held.
"""

from __future__ import annotations

import sys
import threading
from types import FrameType

from polyexec import blocking, shipped
from polyexec.runtime import Runtime
from polyexec.spi import Backend

GRACE = 2.0
"""Seconds that running tasks get to end when they are cancelled by ``close``, before they are killed."""

EXIT_GRACE = 5.0
"""Seconds that tasks get to end when the interpreter exits without ``close``."""

_EXIT_LIMIT = 30.0
"""Seconds for which the exit of the interpreter waits for another thread that closes."""

_LOOK = 0.2
"""Seconds between two looks at whether who closes still does."""


class Closing:
    """Ends what an executor is made of.

    Args:
        backend: is closed once.
        runtime: the loop; it is stopped.

    Attributes:
        closed: set when all has ended.
    """

    def __init__(self, backend: Backend, runtime: Runtime) -> None:
        self.closed = threading.Event()
        self._backend = backend
        self._runtime = runtime
        self._claims: dict[int, object] = {}
        self._backend_told = False

    def close(self, *, cancel_pending: bool) -> None:
        """Close, or wait until somebody else has, unless that one waits for this thread."""
        if self._runtime.in_loop():
            # A finaliser, in the middle of the work for which it would wait.
            threading.Thread(target=self.close, kwargs={"cancel_pending": cancel_pending}, daemon=True).start()
            return
        if self._makes_attempt(sys._getframe()):
            return
        patience = 0.0 if cancel_pending else None
        while not self.closed.is_set() and not self._attempt(patience, None, None):
            if self._runtime.runs_user_code_here():
                return
            blocking.wait(self.closed, _LOOK)

    def close_at_exit(self) -> None:
        """Close because the interpreter exits: wait for tasks, callbacks and other threads, but not for ever."""
        if not self._attempt(EXIT_GRACE, GRACE, GRACE):
            blocking.wait(self.closed, _EXIT_LIMIT)

    def _attempt(self, patience: float | None, last: float | None, at_end: float | None) -> bool:
        """Close unless somebody does, or has; say whether this has done it."""
        claim, number = object(), len(self._claims)
        if self.closed.is_set() or self._goes_on() or self._claims.setdefault(number, claim) is not claim:
            return False
        try:
            self._drain(patience, last)
        finally:
            self._shut_down(at_end)
        return True

    def _goes_on(self) -> bool:
        """Say whether another thread is in an attempt that it has claimed."""
        own = threading.get_ident()
        return bool(self._claims) and any(
            self._makes_attempt(frame) for ident, frame in sys._current_frames().items() if ident != own
        )

    def _makes_attempt(self, frame: FrameType | None) -> bool:
        while frame is not None:
            if frame.f_code is _ATTEMPT and frame.f_locals.get("self") is self:
                return True
            frame = frame.f_back
        return False

    def _drain(self, patience: float | None, last: float | None) -> None:
        runtime = self._runtime
        runtime.post(runtime.drain)
        if blocking.wait(runtime.drained, patience):
            return
        runtime.post(runtime.cancel_all, False)
        if not blocking.wait(runtime.drained, GRACE):
            runtime.post(runtime.cancel_all, True)
            blocking.wait(runtime.drained, last)

    def _shut_down(self, patience: float | None) -> None:
        """End backend and loop. What an interrupt leaves undone the next attempt does; there is one at exit."""
        if not self._backend_told:
            close, kill = self._backend.close, not self._runtime.drained.is_set()
            # As late as can be, so that hardly an interrupt comes between the two.
            self._backend_told = True
            try:
                close(kill=kill)
            except BaseException:
                self._stop(patience)
                raise
        self._stop(patience)

    def _stop(self, patience: float | None) -> None:
        self._runtime.stop(patience)
        shipped.release(self._runtime.executor_id)
        self.closed.set()


_ATTEMPT = Closing._attempt.__code__

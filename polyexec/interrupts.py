"""How a running body is interrupted: ``Interrupted`` is raised in the thread that runs it, at most once per call.

State and who owns it
    ``_running`` maps a call to the thread that runs it and is written by that thread alone. ``_claims`` decides, by
    the atomic ``dict.setdefault``, whether a call was interrupted first or ended first; a claim's single token, taken
    by the atomic ``list.pop``, decides who raises. ``_busy`` is above 0 while a deliverer may still raise; the body's
    thread waits for that to end in ``end``, after which nothing is raised in it. The body's thread takes no lock,
    because an exception that arrives while it holds one would leave it locked; ``_delivering`` is for deliverers.
"""

from __future__ import annotations

import _signal
import ctypes
import signal
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from types import FrameType

from polyexec.errors import Interrupted
from polyexec.spi import Verdict

_set_async_exc = ctypes.pythonapi.PyThreadState_SetAsyncExc
_set_async_exc.argtypes = (ctypes.c_ulong, ctypes.py_object)
_REMEMBERED = 4096
_SIGNALS = 5
_SIGNAL_PAUSE = 0.01
_START_PAUSE = 0.0005
_START_DEPTH = 6
"""Seconds between two looks at a thread that starts another, and how many frames may lie above ``Thread.start``."""


class _Claim:
    """Who was first: the interrupt, or the end of the body."""

    __slots__ = ("_token", "delivered")

    def __init__(self, *, delivered: bool) -> None:
        self.delivered = delivered
        self._token = [None] if delivered else []

    def take(self) -> bool:
        """Win the right to raise, once."""
        try:
            self._token.pop()
        except IndexError:
            return False
        return True


class _Bodies(ABC):
    def __init__(self) -> None:
        self._running: dict[int, int] = {}
        self._claims: dict[int, _Claim] = {}
        self._order: deque[int] = deque()
        self._delivering = threading.Lock()
        self._busy = 0

    def running(self) -> dict[int, int]:
        """Give the threads that run calls, by call. From any thread."""
        return dict(self._running)

    def begin(self, call_id: int) -> None:
        """Note that the body of a call runs in this thread from now on.

        Args:
            call_id: the call.

        Raises:
            Interrupted: the call was stopped before it began.
        """
        self._running[call_id] = threading.get_ident()
        claim = self._claims.get(call_id)
        if claim is not None and claim.take():
            raise Interrupted

    def end(self, call_id: int) -> bool:
        """Note that the body of a call has ended in this thread; after this nothing is raised here on its behalf.

        Args:
            call_id: the call.

        Returns:
            Whether the call was interrupted.
        """
        while True:
            try:
                return self._end(call_id)
            except Interrupted:
                continue

    def _end(self, call_id: int) -> bool:
        claim = self._claims.setdefault(call_id, _Claim(delivered=False))
        self._running.pop(call_id, None)
        while self._busy:
            time.sleep(0)
        if claim.delivered:
            self._settle()
        self._remember(call_id)
        return claim.delivered

    def deliver(self, call_id: int) -> Verdict:
        """Interrupt a call, from any thread but its own.

        Args:
            call_id: the call.

        Returns:
            ``DELIVERED`` if ``Interrupted`` is raised in its body, or if it has not begun and never will; also if its
            thread serves another call meanwhile, after which the driver tells it; ``LATE`` if it has ended.
        """
        with self._delivering:
            self._busy += 1
            try:
                mine = _Claim(delivered=True)
                claim = self._claims.setdefault(call_id, mine)
                ident = self._running.get(call_id)
                if claim is mine and ident is not None and self._is_innermost(call_id, ident) and claim.take():
                    self._raise_in(ident)
                if claim is mine:
                    self._remember(call_id)
            finally:
                self._busy -= 1
        return Verdict.DELIVERED if claim.delivered else Verdict.LATE

    def _is_innermost(self, call_id: int, ident: int) -> bool:
        """Say whether no other call runs on top of this one in its thread; that would get what is meant for this."""
        calls = reversed(list(self._running))
        return next((other for other in calls if self._running.get(other) == ident), None) == call_id

    def _remember(self, call_id: int) -> None:
        self._order.append(call_id)
        if len(self._order) > _REMEMBERED:
            self._claims.pop(self._order.popleft(), None)

    @abstractmethod
    def _raise_in(self, ident: int) -> None: ...

    @abstractmethod
    def _settle(self) -> None:
        """Let an exception that is still on its way come now, or never."""


class ThreadInterrupts(_Bodies):
    """Interrupts bodies in any number of threads, between two bytecodes.

    A body that is inside C code, such as ``time.sleep``, sees the exception when it comes back. Uses
    ``PyThreadState_SetAsyncExc`` (https://docs.python.org/3/c-api/init.html).
    """

    def _raise_in(self, ident: int) -> None:
        while _starts_a_thread(ident):
            time.sleep(_START_PAUSE)
        _set_async_exc(ident, Interrupted)

    def _settle(self) -> None:
        # What was set before is raised at the next jump back. Taking it back by setting NULL would leave the
        # interpreter's eval breaker raised for ever (CPython 3.11), on which a trace function then hangs.
        for _ in range(2):
            pass


def _starts_a_thread(ident: int) -> bool:
    """Say whether a thread is in ``Thread.start``, and the new one does not run yet.

    Up to CPython 3.11 a new thread goes by the identity of the one that starts it until it runs. The exception would
    hit the new one, which would die of it, and the other would wait for ever for it to start.
    """
    frame = sys._current_frames().get(ident)
    for _ in range(_START_DEPTH):
        if frame is None:
            return False
        if frame.f_code is threading.Thread.start.__code__:
            return frame.f_locals["self"].ident is None
        frame = frame.f_back
    return False


class SignalInterrupts(_Bodies):
    """Interrupts bodies in the main thread of a process of their own, by SIGINT; blocking system calls too."""

    def __init__(self) -> None:
        super().__init__()
        self._armed = False

    def begin(self, call_id: int) -> None:
        """Note that the body of a call runs in the main thread from now on."""
        # What ``signal`` itself offers converts to enums, which takes longer than everything else here.
        if _signal.getsignal(signal.SIGINT) != self._on_signal:
            signal.signal(signal.SIGINT, self._on_signal)
        super().begin(call_id)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._armed:
            self._armed = False
            raise Interrupted
        # While somebody delivers, it is one signal more of the same interrupt.
        if self._running and not self._busy:
            raise KeyboardInterrupt

    def _raise_in(self, ident: int) -> None:
        self._armed = True
        for _ in range(_SIGNALS):
            # One that comes just before a system call begins is noticed only after the call; another ends the call.
            signal.pthread_kill(ident, signal.SIGINT)
            time.sleep(_SIGNAL_PAUSE)
            if not self._armed:
                return

    def _settle(self) -> None:
        self._armed = False

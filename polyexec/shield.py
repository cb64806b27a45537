"""Keeping Ctrl-C out of code that must not be left in the middle, without losing it.

Python runs signal handlers in the main thread, between any two steps of whatever that thread does. While a shield is
up, SIGINT is noted, and what the program wants to happen then happens when the shield is taken down.
"""

from __future__ import annotations

import _signal
import os
import signal
import threading
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any

_get: Callable[[int], Any] = _signal.getsignal
_set: Callable[[int, Any], Any] = _signal.signal
"""Those of ``signal`` convert to enums, which takes ten times as long."""

_NAMES = (
    *("SIGALRM", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGVTALRM", "SIGPROF", "SIGCHLD"),
    *("SIGPIPE", "SIGTSTP", "SIGCONT", "SIGURG", "SIGIO", "SIGXCPU", "SIGWINCH"),
)
_OTHERS = tuple(int(getattr(signal, name)) for name in _NAMES if hasattr(signal, name))
_MAIN = threading.main_thread


_shields: weakref.WeakSet[Shield] = weakref.WeakSet()


class Shield:
    """Keeps exceptions of signal handlers out of the code of one thread.

    Args:
        noticed: called when SIGINT has come, inside any other code of the main thread.
    """

    def __init__(self, noticed: Callable[[], None]) -> None:
        self._noticed = noticed
        self._previous: Any = None
        self.came = False
        _shields.add(self)

    def up(self) -> bool:
        """Put the shield up in this thread; False, and no shield, if the program has handlers that may raise."""
        if threading.get_ident() != _MAIN().ident:
            return True
        for number in _OTHERS:
            if callable(_get(number)):
                return False
        previous = _get(signal.SIGINT)
        if getattr(previous, "__self__", None) is self:
            # It is up already: a finaliser runs in the middle of what it protects.
            return False
        if callable(previous):
            self._previous = previous
            _set(signal.SIGINT, self._note)
        return True

    def down(self) -> None:
        """Take the shield down; raises what the program's own handler raises if SIGINT has come."""
        if threading.get_ident() != _MAIN().ident or self._previous is None:
            return
        previous, came = self._previous, self.came
        self.came = False
        # In this order, because another thread may fork in between.
        _set(signal.SIGINT, previous)
        self._previous = None
        if came:
            previous(signal.SIGINT, None)

    def forget(self) -> None:
        """Take the shield down in a forked child, where nobody else will."""
        self.came = False
        if self._previous is not None:
            previous, self._previous = self._previous, None
            _set(signal.SIGINT, previous)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        self._noticed()


def _forget_all() -> None:
    for shield in tuple(_shields):
        shield.forget()


os.register_at_fork(after_in_child=_forget_all)

"""What running calls tell the executor without being asked, and without an answer.

A listener is added before the backend is opened, and called in whichever thread the backend has: it must be
thread-safe, return at once, and leave what belongs to the loop to ``Runtime.post``. So what a call has told is taken
before its end is known to anybody.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from typing import TypeAlias

from polyexec.stored import Stored

Listener: TypeAlias = Callable[..., None]

_logger = logging.getLogger("polyexec")


class Tidings:
    """Gives what is told to whoever listens."""

    def __init__(self) -> None:
        self._listeners: dict[str, Listener] = {}

    def listen(self, kind: str, listener: Listener) -> None:
        """Let a part of the runtime hear what is told of a kind.

        Args:
            kind: its name.
            listener: called with the call that tells, the buffers of the message, and its fields.
        """
        self._listeners[kind] = listener

    def take(self, call_id: int, message: Stored) -> None:
        """Pass on a message of ``RemoteSession.tell``; one to which nobody listens is dropped."""
        kind, speaker, fields = pickle.loads(message.data)
        listener = self._listeners.get(kind)
        if listener is None:
            _logger.debug("nobody listens to %r, which call %d tells", kind, call_id)
            return
        # A body that runs calls of its own lets each of them tell in its own name.
        listener(call_id if speaker is None else speaker, message.buffers, *fields)

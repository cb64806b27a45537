"""The items of a stream that a task reads."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from polyexec.errors import PolyexecError
from polyexec.session import Entry, ItemSource

if TYPE_CHECKING:
    from polyexec.remote import RemoteSession


class RemoteItems(ItemSource):
    """Asks the driver for each item, in the name of whoever reads: any call of the actor, if one has made the stream.

    State: ``_spare`` are items that came for a coroutine; any thread adds and takes by atomic operations. ``_is_over``
    and ``is_closed`` are set once.

    Args:
        session: of the task.
        stream_id: the stream.
        name: its name.
    """

    def __init__(self, session: RemoteSession, stream_id: int, name: str) -> None:
        self._session = session
        self._stream_id = stream_id
        self._name = name
        self._spare: deque[Entry] = deque()
        self._is_over = False

    def poll(self) -> Entry | None:
        """Take an item that came for a coroutine."""
        with contextlib.suppress(IndexError):
            return self._spare.popleft()
        return None

    def take(self) -> Entry | None:
        """Ask for the next item."""
        return self._take(self._session.speaker_here())

    def _take(self, session: RemoteSession) -> Entry | None:
        if self._is_over:
            return None
        answer, _ = session.ask("stream_take", self._stream_id)
        if answer is None:
            self._is_over = True
            return None
        entry_id, data = answer
        return session.receive(entry_id, self._name, data)

    def is_over(self) -> bool:
        """Say whether the driver said so."""
        return self._is_over

    def subscribe(self, callback: Callable[[], None]) -> None:
        """Ask in a thread of its own, then call back."""
        session = self._session.speaker_here()

        def fetch() -> None:
            try:
                entry = self._take(session)
                if entry is not None:
                    self._spare.append(entry)
            except PolyexecError:
                self._is_over = True
            finally:
                callback()

        threading.Thread(target=fetch, name=f"polyexec-stream-{self._stream_id}", daemon=True).start()

    def close(self) -> None:
        """Ask the driver."""
        self._is_over = self.is_closed = True
        self._spare.clear()
        self._session.speaker_here().ask("stream_close", self._stream_id)

    def raise_if_cut(self) -> None:
        """Do nothing: a task ends before its executor does."""

"""What has come of a stream and is unread, for the loop and for readers in the driver.

An ``Inbox`` belongs to the loop, but for what a reader in the driver shares with it: ``unread``, a queue that the loop
fills and readers empty; ``bell``, an entry that the loop replaces before it rings it, so that a reader who looks at the
bell first and at the queue then misses nothing; ``is_paused``, set by the loop before it looks once more at the queue;
``is_closed``, set once by whoever closes, and ``is_cut``, set once by the loop.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from polyexec.errors import ExecutorClosed
from polyexec.session import Entry, ItemSource
from polyexec.stored import Stored, Tag

if TYPE_CHECKING:
    from polyexec.runtime import Runtime
    from polyexec.session import Session

CLOSED = -1
"""Said instead of the number of items that a generator may have given: it shall stop."""


class Inbox(ItemSource):
    """The unread items of one stream.

    Args:
        runtime: whose loop fills it.
        end: the entry of the stream's end.
        buffer: how many items may wait unread.
        session: of the driver if it reads, else None.
        reader: id of the task that reads, None for the driver.
    """

    def __init__(
        self, runtime: Runtime, end: Entry, buffer: int, session: Session | None, reader: int | None = None
    ) -> None:
        self._runtime = runtime
        self._session = session
        self._is_inline = runtime.backend.capabilities.inline
        self.end = end
        self.buffer = buffer
        self.reader = reader
        self.unread: deque[Entry | Stored] = deque()
        self.early: deque[Entry] = deque()
        self.arrived = 0
        self.given = 0
        self.is_wanted = False
        self.is_paused = False
        self.is_cut = False
        self.is_stopped = False
        self.is_ending = False
        self.is_gathering = False
        self.room: int | None = None
        self.takers: list[int] = []
        self.bell = Entry(0, end.name)

    # For readers in the driver

    def poll(self) -> Entry | None:
        """Take the next item if it is here."""
        if self._session is not None:
            # A forked child is told so (F15).
            self._session.refresh(self.end)
        if self.is_closed:
            return None
        try:
            item = self.unread.popleft()
        except IndexError:
            return None
        if self.is_paused:
            self.is_paused = False
            self._runtime.post(self._runtime.streams.look, self)
        return item if isinstance(item, Entry) else self._entry_of(item)

    def _entry_of(self, item: Stored) -> Entry:
        entry = Entry(self._runtime.new_id(), self.end.name)
        entry.loose, entry.count, entry.attempts = True, 1, self.end.attempts
        entry.stored, entry.tag = item, Tag.VALUE
        return entry

    def take(self) -> Entry | None:
        """Wait for the next item and take it."""
        assert self._session is not None
        while True:
            bell = self.bell
            found = self.poll()
            if found is not None:
                return found
            if self.is_over():
                return self.poll()
            self._want()
            self._session.wait([bell], 1, None)

    def _want(self) -> None:
        if self.room is not None or self._is_inline:
            self._runtime.post(self._runtime.streams.want, self)

    def is_over(self) -> bool:
        """Say whether no more items will come."""
        return self.end.tag is not None or self.is_closed or self.is_cut

    def subscribe(self, callback: Callable[[], None]) -> None:
        """Call back in the callback thread."""
        assert self._session is not None
        bell = self.bell
        self._want()
        self._session.subscribe(bell, callback)

    def close(self) -> None:
        """Drop what is here, and stop the generator."""
        assert self._session is not None
        self._session.refresh(self.end)
        self.is_closed = True
        self._runtime.post(self._runtime.streams.close, self.end.id)

    def raise_if_cut(self) -> None:
        """Raise if the executor was closed."""
        if self.is_cut:
            raise ExecutorClosed(f"the executor was closed before stream {self.end.name!r} had been read to its end")

    # For the loop

    @property
    def allowed(self) -> int:
        """How many items the generator may have given in all; ``CLOSED`` if it shall stop."""
        if self.is_stopped:
            return CLOSED
        if self._is_inline:
            # There it runs only while somebody waits for it.
            return self.arrived + (self.is_wanted and not self.unread)
        return self.arrived - len(self.unread) + self.buffer

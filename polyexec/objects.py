"""The driver's values: what exists, who refers to it, and when it is freed.

Owner: the loop thread. Other threads may look entries up, may add new ones (an atomic dict operation each), and note
what Futures come and go in ``_changes``, an append-only queue that keeps their order; so a Future may be collected
inside any other code without a lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

import attrs

from polyexec.session import Entry
from polyexec.stored import Head, Stored, Tag


@attrs.define(eq=False)
class _Content:
    """What one outcome holds, shared by the entries of its values."""

    handle: object | None
    inner: tuple[int, ...]
    users: int


class ObjectTable:
    """Counts references to values.

    Args:
        free: called when a handle of the engine is not needed any more.
        forget: called when a value is gone.
        report: called for an error that nobody has looked at.
        thin: called when fewer refer to a value, some of whom may never need it.
        abandon: called when nobody refers any more to a value that is not there yet.
    """

    def __init__(
        self,
        free: Callable[[object], None],
        forget: Callable[[int], None],
        report: Callable[[Entry, str], None],
        thin: Callable[[Entry], None],
        abandon: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.entries: dict[int, Entry] = {}
        self._contents: dict[int, _Content] = {}
        self._changes: deque[tuple[int, int]] = deque()
        self.settled_count = 0
        self._free = free
        self._forget = forget
        self._report = report
        self._thin = thin
        self._abandon = abandon

    def add(self, entry: Entry) -> None:
        """Take an entry to which one Future refers. From any thread."""
        entry.count = 1
        self.entries[entry.id] = entry

    def expose(self, entry: Entry) -> None:
        """Take an entry that one Future alone has known of, because that is passed on. From any thread."""
        if entry.loose:
            # In this order, so that whoever does not see it as loose any more finds it here.
            self.entries[entry.id] = entry
            entry.loose = False
            if entry.tag is not None:
                self.complete(entry)

    def complete(self, entry: Entry) -> None:
        """Note that an entry was settled while it was loose, if it has been exposed; whoever did the last step does."""
        if entry.id in self.entries:
            self._contents.setdefault(entry.id, _Content(None, (), 1))
            if entry.count <= 0:
                # Its Future has gone between the two steps, so that this is the loop.
                self.refer([entry.id], 0)

    def note(self, entry_id: int, change: int) -> None:
        """Note that a Future has come or gone. From any thread, inside any other code."""
        self._changes.append((entry_id, change))

    def settle_notes(self) -> None:
        """Take over what was noted."""
        for _ in range(len(self._changes)):
            self.refer([self._changes[0][0]], self._changes[0][1])
            self._changes.popleft()

    def refer(self, entry_ids: Iterable[int], change: int = 1) -> None:
        """Add references to values, or take them away."""
        self._drop_all(self._count(entry_ids, change))

    def _count(self, entry_ids: Iterable[int], change: int) -> list[Entry]:
        """Count references, and give the entries that nobody refers to any more."""
        unused = []
        for entry_id in entry_ids:
            entry = self.entries.get(entry_id)
            if entry is not None:
                entry.count += change
                if entry.count <= 0 and (entry.promised or entry_id in self._contents):
                    unused.append(entry)
                elif entry.held:
                    self._thin(entry)
                elif entry.count <= 0:
                    self._abandon(entry_id)
        return unused

    def settle(self, entries: list[Entry], head: Head, stored: Stored | None, handle: object | None) -> None:
        """Give entries their content, and tell those who wait."""
        content = _Content(handle, head.references, len(entries))
        for entry in entries:
            self._contents[entry.id] = content
            self.refer(head.references)
            entry.stored, entry.handle = stored, handle
            if handle is not None:
                entry.size = head.size
            entry.running = False
            entry.tag = Tag.ERROR if head.tag is Tag.BROKEN else head.tag
            entry.notify()
        self.settled_count += len(entries)
        for entry in entries:
            if entry.count <= 0:
                self._drop_all(self._drop(entry, head.summary))

    def empty(self, entries: Iterable[Entry]) -> None:
        """Let go of what entries hold, that can be made again; they stay."""
        for entry in entries:
            self._take_content(entry)
            self._contents[entry.id] = _Content(None, (), 1)

    def reopen(self, entries: Iterable[Entry]) -> None:
        """Let go of what entries hold, that will be settled again; those that are gone come back until then."""
        for entry in entries:
            if entry.id not in self.entries:
                entry.retrieved = True
                self.entries[entry.id] = entry
            self._take_content(entry)

    def _take_content(self, entry: Entry) -> None:
        entry.stored = entry.handle = None
        self._drop_all(self._let_go_of(self._contents.pop(entry.id, None)))

    def _let_go_of(self, content: _Content | None) -> list[Entry]:
        """Free a content, unless other values have it too; give the entries that nobody refers to any more."""
        if content is None:
            return []
        content.users -= 1
        if not content.users and content.handle is not None:
            self._free(content.handle)
        return self._count(content.inner, -1)

    def ring(self, bell: Entry) -> None:
        """Tell those who wait for a bell: an entry without a value, which is in no table."""
        bell.tag = Tag.VALUE
        bell.notify()
        self.settled_count += 1

    def have_settled(self, count: int) -> bool:
        """Say whether so many values have been settled in all. From any thread."""
        return self.settled_count >= count

    def let_go(self) -> None:
        """Let go of all that the engine keeps, because it is closed; what is here stays readable."""
        for content in self._contents.values():
            content.handle = None
        for entry in tuple(self.entries.values()):
            entry.handle = None

    def _drop_all(self, unused: list[Entry]) -> None:
        """Free values, and what only they referred to; without recursion, because such chains may be long."""
        while unused:
            entry = unused.pop()
            if entry.id in self.entries:
                unused += self._drop(entry)

    def _drop(self, entry: Entry, summary: str = "") -> list[Entry]:
        """Free a value, and give the entries that nobody refers to any more."""
        del self.entries[entry.id]
        self._forget(entry.id)
        content = self._contents.pop(entry.id, None)
        if entry.tag is Tag.ERROR and not entry.retrieved:
            self._report(entry, summary or _summary(entry))
        entry.stored = entry.handle = None
        return self._let_go_of(content)


def _summary(entry: Entry) -> str:
    return Head.decode(entry.stored.data)[0].summary if entry.stored is not None else ""

"""How a process sees values in another's segments, and notices when it sees them no more.

Each value is lent under a number. The number comes back when the last view of the value in this process has gone, and
only then may its memory be used for another value. A finaliser, which may run inside any other code, only notes the
number; whoever owns the borrower fetches the notes.

A forked child sees what its parent sees, and its finalisers tell nobody. So a fork makes a pipe whose writing end only
the child keeps: what was seen at the fork comes back when that end is closed, by the child's end or by its ``exec``.

Threads: ``open``, ``write`` and ``refuse`` from any; ``learn``, ``returned`` and ``close`` from one at a time.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque

import attrs

from polyexec.spi import Stored
from polyexec_local import memory
from polyexec_local.memory import Layout, Mapping


@attrs.frozen
class Loan:
    """A value that is lent, or room that is lent for a value; travels to the borrower.

    Attributes:
        number: of this loan, unique in the store.
        segment: number of the segment.
        offset: where the value begins there.
        layout: where its parts lie.
    """

    number: int
    segment: int
    offset: int
    layout: Layout


@attrs.frozen
class _Segment:
    """A segment that is known here; ``mapping`` is None if there is no room for all of it."""

    descriptor: int
    mapping: Mapping | None


class _Lease:
    """Lives as long as anything uses the memory of one loan."""

    __slots__ = ("_gone", "_number")

    def __init__(self, number: int, gone: deque[int]) -> None:
        self._number = number
        self._gone = gone

    def __del__(self) -> None:
        self._gone.append(self._number)


@attrs.define(eq=False)
class _Child:
    """A forked child, as far as its parent cares.

    Attributes:
        reading: end of a pipe whose other end is open as long as the child sees anything; -1 if no pipe could be made.
        writing: that other end; -1 once only the child has it.
        numbers: the loans that it sees.
    """

    reading: int
    writing: int
    numbers: set[int]

    def lives(self) -> bool:
        if self.reading < 0:
            return True
        try:
            return os.read(self.reading, 1) != b""
        except BlockingIOError:
            return True

    def close(self, *, reading: bool = False, writing: bool = False) -> None:
        if reading and self.reading >= 0:
            os.close(self.reading)
            self.reading = -1
        if writing and self.writing >= 0:
            os.close(self.writing)
            self.writing = -1


class Borrower:
    """Opens what is lent to this process."""

    def __init__(self) -> None:
        self._segments: dict[int, _Segment] = {}
        self._seen: set[int] = set()
        self._gone: deque[int] = deque()
        self._waiting: list[int] = []
        self._children: list[_Child] = []
        self._forks: dict[int, _Child] = {}
        _borrowers.add(self)

    def learn(self, number: int, size: int, descriptor: int) -> None:
        """Take over a segment's descriptor, and map it once, so that its pages stay mapped from value to value."""
        try:
            mapping = Mapping(descriptor, size)
        except OSError:
            # The process may not have so many addresses; each value is mapped by itself.
            mapping = None
        self._segments[number] = _Segment(descriptor, mapping)

    def open(self, loan: Loan, *, private: bool = False) -> Stored:
        """See a value, without a copy.

        Args:
            loan: as it came from the store.
            private: its buffers are writable, and what is written is seen by nobody else.

        Returns:
            The value; otherwise its buffers are read-only.

        Raises:
            OSError: there is no room for a mapping; the loan comes back.
        """
        segment, size = self._segments[loan.segment], loan.layout.size
        self._seen.add(loan.number)
        lease = _Lease(loan.number, self._gone)
        mapping, begin = segment.mapping, loan.offset
        if mapping is None or private:
            mapping = Mapping(segment.descriptor, size, begin=loan.offset, writable=private, private=private)
            begin = 0
        found = mapping.memory(begin, size, lease)
        return loan.layout.stored(found if private else found.toreadonly())

    def write(self, loan: Loan, stored: Stored) -> None:
        """Copy a value into room that was lent for it. Raises ``OSError`` if there is no memory left."""
        memory.write(self._segments[loan.segment].descriptor, loan.offset, loan.layout.pieces(stored))

    def refuse(self, loan: Loan) -> None:
        """Let a loan go back that will not be opened, or not be written."""
        self._gone.append(loan.number)

    @property
    def sees(self) -> bool:
        """Whether anything that is lent has not been given back. From any thread."""
        return bool(self._seen)

    def returned(self) -> list[int]:
        """Give the numbers of what is seen no more, each once."""
        while self._gone:
            number = self._gone.popleft()
            self._seen.discard(number)
            self._waiting.append(number)
        if not self._waiting:
            return []
        for child in tuple(self._children):
            if not child.lives():
                self._children.remove(child)
                child.close(reading=True)
        held = set[int]().union(*(child.numbers for child in self._children))
        back = [number for number in self._waiting if number not in held]
        self._waiting = [number for number in self._waiting if number in held]
        return back

    def close(self) -> None:
        """Let go of all segments; what is seen stays."""
        while self._segments:
            os.close(self._segments.popitem()[1].descriptor)
        while self._children:
            self._children.pop().close(reading=True)

    def before_fork(self) -> None:
        """Prepare for a child of this thread, which will see what is seen here."""
        if not self._seen:
            return
        try:
            reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            # Without a descriptor nobody knows when the child ends; what it sees never comes back.
            reading = writing = -1
        child = self._forks[threading.get_ident()] = _Child(reading, writing, set(self._seen))
        self._children.append(child)

    def after_fork(self, *, in_child: bool) -> None:
        """Keep one end of the pipe here, and the other in the child."""
        child = self._forks.pop(threading.get_ident(), None)
        if in_child:
            while self._children:
                self._children.pop().close(reading=True)
        elif child is not None:
            # Another thread may have opened more meanwhile.
            child.numbers |= self._seen
            child.close(writing=True)


_borrowers: weakref.WeakSet[Borrower] = weakref.WeakSet()


def _before_fork() -> None:
    for borrower in tuple(_borrowers):
        borrower.before_fork()


def _after_fork(in_child: bool) -> None:
    for borrower in tuple(_borrowers):
        borrower.after_fork(in_child=in_child)


os.register_at_fork(
    before=_before_fork,
    after_in_parent=lambda: _after_fork(False),
    after_in_child=lambda: _after_fork(True),
)

"""What is in the store, where it is, and who looks at it.

Everything here is guarded by ``Holdings.lock``, which whoever calls a method must hold, unless it says otherwise. It is
held for moments only: nothing is copied, read, written or given back to the system meanwhile. What is pinned is moved
by nobody but whoever has pinned it.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence

import attrs

from polyexec.errors import ExecutorClosed
from polyexec_local.borrower import Borrower, Loan
from polyexec_local.memory import Layout
from polyexec_local.segments import Arena, Block, Cut
from polyexec_local.spill import Spot


@attrs.define(eq=False)
class Handle:
    """A value in the store.

    Attributes:
        layout: where its parts lie.
        block: its memory; None if it is on disk or gone.
        spot: its place on disk; None if it is in memory or gone.
        pins: how many look at it or move it.
        freed: nobody wants it any more; it goes with its last pin.
    """

    layout: Layout
    block: Block | None = None
    spot: Spot | None = None
    pins: int = 0
    freed: bool = False


@attrs.define(eq=False)
class Account:
    """What one process has borrowed, as the store sees it.

    Attributes:
        loans: values by the number of their loan.
        segments: numbers of the segments that it knows.
        closed: the process is dead.
    """

    loans: dict[int, Handle] = attrs.field(factory=dict)
    segments: set[int] = attrs.field(factory=set)
    closed: bool = False


class Holdings:
    """The state of a store.

    Args:
        limit: bytes of memory.
        clock: gives seconds.
        clean: called when a place on disk has become ``unneeded``.
    """

    def __init__(self, limit: int, clock: Callable[[], float], clean: Callable[[], None]) -> None:
        self.lock = threading.Lock()
        self.arena = Arena(limit)
        self.borrower = Borrower()
        self.own = Account()
        self.unneeded: deque[Spot] = deque()
        self.closed = False
        self._clock = clock
        self._clean = clean
        self._idle: OrderedDict[Handle, None] = OrderedDict()
        self._numbers = itertools.count(1)

    def check_open(self) -> None:
        """Raise ``ExecutorClosed`` after ``close``."""
        if self.closed:
            raise ExecutorClosed("the object store is closed")

    def settle(self) -> None:
        """Take over what is not looked at in this process any more."""
        self.give_back(self.own, self.borrower.returned())

    def take(self, size: int, *, beyond: bool = False) -> Block | None:
        """Take a block; see ``Arena.take``."""
        self.check_open()
        self.settle()
        return self.arena.take(size, beyond=beyond)

    def lend(self, handle: Handle, account: Account) -> Loan:
        """Lend a value that is in memory; a dead process only seems to get it."""
        assert handle.block is not None
        loan = Loan(next(self._numbers), handle.block.segment.number, handle.block.offset, handle.layout)
        self.pin(handle)
        if account.closed:
            self.unpin(handle)
        else:
            account.loans[loan.number] = handle
        return loan

    def give_back(self, account: Account, numbers: Iterable[int]) -> None:
        """End loans; unknown ones are ignored."""
        for number in numbers:
            handle = account.loans.pop(number, None)
            if handle is not None:
                self.unpin(handle)

    def learn(self, loan: Loan) -> None:
        """Let this process know the segment of its own loan. Raises ``OSError`` if no descriptor is left."""
        if loan.segment not in self.own.segments:
            segment = self.arena.segments[loan.segment]
            self.borrower.learn(segment.number, segment.size, os.dup(segment.descriptor))
            self.own.segments.add(segment.number)

    def pin(self, handle: Handle) -> None:
        """Note that a value is looked at or moved."""
        handle.pins += 1
        self._idle.pop(handle, None)

    def unpin(self, handle: Handle) -> None:
        """Note that it is so no more; the last one lets it go to disk, or ends it."""
        handle.pins -= 1
        if handle.pins:
            return
        if self.closed:
            handle.block = None
        elif handle.freed:
            self._discard(handle)
        elif handle.block is not None:
            self._idle[handle] = None

    def free(self, handle: Handle) -> None:
        """End a value, at once or with its last pin."""
        self.settle()
        if not handle.freed and not self.closed:
            handle.freed = True
            if not handle.pins:
                self._discard(handle)

    def _discard(self, handle: Handle) -> None:
        self._idle.pop(handle, None)
        block, spot, handle.block, handle.spot = handle.block, handle.spot, None, None
        if block is not None:
            self.give(block)
        if spot is not None:
            self.unneeded.append(spot)
            self._clean()

    def give(self, block: Block) -> None:
        """Give a block back that nobody looks at."""
        self.arena.give(block, self._clock())

    def victim(self) -> Handle | None:
        """Pin the value that nobody has looked at for the longest time; None if all are looked at."""
        handle = next(iter(self._idle), None)
        if handle is not None:
            self.pin(handle)
        return handle

    def punch(self, cuts: Sequence[Cut]) -> None:
        """Give memory back to the system; for blocks that the caller alone has, and without the lock."""
        for cut in cuts:
            cut.block.punch(cut.keep)
        with self.lock:
            self.arena.punched(cuts)

    def close(self) -> list[Block]:
        """Let go of everything, and give the blocks whose memory nobody looks at."""
        self.closed = True
        self.settle()
        blocks = self.arena.clear()
        for handle in self._idle:
            assert handle.block is not None
            blocks.append(handle.block)
        for handle in (*self._idle, *self.own.loans.values()):
            handle.block = None
        self._idle.clear()
        return blocks

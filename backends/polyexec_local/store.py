"""The object store of the ``process`` backend: large values, each once, in memory or on disk.

A value's memory is shared with everybody who looks at it, and used again as soon as nobody does. So each look is a
loan: to a worker process, or to the driver itself. A value that nobody looks at may go to disk when room is needed.

Only ``put``, ``get`` and ``close`` may wait for the disk; all else returns at once, and is safe from any thread.
``holdings`` and ``moves`` say what the two locks guard.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Sequence

from polyexec.config import machine_memory
from polyexec.errors import ExecutorClosed
from polyexec.spi import Stored
from polyexec_local.borrower import Loan
from polyexec_local.helper import Helper
from polyexec_local.holdings import Account, Handle, Holdings
from polyexec_local.memory import Layout
from polyexec_local.moves import Mover, exhausted
from polyexec_local.segments import Block, Cut, Segment
from polyexec_local.spill import SpillFile

__all__ = ["Account", "Handle", "Store"]

_SHARE_OF_MEMORY = 0.3
"""Ray's default for its object store."""

_WARM = 0.35
"""Seconds that the memory of a freed value is kept for the next one, and between looks at whether a view has gone; O5
allows one second for both."""

_SLICE = 64 << 20
"""Bytes given back to the system by one call of ``trim``, which takes some milliseconds."""

Lent = Callable[[list[Loan] | Exception], None]


class Store:
    """Keeps values; see the module.

    Args:
        limit: bytes of memory for values; None for a share of the machine's. Values that are being looked at stay in
            memory even beyond it.
        folder: for the file on disk; None for the usual one.
        clock: gives seconds.
    """

    def __init__(
        self, limit: int | None = None, *, folder: str | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._pid = os.getpid()
        self._clock = clock
        self._disk = SpillFile(folder)
        self._helper = Helper("polyexec-store")
        limit = int(machine_memory() * _SHARE_OF_MEMORY) if limit is None else limit
        self._holdings = Holdings(limit, clock, lambda: self._helper.post(self._clean))
        self._mover = Mover(self._holdings, self._disk)

    def put(self, stored: Stored) -> Handle:
        """Keep a copy of a value; waits for the disk if there is no room in memory.

        Args:
            stored: the value.

        Returns:
            What to get it back by, until ``free``.

        Raises:
            ResourceExhausted: neither in memory nor on disk is room for it; nothing else is lost.
            ExecutorClosed: the store is closed.
        """
        handle = self.try_put(stored)
        if handle is not None:
            return handle
        layout = Layout.of(stored)
        self._helper.start()
        with self._mover.slow:
            block = self._mover.make_room(layout.size) if layout.size <= self._holdings.arena.limit else None
            if block is None:
                return self._mover.put_on_disk(layout, stored)
        return self._filled(block, layout, stored)

    def try_put(self, stored: Stored) -> Handle | None:
        """Keep a copy of a value if there is room in memory.

        Args:
            stored: the value.

        Returns:
            What to get it back by, until ``free``; None if there is no room.

        Raises:
            ResourceExhausted: the system has no memory left.
            ExecutorClosed: the store is closed.
        """
        layout = Layout.of(stored)
        with self._holdings.lock, exhausted("shared-memory", layout.size):
            block = self._holdings.take(layout.size)
        return None if block is None else self._filled(block, layout, stored)

    def _filled(self, block: Block, layout: Layout, stored: Stored) -> Handle:
        try:
            with exhausted("shared-memory", layout.size):
                block.write(layout.size, layout.pieces(stored))
        except BaseException:
            self._holdings.punch([Cut(block, 0)])
            raise
        handle = Handle(layout, block, pins=1)
        with self._holdings.lock:
            self._holdings.unpin(handle)
        return handle

    def get(self, handle: Handle) -> Stored:
        """Give a value, read-only, without a copy; waits if it must come from disk.

        Args:
            handle: from ``put`` or ``adopt``.

        Returns:
            The value; its memory stays as it is until the last view of it has gone.

        Raises:
            ObjectLost: it was freed, or cannot be read from disk.
            ResourceExhausted: the system has no memory, or no descriptor, left.
            ExecutorClosed: the store is closed.
        """
        loan = self._borrowed(handle)
        try:
            with exhausted("memory", handle.layout.size):
                with self._holdings.lock:
                    self._holdings.check_open()
                    self._holdings.learn(loan)
                return self._holdings.borrower.open(loan)
        except KeyError:
            raise ExecutorClosed("the object store is closed") from None
        except BaseException:
            with self._holdings.lock:
                self._holdings.give_back(self._holdings.own, [loan.number])
            raise

    def _borrowed(self, handle: Handle) -> Loan:
        holdings = self._holdings
        with holdings.lock:
            holdings.settle()
            if handle.block is not None:
                return holdings.lend(handle, holdings.own)
        with self._mover.slow:
            return self._mover.bring(handle, holdings.own)

    def free(self, handle: Handle) -> None:
        """Forget a value; its memory goes when nobody looks at it any more. Harmless if repeated."""
        if os.getpid() == self._pid:
            with self._holdings.lock:
                self._holdings.free(handle)

    def _clean(self) -> None:
        with self._mover.slow:
            self._mover.clean()

    def lend(self, handles: Sequence[Handle], account: Account) -> list[Loan] | None:
        """Lend values to a process, or give None if one of them is on disk."""
        with self._holdings.lock:
            if any(handle.block is None for handle in handles):
                return None
            return [self._holdings.lend(handle, account) for handle in handles]

    def lend_later(self, handles: Sequence[Handle], account: Account, done: Lent) -> None:
        """Bring values from disk and lend them.

        Args:
            handles: the values.
            account: whom to lend them to.
            done: gets the loans or the error, once, in a thread of the store.
        """
        self._helper.start()
        self._helper.post(self._lend_slowly, tuple(handles), account, done)

    def _lend_slowly(self, handles: Sequence[Handle], account: Account, done: Lent) -> None:
        loans: list[Loan] = []
        try:
            with self._mover.slow:
                for handle in handles:
                    loans.append(self._mover.bring(handle, account))
        except Exception as error:
            self.give_back(account, [loan.number for loan in loans])
            done(error)
        else:
            done(loans)

    def reserve(self, layout: Layout, account: Account) -> Loan | None:
        """Lend room to a process that it fills with a value, or give None if there is none.

        ``adopt`` makes it a value of the store; until then ``give_back`` and ``forget`` free it.
        """
        with self._holdings.lock, contextlib.suppress(OSError):
            block = self._holdings.take(layout.size)
            if block is not None:
                return self._holdings.lend(Handle(layout, block, freed=True), account)
        return None

    def reserve_later(self, layout: Layout, account: Account, done: Lent) -> None:
        """Make room and lend it.

        Args:
            layout: of the value that will be written there.
            account: whom to lend it to.
            done: gets one loan or the error, once, in a thread of the store.
        """
        self._helper.start()
        self._helper.post(self._reserve_slowly, layout, account, done)

    def _reserve_slowly(self, layout: Layout, account: Account, done: Lent) -> None:
        try:
            with self._mover.slow:
                block = self._mover.make_room(layout.size) or self._mover.room_beyond(layout.size)
            with self._holdings.lock:
                loan = self._holdings.lend(Handle(layout, block, freed=True), account)
        except Exception as error:
            done(error)
        else:
            done([loan])

    def adopt(self, account: Account, number: int) -> Handle:
        """Take over the value that a process has written into room that was lent for it, and end that loan.

        Raises:
            KeyError: there is no such loan.
        """
        with self._holdings.lock:
            handle = account.loans.pop(number)
            handle.freed = False
            self._holdings.unpin(handle)
            return handle

    def introduce(self, account: Account, loans: Iterable[Loan]) -> list[Segment]:
        """Give the segments that a process must ``learn`` before it can open these loans; each only once.

        Their descriptors stay the store's, and are good until it is closed.
        """
        with self._holdings.lock:
            unknown = {loan.segment for loan in loans} - account.segments
            account.segments |= unknown
            return [self._holdings.arena.segments[number] for number in sorted(unknown)]

    def give_back(self, account: Account, numbers: Iterable[int]) -> None:
        """Take back what a process does not look at any more, or will not write; unknown numbers are ignored."""
        with self._holdings.lock:
            self._holdings.give_back(account, numbers)

    def forget(self, account: Account) -> None:
        """Take everything back from a process that has ended, and lend it no more."""
        with self._holdings.lock:
            account.closed = True
            self._holdings.give_back(account, tuple(account.loans))

    def trim(self) -> float | None:
        """Give memory back that has not been used for a moment; takes some milliseconds.

        Returns:
            Seconds by the store's clock at which to call again; None if there is nothing to do before the next
            ``free``, ``give_back``, ``forget``, or ``put`` that makes room.
        """
        if os.getpid() != self._pid:
            return None
        holdings = self._holdings
        with holdings.lock:
            holdings.settle()
            cuts = holdings.arena.cold(self._clock() - _WARM, _SLICE)
        if cuts:
            holdings.punch(cuts)
        with holdings.lock:
            since = holdings.arena.idle_since()
            if since is not None:
                return since + _WARM
            # What is looked at in this process is let go without a call.
            return self._clock() + _WARM if holdings.own.loans else None

    def close(self) -> None:
        """Give everything back. Blocks; no worker lives any more; what is looked at here stays until it is let go."""
        if os.getpid() != self._pid:
            return
        self._helper.stop()
        with self._mover.slow:
            with self._holdings.lock:
                blocks = self._holdings.close()
            for block in blocks:
                # A process that was forked may keep the segment open.
                block.punch(0)
            self._disk.close()
            self._holdings.borrower.close()

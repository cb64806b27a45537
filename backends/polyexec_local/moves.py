"""Moving values between memory and disk.

``slow`` is held by the one thread that does so, by whoever calls a method here, for as long as the disk takes. It is
taken before the lock of the holdings, never the other way round.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Iterator

from polyexec.errors import ObjectLost, ResourceExhausted
from polyexec.spi import Stored
from polyexec_local.borrower import Loan
from polyexec_local.holdings import Account, Handle, Holdings
from polyexec_local.memory import Layout
from polyexec_local.segments import Block, Cut
from polyexec_local.spill import SpillFile, Spot


class Mover:
    """Makes room, and brings values back.

    Args:
        holdings: what there is.
        disk: where values go.
    """

    def __init__(self, holdings: Holdings, disk: SpillFile) -> None:
        self.slow = threading.Lock()
        self._holdings = holdings
        self._disk = disk

    def clean(self) -> None:
        """Give room on disk back that is not needed any more."""
        while self._holdings.unneeded:
            self._disk.drop(self._holdings.unneeded.popleft())

    def make_room(self, size: int) -> Block | None:
        """Take a block; for it warm memory is given up first, then values go to disk, the longest unused first.

        Returns:
            The block, or None if all that is left is being looked at.

        Raises:
            ResourceExhausted: the disk is full, or the system has no memory or descriptor left.
        """
        self.clean()
        while True:
            with self._holdings.lock, exhausted("shared-memory", size):
                block = self._holdings.take(size)
                if block is not None:
                    return block
                arena = self._holdings.arena
                cuts = arena.cold(float("inf"), arena.missing(size))
                victim = None if cuts else self._holdings.victim()
            if cuts:
                self._holdings.punch(cuts)
            elif victim is not None:
                self._spill(victim)
            else:
                return None

    def room_beyond(self, size: int) -> Block:
        """Take a block even beyond the limit. Raises ``ResourceExhausted`` if the system has none."""
        with self._holdings.lock, exhausted("shared-memory", size):
            block = self._holdings.take(size, beyond=True)
        assert block is not None
        return block

    def put_on_disk(self, layout: Layout, stored: Stored) -> Handle:
        """Keep a value on disk from the beginning. Raises ``ResourceExhausted`` if that is full."""
        with self._holdings.lock:
            self._holdings.check_open()
        self.clean()
        with exhausted("disk", layout.size):
            return Handle(layout, spot=self._disk.write(layout.size, layout.pieces(stored)))

    def _spill(self, handle: Handle) -> None:
        """Move a pinned value to disk, unless somebody asks for it meanwhile."""
        block, size, spot = handle.block, handle.layout.size, None
        assert block is not None
        try:
            with exhausted("disk", size):
                spot = self._disk.write(size, [(0, block.memory(size))])
        finally:
            with self._holdings.lock:
                if spot is not None and handle.pins == 1:
                    handle.block, handle.spot, spot = None, spot, None
                    self._holdings.give(block)
                self._holdings.unpin(handle)
        if spot is not None:
            self._disk.drop(spot)

    def bring(self, handle: Handle, account: Account) -> Loan:
        """Lend a value, from disk if it is there.

        Raises:
            ObjectLost: it was freed, or cannot be read.
            ResourceExhausted: the system has no memory left.
        """
        with self._holdings.lock:
            self._holdings.check_open()
            if handle.block is not None:
                return self._holdings.lend(handle, account)
            if handle.spot is None:
                raise ObjectLost("put", "it has been freed")
            self._holdings.pin(handle)
        block = spot = None
        try:
            block = self._read(handle.spot)
        finally:
            with self._holdings.lock:
                if block is not None:
                    spot, handle.block, handle.spot = handle.spot, block, None
                    loan = self._holdings.lend(handle, account)
                self._holdings.unpin(handle)
        assert spot is not None
        self._disk.drop(spot)
        return loan

    def _read(self, spot: Spot) -> Block:
        """Bring a value's bytes into memory, even beyond the limit: what is stored stays readable."""
        block = None
        with contextlib.suppress(ResourceExhausted):
            block = self.make_room(spot.length)
        block = block or self.room_beyond(spot.length)
        try:
            self._disk.read(spot, block.memory(spot.length))
        except BaseException as error:
            self._holdings.punch([Cut(block, 0)])
            if not isinstance(error, OSError):
                raise
            if error.errno == errno.EFAULT:
                raise ResourceExhausted("shared-memory", f"no memory to bring {spot.length} bytes from disk") from error
            raise ObjectLost("put", f"it cannot be read from disk: {error}") from error
        return block


@contextlib.contextmanager
def exhausted(kind: str, size: int) -> Iterator[None]:
    """Turn an error of the system into one of the contract."""
    try:
        yield
    except OSError as error:
        found = "descriptors" if error.errno in (errno.EMFILE, errno.ENFILE) else kind
        raise ResourceExhausted(found, f"a value of {size} bytes: {error}") from error

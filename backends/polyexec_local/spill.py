"""Values on disk: one file for all, which has no name, so that nothing is left of it whatever dies.

One thread at a time may use it; the store's lock for slow things says which.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import attrs

from polyexec_local import memory
from polyexec_local.memory import Piece
from polyexec_local.segments import Buddy

_ADDRESSES = 1 << 42
"""Length that the file may have; it takes room only where it is written. File systems allow 16 TiB and more."""

_UNIT = 64 * 1024


@attrs.frozen
class Spot:
    """Where a value lies in the file.

    Attributes:
        offset: where it begins.
        length: of the value.
    """

    offset: int
    length: int

    @property
    def size(self) -> int:
        """Addresses that it takes, a power of two."""
        return _size(self.length)


class SpillFile:
    """Room on disk.

    Args:
        folder: where to make the file; None for a folder for large temporary files.
    """

    def __init__(self, folder: str | None = None) -> None:
        self._folder = folder
        self._descriptor = -1
        self._addresses = Buddy(_ADDRESSES)

    def write(self, length: int, pieces: Iterable[Piece]) -> Spot:
        """Write a value.

        Raises:
            OSError: there is no room; nothing of the value is left on disk.
        """
        if self._descriptor < 0:
            self._descriptor = _unnamed_file(self._folder or _usual_folder())
        offset = self._addresses.take(_size(length))
        if offset is None:
            raise OSError(f"the file would be longer than {_ADDRESSES} bytes")
        spot = Spot(offset, length)
        try:
            memory.write(self._descriptor, offset, pieces)
        except BaseException:
            self.drop(spot)
            raise
        return spot

    def read(self, spot: Spot, into: memoryview) -> None:
        """Read a value into memory.

        Raises:
            OSError: it cannot be read, or the memory does not exist.
        """
        done = 0
        while done < spot.length:
            count = os.preadv(self._descriptor, [into[done : spot.length]], spot.offset + done)
            if not count:
                # The value's end is alignment, which is never written.
                return
            done += count

    def drop(self, spot: Spot) -> None:
        """Give a value's room back to the file system."""
        if self._descriptor >= 0:
            memory.punch(self._descriptor, spot.offset, spot.size)
            self._addresses.give(spot.offset, spot.size)

    def close(self) -> None:
        """Close the file, which ends it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _size(length: int) -> int:
    return max(_UNIT, 1 << (length - 1).bit_length())


def _usual_folder() -> str:
    """Give the user's choice, or a folder that is on disk: on many systems /tmp is in memory."""
    if "TMPDIR" not in os.environ and os.access("/var/tmp", os.W_OK | os.X_OK):
        return "/var/tmp"
    import tempfile

    return tempfile.gettempdir()


def _unnamed_file(folder: str) -> int:
    """Make a file, readable by this user alone, that has no name, or loses it at once."""
    import tempfile

    with tempfile.TemporaryFile(prefix="polyexec-", dir=folder, buffering=0) as file:
        return os.dup(file.fileno())

"""Large values in anonymous shared memory, which the processes of one machine open through ``/proc``.

Nothing has a name in a file system, so nothing can be left behind: the memory goes with the last descriptor or mapping.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence

import attrs

from polyexec.spi import Buffer, Stored

THRESHOLD = 256 * 1024
"""Values of at least so many bytes go through shared memory."""
_ALIGNMENT = 64


@attrs.frozen
class Place:
    """Where a value lies: a path to open, and the sizes of its parts, the pickle first."""

    path: str
    sizes: tuple[int, ...]


class Segment:
    """Shared memory that holds one value and lives while its descriptor is open."""

    def __init__(self, descriptor: int, sizes: Sequence[int]) -> None:
        self._descriptor: int | None = descriptor
        self.place = Place(f"/proc/{os.getpid()}/fd/{descriptor}", tuple(sizes))

    @staticmethod
    def holding(stored: Stored) -> Segment | None:
        """Copy a value into new shared memory; None if the system has none to give."""
        parts: list[Buffer] = [stored.data, *stored.buffers]
        try:
            descriptor = os.memfd_create("polyexec", os.MFD_CLOEXEC)
        except (AttributeError, OSError):
            return None
        try:
            # The kernel makes them open to everybody who finds them in /proc.
            os.fchmod(descriptor, 0o600)
            offset = 0
            for part in parts:
                _write_all(descriptor, memoryview(part).cast("B"), offset)
                offset = _aligned(offset + memoryview(part).nbytes)
            os.ftruncate(descriptor, max(offset, 1))
        except OSError:
            os.close(descriptor)
            return None
        return Segment(descriptor, [memoryview(part).nbytes for part in parts])

    @staticmethod
    def adopting(place: Place) -> Segment:
        """Take a share in the memory of another process; raises ``OSError`` if it is gone or out of reach."""
        return Segment(os.open(place.path, os.O_RDONLY | os.O_CLOEXEC), place.sizes)

    def load(self, *, private: bool = False) -> Stored:
        """Map the value; its buffers stay good after ``close``.

        Args:
            private: who writes into the buffers changes pages of its own; otherwise they are read-only.
        """
        if self._descriptor is None:
            raise OSError("the shared memory has been given back")
        return _map(self._descriptor, self.place.sizes, mmap.ACCESS_COPY if private else mmap.ACCESS_READ)

    def close(self) -> None:
        """Give the memory back as soon as nobody maps it any more."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __del__(self) -> None:
        # A body may be interrupted anywhere, and what comes too late is only dropped.
        self.close()


def load(place: Place, *, private: bool = False) -> Stored:
    """Map a value that another process holds; raises ``OSError`` if it is gone or out of reach.

    Args:
        place: where it lies.
        private: see ``Segment.load``.
    """
    segment = Segment.adopting(place)
    try:
        return segment.load(private=private)
    finally:
        segment.close()


def _map(descriptor: int, sizes: Sequence[int], access: int) -> Stored:
    view = memoryview(mmap.mmap(descriptor, 0, access=access))
    parts = []
    offset = 0
    for size in sizes:
        parts.append(view[offset : offset + size])
        offset = _aligned(offset + size)
    return Stored(bytes(parts[0]), tuple(parts[1:]))


def _write_all(descriptor: int, view: memoryview, offset: int) -> None:
    while view.nbytes:
        count = os.pwrite(descriptor, view, offset)
        view = view[count:]
        offset += count


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT


def machine() -> str:
    """Name this machine as seen by this process: those for whom it is the same can open each other's memory."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot = file.read().strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}/{os.getuid()}"
    except (AttributeError, OSError):
        return ""

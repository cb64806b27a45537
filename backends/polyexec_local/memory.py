"""Large values in anonymous shared memory: a file without a name, passed from process to process by descriptor.

Nothing appears in /dev/shm, and nothing is left whatever dies: the memory goes with its last descriptor and mapping.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import sys
from collections.abc import Iterable, Iterator, Sequence

import attrs

from polyexec.spi import Buffer, Stored

THRESHOLD = 256 * 1024
"""Bytes from which on a value goes by shared memory instead of through the socket."""

_ALIGNMENT = 64
_CHUNK = 8 << 20
"""Bytes copied at a time: a copy holds the interpreter's lock, which other threads must get now and then."""

_MADV_POPULATE_WRITE = 23
_FALLOC_KEEP_SIZE, _FALLOC_PUNCH_HOLE = 1, 2


@attrs.frozen
class Layout:
    """Where the parts of a value lie: the data first, then the buffers.

    Attributes:
        data: length of the data.
        buffers: lengths of the buffers.
    """

    data: int
    buffers: tuple[int, ...]

    @staticmethod
    def of(stored: Stored) -> Layout:
        """Give the layout of a value."""
        return Layout(len(stored.data), tuple(memoryview(buffer).nbytes for buffer in stored.buffers))

    @property
    def size(self) -> int:
        """Bytes from the beginning of the first part to the end of the last, at least 1."""
        return max(1, self.offsets()[-1])

    def offsets(self) -> list[int]:
        """Give where each part begins, and where the last ends."""
        found, end = [], 0
        for length in (self.data, *self.buffers):
            found.append(end)
            end += -(-length // _ALIGNMENT) * _ALIGNMENT
        return [*found, end]

    def pieces(self, stored: Stored) -> Iterator[Piece]:
        """Give the parts of a value that has this layout, each with its offset."""
        for part, offset in zip((stored.data, *stored.buffers), self.offsets(), strict=False):
            yield offset, memoryview(part).cast("B")

    def stored(self, memory: memoryview) -> Stored:
        """Give the value that lies in memory; its buffers are parts of that memory, its data is copied."""
        offsets = self.offsets()
        buffers: Sequence[Buffer] = [
            memory[offset : offset + length] for offset, length in zip(offsets[1:], self.buffers, strict=False)
        ]
        return Stored(bytes(memory[: self.data]), buffers)


Piece = tuple[int, memoryview]


@attrs.define(eq=False)
class SharedValue:
    """A value in a file of its own, closed with the last reference to this object; mappings stay.

    Attributes:
        descriptor: the file.
        layout: where the parts lie.
    """

    descriptor: int
    layout: Layout

    def __del__(self) -> None:
        os.close(self.descriptor)


def share(stored: Stored) -> SharedValue:
    """Copy a value into a new file.

    Raises:
        OSError: there is no memory, or no descriptor, left.
    """
    layout = Layout.of(stored)
    descriptor = anonymous_file(layout.size)
    try:
        write(descriptor, 0, layout.pieces(stored))
    except BaseException:
        os.close(descriptor)
        raise
    return SharedValue(descriptor, layout)


def view(descriptor: int, layout: Layout, *, private: bool) -> Stored:
    """Map a value that has a file of its own.

    Args:
        descriptor: the file; may be closed afterwards.
        layout: where the parts lie.
        private: writable, seen by nobody else (copy on write); otherwise read-only.

    Returns:
        The value; its buffers keep the mapping alive.

    Raises:
        OSError: there is no room for a mapping.
    """
    mapping = Mapping(descriptor, layout.size, writable=private, private=private)
    memory = mapping.memory(0, layout.size)
    return layout.stored(memory if private else memory.toreadonly())


def anonymous_file(size: int) -> int:
    """Give the descriptor of a new file without a name, which takes memory only where it is written.

    Elsewhere than on Linux it is a file on disk that has lost its name.

    Raises:
        OSError: there is no descriptor left, or the process may not have files of that size.
    """
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("polyexec", os.MFD_CLOEXEC)
        # The kernel makes them open to everybody who finds them in /proc.
        os.fchmod(descriptor, 0o600)
    else:
        import tempfile

        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        os.truncate(descriptor, size)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def write(descriptor: int, begin: int, pieces: Iterable[Piece]) -> None:
    """Write parts into a file, at their offsets from ``begin``.

    Raises:
        OSError: there is no room; some of it may have been written.
    """
    for offset, piece in pieces:
        data, place = piece, begin + offset
        while data.nbytes:
            written = os.pwrite(descriptor, data[: 1 << 30], place)
            data, place = data[written:], place + written


def copy(memory: memoryview, pieces: Iterable[Piece]) -> None:
    """Copy parts into memory, at their offsets."""
    for offset, piece in pieces:
        for begin in range(0, piece.nbytes, _CHUNK):
            part = piece[begin : begin + _CHUNK]
            memory[offset + begin : offset + begin + part.nbytes] = part


def punch(descriptor: int, begin: int, length: int) -> None:
    """Give a part of a file back to the system, be it memory or disk; it reads as zeros afterwards.

    Where the system or the file system cannot do that, the part stays, to be written again one day.
    """
    if _LINUX:
        _libc.fallocate(descriptor, _FALLOC_PUNCH_HOLE | _FALLOC_KEEP_SIZE, begin, length)


class Mapping:
    """A part of a file in memory, until the last view of it goes. Unlike ``mmap`` it keeps no descriptor.

    Args:
        descriptor: the file; may be closed afterwards.
        length: bytes.
        begin: where it begins in the file, a multiple of the page size.
        writable: whether it may be written; otherwise a write, by whatever means, kills the process.
        private: what is written is seen by nobody else.

    Raises:
        OSError: there is no room for a mapping.
    """

    def __init__(
        self, descriptor: int, length: int, *, begin: int = 0, writable: bool = False, private: bool = False
    ) -> None:
        self._address = self._length = 0
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        flags = mmap.MAP_PRIVATE if private else mmap.MAP_SHARED
        address = _libc.mmap(None, length, protection, flags, descriptor, begin)
        if address == _FAILED:
            raise OSError(ctypes.get_errno(), f"mapping {length} bytes: {os.strerror(ctypes.get_errno())}")
        self._address, self._length = address, length

    def memory(self, begin: int, length: int, keep: object = None) -> memoryview:
        """Give a part of it; the mapping and ``keep`` live as long as anything uses that part."""
        found = _array_type((length - 1).bit_length()).from_address(self._address + begin)
        found.kept = (self, keep)  # type: ignore[attr-defined]  # objects of ctypes take attributes
        return memoryview(found).cast("B")[:length]

    def populate(self, begin: int, length: int) -> bool:
        """Give a part all its pages at once, ready to be written; False if it does not have them all.

        A page that is missing costs more to get at its first use than to copy, and if the system has none the process
        gets SIGBUS. Linux can do this from version 5.14 on.
        """
        return _LINUX and bool(_libc.madvise(self._address + begin, length, _MADV_POPULATE_WRITE) == 0)

    def __del__(self) -> None:
        if self._length:
            _libc.munmap(self._address, self._length)


@functools.cache
def _array_type(bits: int) -> type[ctypes.Array[ctypes.c_char]]:
    """Give one type for all lengths up to a power of two, since each type costs much to make."""
    return ctypes.c_char * (1 << bits)


_LINUX = sys.platform == "linux"
_FAILED = ctypes.c_void_p(-1).value
_address, _size, _number, _offset = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_long
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = _address
_libc.mmap.argtypes = (_address, _size, _number, _number, _number, _offset)
_libc.munmap.argtypes = (_address, _size)
if _LINUX:
    _libc.fallocate.argtypes = (_number, _number, _offset, _offset)
    _libc.madvise.argtypes = (_address, _size, _number)

"""Large values in anonymous shared memory: a file without a name, passed from process to process by descriptor.

Nothing appears in /dev/shm, and nothing is left whatever dies: the memory goes with its last descriptor and mapping.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
from collections.abc import Sequence

import attrs

from polyexec.spi import Buffer, Stored

THRESHOLD = 256 * 1024
"""Bytes from which on a value goes by shared memory instead of through the socket."""

_ALIGNMENT = 64


@attrs.frozen
class Layout:
    """Where the parts of a value lie in a file: the data first, then the buffers.

    Attributes:
        data: length of the data.
        buffers: lengths of the buffers.
    """

    data: int
    buffers: tuple[int, ...]

    def offsets(self) -> list[int]:
        """Give where each part begins, and where the last ends."""
        found, end = [], 0
        for length in (self.data, *self.buffers):
            found.append(end)
            end += -(-length // _ALIGNMENT) * _ALIGNMENT
        return [*found, end]


@attrs.define(eq=False)
class SharedValue:
    """A value in shared memory; the file is closed with the last reference to this object, mappings stay.

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
    layout = Layout(len(stored.data), tuple(memoryview(buffer).nbytes for buffer in stored.buffers))
    descriptor = _anonymous_file()
    try:
        offsets = layout.offsets()
        os.truncate(descriptor, max(1, offsets[-1]))
        for part, offset in zip((stored.data, *stored.buffers), offsets, strict=False):
            _write(descriptor, memoryview(part).cast("B"), offset)
    except BaseException:
        os.close(descriptor)
        raise
    return SharedValue(descriptor, layout)


def view(descriptor: int, layout: Layout, *, private: bool) -> Stored:
    """Map a value.

    Args:
        descriptor: the file; may be closed afterwards.
        layout: where the parts lie.
        private: writable, seen by nobody else (copy on write); otherwise read-only.

    Returns:
        The value; its buffers keep the mapping alive.

    Raises:
        OSError: there is no room for a mapping.
    """
    offsets = layout.offsets()
    mapped = _Mapping(descriptor, max(1, offsets[-1]), private=private).view()
    buffers: Sequence[Buffer] = [
        mapped[offset : offset + length] for offset, length in zip(offsets[1:], layout.buffers, strict=False)
    ]
    return Stored(bytes(mapped[: layout.data]), buffers)


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("polyexec", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    while data.nbytes:
        written = os.pwrite(descriptor, data[: 1 << 30], offset)
        data, offset = data[written:], offset + written


class _Mapping:
    """A mapping that ends with its last view. Unlike those of ``mmap`` before Python 3.13 it keeps no descriptor."""

    def __init__(self, descriptor: int, length: int, *, private: bool) -> None:
        self._address = self._length = 0
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if private else 0)
        flags = mmap.MAP_PRIVATE if private else mmap.MAP_SHARED
        address = _libc.mmap(None, length, protection, flags, descriptor, 0)
        if address == _FAILED:
            raise OSError(ctypes.get_errno(), f"mapping {length} bytes: {os.strerror(ctypes.get_errno())}")
        self._address, self._length, self._private = address, length, private

    def view(self) -> memoryview:
        memory = (ctypes.c_char * self._length).from_address(self._address)
        memory.mapping = self  # type: ignore[attr-defined]  # keeps it alive as long as any part of the memory is used
        seen = memoryview(memory).cast("B")
        return seen if self._private else seen.toreadonly()

    def __del__(self) -> None:
        if self._length:
            _libc.munmap(self._address, self._length)


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_FAILED = ctypes.c_void_p(-1).value

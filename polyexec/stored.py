"""Serialised values as they travel: a pickle with its out-of-band buffers, and the head of an outcome."""

from __future__ import annotations

import enum
import os
import struct
from collections.abc import Sequence
from typing import TypeAlias

import attrs

Buffer: TypeAlias = bytes | bytearray | memoryview


# Not frozen, because one is made for each message, and making a frozen one takes several times as long.
@attrs.define(eq=False)
class Stored:
    """A serialised value. Backends move it and never look inside.

    Attributes:
        data: the pickle, after the head if this is an outcome.
        buffers: the out-of-band buffers of pickle protocol 5, contiguous bytes, in order. Whoever receives them may
            be given any bytes-like object; read-only ones make read-only arrays.
    """

    data: bytes = attrs.field(repr=False)
    buffers: Sequence[Buffer] = attrs.field(default=(), repr=False)

    @property
    def nbytes(self) -> int:
        """Size in bytes, buffers included."""
        return len(self.data) + sum(memoryview(buffer).nbytes for buffer in self.buffers)


@attrs.define(eq=False)
class Message(Stored):
    """A request of a running call, as a backend may report it if it keeps the value that comes with the request.

    Attributes:
        handle: what the backend gets that value by. Then there are no buffers: those of a request are the data of its
            value, and the buffers of its value, in this order.
    """

    handle: object | None = None


class Tag(enum.IntEnum):
    """What an outcome is."""

    VALUE = 0
    ERROR = 1
    CANCELLED = 2
    BROKEN = 3


class Flag(enum.IntFlag):
    """What the driver must know about an outcome without deserialising it."""

    NONE = 0
    RETRYABLE = 1


_HEAD = struct.Struct("<2sBBIdIIQ")
_MAGIC = b"px"

VALUE_MARK = struct.pack("<2sBBI", _MAGIC, Tag.VALUE, Flag.NONE, 0)
"""How the data of an outcome begins that is a value without references."""

VALUE_SECONDS = struct.Struct("<8xd4xI8x")
"""The head of such an outcome: the seconds that the body ran, and the id of its process; the pickle follows."""

_process = [os.getpid()]
"""The id of this process; to ask the system for each outcome would take longer than the rest of its head."""

os.register_at_fork(after_in_child=lambda: _process.__setitem__(0, os.getpid()))


def process_id() -> int:
    """Give the id of this process."""
    return _process[0]


@attrs.frozen
class Head:
    """The part of an outcome that the driver reads.

    Attributes:
        tag: what the outcome is.
        flags: see ``Flag``.
        duration: seconds that the body ran.
        references: ids of the Futures inside the value.
        summary: one line about an error, for logs.
        pid: id of the process in which the body ran, 0 if unknown.
        size: bytes of the value with its buffers, 0 if unknown; for those who do not have the outcome itself.
    """

    tag: Tag = Tag.VALUE
    flags: Flag = Flag.NONE
    duration: float = 0.0
    references: tuple[int, ...] = ()
    summary: str = ""
    pid: int = 0
    size: int = 0

    def encode(self) -> bytes:
        """Give the bytes that stand before the pickle."""
        summary = self.summary.encode("utf-8", "replace")
        count = len(self.references)
        head = _HEAD.pack(_MAGIC, self.tag, self.flags, count, self.duration, len(summary), self.pid, self.size)
        return head + struct.pack(f"<{count}Q", *self.references) + summary

    @staticmethod
    def decode(data: bytes) -> tuple[Head, int]:
        """Read the head of an outcome.

        Args:
            data: an outcome's ``Stored.data``, or its first bytes.

        Returns:
            The head, and the offset at which the pickle begins.

        Raises:
            ValueError: these are not the bytes of an outcome.
        """
        if len(data) < _HEAD.size or data[:2] != _MAGIC:
            raise ValueError("not the bytes of an outcome")
        _, tag, flags, count, duration, length, pid, size = _HEAD.unpack_from(data)
        offset = _HEAD.size
        if tag >= len(_TAGS) or len(data) < offset + 8 * count + length:
            raise ValueError("the head of this outcome is not whole")
        references = struct.unpack_from(f"<{count}Q", data, offset) if count else ()
        offset += 8 * count
        summary = str(data[offset : offset + length], "utf-8", "replace") if length else ""
        found = Head(_TAGS[tag], Flag(flags) if flags else Flag.NONE, duration, references, summary, pid, size)
        return found, offset + length


_TAGS = tuple(Tag)


def value_head(seconds: float) -> bytes:
    """Give the head of a small value without references; the same as ``Head.encode`` gives."""
    return _HEAD.pack(_MAGIC, 0, 0, 0, seconds, 0, _process[0], 0)


@attrs.frozen(eq=False)
class Outcome:
    """How a call ended, as a backend reports it.

    Attributes:
        head: the first bytes of the outcome's data, its head at least.
        stored: the outcome itself, or None if the engine keeps it.
        handle: what the backend gets it back by, if the engine keeps it.
    """

    head: bytes
    stored: Stored | None = None
    handle: object | None = None

    @staticmethod
    def of(stored: Stored) -> Outcome:
        """Wrap an outcome that is here."""
        return Outcome(stored.data, stored)

"""Messages of known length over a byte stream."""

from __future__ import annotations

import struct
from collections.abc import Iterator

_LENGTH = struct.Struct("<Q")


class Frames:
    """Cuts a stream of bytes into messages."""

    def __init__(self) -> None:
        self._data = bytearray()

    @staticmethod
    def pack(message: bytes) -> bytes:
        """Put a message's length before it."""
        return _LENGTH.pack(len(message)) + message

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take what has arrived, and give the messages that are complete."""
        self._data += data
        while len(self._data) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._data)
            if len(self._data) < _LENGTH.size + length:
                return
            message = bytes(self._data[_LENGTH.size : _LENGTH.size + length])
            del self._data[: _LENGTH.size + length]
            yield message

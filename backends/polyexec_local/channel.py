"""Frames over a socket pair: a pickled head, small values inline, large ones as descriptors of shared memory.

A channel has one reader and any number of writers; ``_writing`` guards the sending side, and nothing but the sending
happens while it is held. Only polyexec's own records are unpickled here, never a user's data.
"""

from __future__ import annotations

import array
import contextlib
import os
import pickle
import socket
import struct
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import attrs

from polyexec.spi import Stored
from polyexec_local.memory import THRESHOLD, Layout, SharedValue, share, view

_LENGTH = struct.Struct("<Q")
_CHUNK = 1 << 20
_DESCRIPTORS = 64


@attrs.frozen
class Frame:
    """A message.

    Attributes:
        kind: what it is.
        fields: plain values.
        values: serialised values.
    """

    kind: str
    fields: tuple[Any, ...] = ()
    values: tuple[Stored, ...] = ()


@attrs.define(eq=False)
class Encoded:
    """A frame ready to be sent.

    Attributes:
        parts: bytes, in order.
        descriptors: to go along with the first byte.
        owned: shared memory to give back after sending.
    """

    parts: list[Any]
    descriptors: list[int]
    owned: list[SharedValue]


def encode(kind: str, fields: tuple[Any, ...] = (), values: Sequence[Stored | SharedValue] = ()) -> Encoded:
    """Encode a message; large values are copied into shared memory."""
    encoded = Encoded([], [], [])
    shapes: list[tuple[bool, Layout]] = []
    for given in values:
        value = given
        if isinstance(value, Stored) and value.nbytes > THRESHOLD:
            value = share(value)
            encoded.owned.append(value)
        if isinstance(value, SharedValue):
            shapes.append((True, value.layout))
            encoded.descriptors.append(value.descriptor)
        else:
            buffers = [memoryview(buffer).cast("B") for buffer in value.buffers]
            shapes.append((False, Layout(len(value.data), tuple(buffer.nbytes for buffer in buffers))))
            encoded.parts += [value.data, *buffers]
    head = pickle.dumps((kind, fields, tuple((shared, s.data, s.buffers) for shared, s in shapes)))
    encoded.parts.insert(0, _LENGTH.pack(len(head)) + head)
    return encoded


class Channel:
    """One end of a socket pair.

    Args:
        connection: the end; the channel owns it.
        private: map large values so that they are writable here.
    """

    def __init__(self, connection: socket.socket, *, private: bool) -> None:
        self._socket = connection
        self._private = private
        self._writing = threading.Lock()
        self._received = bytearray()
        self._descriptors: deque[int] = deque()
        self._outgoing: deque[tuple[memoryview, list[int]]] = deque()
        self._owned: list[SharedValue] = []

    def fileno(self) -> int:
        """Give the descriptor, for selectors."""
        return self._socket.fileno()

    def send(self, encoded: Encoded) -> None:
        """Send a frame; blocks until the other end has room. Raises ``OSError`` if it is gone."""
        with self._writing:
            try:
                first = b"".join(encoded.parts) if _small(encoded) else encoded.parts[0]
                self._send_all(memoryview(first), encoded.descriptors)
                if first is encoded.parts[0]:
                    for part in encoded.parts[1:]:
                        self._send_all(memoryview(part), [])
            finally:
                _give_back(encoded.owned)

    def _send_all(self, data: memoryview, descriptors: list[int]) -> None:
        while data.nbytes:
            data = data[self._send_some(data, descriptors) :]
            descriptors = []

    def _send_some(self, data: memoryview, descriptors: list[int]) -> int:
        if not descriptors:
            return self._socket.send(data[:_CHUNK])
        rights = array.array("i", descriptors)
        return self._socket.sendmsg([data[:_CHUNK]], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])

    def enqueue(self, encoded: Encoded) -> bool:
        """Send without blocking what there is room for, and keep the rest for ``flush``; for one thread.

        Returns:
            Whether all has been sent.
        """
        for index, part in enumerate([b"".join(encoded.parts)] if _small(encoded) else encoded.parts):
            self._outgoing.append((memoryview(part), encoded.descriptors if index == 0 else []))
        self._owned += encoded.owned
        return self.flush()

    def flush(self) -> bool:
        """Send what is left without blocking; say whether all has been sent."""
        while self._outgoing:
            data, descriptors = self._outgoing[0]
            try:
                sent = self._send_some(data, descriptors) if data.nbytes else 0
            except BlockingIOError:
                return False
            if sent < data.nbytes:
                self._outgoing[0] = (data[sent:], [])
            else:
                self._outgoing.popleft()
        _give_back(self._owned)
        self._owned = []
        return True

    def receive(self) -> Iterator[Frame] | None:
        """Read once, and give the frames that are complete; None at the end of the stream.

        Raises:
            BlockingIOError: there is nothing, and the socket does not block.
            ConnectionError: the other end is gone.
        """
        space = socket.CMSG_SPACE(_DESCRIPTORS * array.array("i").itemsize)
        data, ancillary, _, _ = self._socket.recvmsg(_CHUNK, space, socket.MSG_CMSG_CLOEXEC)
        for level, kind, rights in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers = array.array("i")
                numbers.frombytes(rights[: len(rights) - len(rights) % numbers.itemsize])
                self._descriptors.extend(numbers)
        if not data:
            return None
        self._received += data
        return self._frames()

    def _frames(self) -> Iterator[Frame]:
        while len(self._received) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._received)
            begin = _LENGTH.size + length
            if len(self._received) < begin:
                return
            kind, fields, shapes = pickle.loads(memoryview(self._received)[_LENGTH.size : begin])
            layouts = [(shared, Layout(data, buffers)) for shared, data, buffers in shapes]
            end = begin + sum(layout.data + sum(layout.buffers) for shared, layout in layouts if not shared)
            if len(self._received) < end:
                return
            body = bytes(memoryview(self._received)[begin:end])
            del self._received[:end]
            yield Frame(kind, fields, tuple(self._values(layouts, body)))

    def _values(self, layouts: Sequence[tuple[bool, Layout]], body: bytes) -> Iterator[Stored]:
        offset = 0
        for shared, layout in layouts:
            if shared:
                descriptor = self._descriptors.popleft()
                try:
                    yield view(descriptor, layout, private=self._private)
                finally:
                    os.close(descriptor)
                continue
            parts = []
            for length in (layout.data, *layout.buffers):
                parts.append(body[offset : offset + length])
                offset += length
            yield Stored(parts[0], parts[1:])

    def close(self) -> None:
        """Close the end, and all descriptors that were not used."""
        _give_back(self._owned)
        while self._descriptors:
            os.close(self._descriptors.popleft())
        with contextlib.suppress(OSError):
            self._socket.close()


def _small(encoded: Encoded) -> bool:
    return sum(len(part) for part in encoded.parts) <= THRESHOLD


def _give_back(owned: list[SharedValue]) -> None:
    for value in owned:
        value.close()

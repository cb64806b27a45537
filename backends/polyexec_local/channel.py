"""Frames over a socket pair: a pickled head, small values inline, large ones as descriptors of shared memory.

A channel has one reader and any number of writers; ``_writing`` guards the sending side, and nothing but the sending
happens while it is held. Only polyexec's own records are unpickled here, never a user's data.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import pickle
import socket
import struct
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import attrs

from polyexec.spi import Stored
from polyexec_local.borrower import Loan
from polyexec_local.memory import THRESHOLD, Layout, SharedValue, share, view
from polyexec_local.segments import Segment

_MAGIC = b"plex"
_LENGTH = struct.Struct("<4sQ")
_DONE_MAGIC = b"plxd"
_DONE = struct.Struct("<4sQQ")
_CHUNK = 1 << 20
_READ = 1 << 16
"""Bytes taken at once."""

_DESCRIPTORS = 250
"""Sent with one message at most; Linux allows 253."""

_SPACE = socket.CMSG_SPACE(_DESCRIPTORS * array.array("i").itemsize)

_NO_SIGNAL: int = getattr(socket, "MSG_NOSIGNAL", 0)
"""A program may have given SIGPIPE its default back, by which a worker's death would end the driver."""


@attrs.frozen
class Frame:
    """A message.

    Attributes:
        kind: what it is.
        fields: plain values.
        values: serialised values, or the loans of those that are in the store.
        descriptor: what came with it besides values, -1 if nothing; for the receiver to close.
    """

    kind: str
    fields: tuple[Any, ...] = ()
    values: tuple[Stored | Loan, ...] = ()
    descriptor: int = -1


@attrs.define(eq=False)
class Encoded:
    """A frame ready to be sent.

    Attributes:
        parts: bytes, in order.
        shared: their descriptors go along with the first bytes; held until then, so that none is closed before.
    """

    parts: list[Any]
    shared: list[SharedValue | Segment]


@attrs.define(eq=False)
class Done:
    """The end of a plain call, in the shortest form; not frozen, because there are so many.

    Attributes:
        call_id: the call.
        data: of its outcome, which has no buffers.
    """

    call_id: int
    data: bytes


_Shape: TypeAlias = tuple[bool, int, tuple[int, ...]] | Loan
"""Of a value in a frame: whether it has a file of its own, its layout; or its loan."""


def encode(kind: str, fields: tuple[Any, ...] = (), values: Sequence[Stored | Loan] = ()) -> Encoded:
    """Encode a message; large values that are not lent are copied into shared memory of their own."""
    encoded = Encoded([], [])
    shapes: list[_Shape] = []
    for value in values:
        if isinstance(value, Loan):
            shapes.append(value)
        elif value.nbytes > THRESHOLD:
            shared = share(value)
            shapes.append((True, shared.layout.data, shared.layout.buffers))
            encoded.shared.append(shared)
        else:
            buffers = [memoryview(buffer).cast("B") for buffer in value.buffers]
            shapes.append((False, len(value.data), tuple(buffer.nbytes for buffer in buffers)))
            encoded.parts += [value.data, *buffers]
    return _with_head(encoded, kind, fields, shapes)


def encode_segment(segment: Segment) -> Encoded:
    """Encode the message by which a worker learns of a segment; its descriptor goes along."""
    return _with_head(Encoded([], [segment]), "segment", (segment.number, segment.size), ())


def _with_head(encoded: Encoded, kind: str, fields: tuple[Any, ...], shapes: Sequence[_Shape]) -> Encoded:
    head = pickle.dumps((kind, fields, tuple(shapes)))
    encoded.parts.insert(0, _LENGTH.pack(_MAGIC, len(head)) + head)
    return encoded


_Outgoing: TypeAlias = tuple[memoryview, Sequence[SharedValue | Segment]]
"""Bytes, and what goes along with the first of them."""


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
        self._room = memoryview(bytearray(_READ))
        self._descriptors: deque[int] = deque()
        self._outgoing: deque[_Outgoing] = deque()

    @property
    def pending(self) -> bool:
        """Whether something that was enqueued has not been sent."""
        return bool(self._outgoing)

    def fileno(self) -> int:
        """Give the descriptor, for selectors."""
        return self._socket.fileno()

    def send_done(self, call_id: int, data: bytes) -> None:
        """Send the end of a plain call; see ``send``."""
        whole = _DONE.pack(_DONE_MAGIC, len(data), call_id) + data
        with self._writing:
            sent = self._socket.send(whole, _NO_SIGNAL)
            while sent < len(whole):
                sent += self._socket.send(memoryview(whole)[sent:], _NO_SIGNAL)

    def send(self, encoded: Encoded) -> None:
        """Send a frame; blocks until the other end has room. Raises ``OSError`` if it is gone."""
        with self._writing:
            for part in _outgoing(encoded):
                left = part
                while left[0].nbytes:
                    left = self._send_some(*left)

    def _send_some(self, data: memoryview, shared: Sequence[SharedValue | Segment]) -> _Outgoing:
        """Send what there is room for; give what is left."""
        if not shared:
            return data[self._socket.send(data[:_CHUNK], _NO_SIGNAL) :], ()
        later = shared[_DESCRIPTORS:]
        rights = array.array("i", [value.descriptor for value in shared[:_DESCRIPTORS]])
        # Descriptors need a byte to go with; a head has more bytes than values.
        part = data[: 1 if later else _CHUNK]
        sent = self._socket.sendmsg([part], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)], _NO_SIGNAL)
        return data[sent:], later

    def enqueue(self, encoded: Encoded) -> bool:
        """Send without blocking what there is room for, and keep the rest for ``flush``; for one thread.

        Returns:
            Whether all has been sent.
        """
        self._outgoing += _outgoing(encoded)
        return self.flush()

    def flush(self) -> bool:
        """Send what is left without blocking; say whether all has been sent."""
        while self._outgoing:
            data, shared = self._outgoing[0]
            try:
                while data.nbytes:
                    self._outgoing[0] = data, shared = self._send_some(data, shared)
            except BlockingIOError:
                return False
            self._outgoing.popleft()
        return True

    def receive(self, flags: int = 0) -> deque[Frame | Done] | None:
        """Read once, and give the frames that are complete; None at the end of the stream.

        Args:
            flags: for the system; with ``MSG_DONTWAIT`` it does not block.

        Raises:
            BlockingIOError: there is nothing, and the socket does not block.
            OSError: the other end is gone, or what it sends is not good, or finds no room here; the channel is of no
                use any more.
        """
        flags |= socket.MSG_CMSG_CLOEXEC
        count, ancillary, flags, _ = self._socket.recvmsg_into([self._room], _SPACE, flags)
        for level, kind, rights in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers = array.array("i")
                numbers.frombytes(rights[: len(rights) - len(rights) % numbers.itemsize])
                self._descriptors.extend(numbers)
        if flags & socket.MSG_CTRUNC:
            raise OSError(errno.EMFILE, "no descriptor is left for the values that arrive")
        if not count:
            return None
        self._received += self._room[:count]
        frames: deque[Frame | Done] = deque()
        used = 0
        try:
            while (end := self._take_frame(used, frames)) is not None:
                used = end
        finally:
            del self._received[:used]
        return frames

    def _take_frame(self, begin: int, frames: deque[Frame | Done]) -> int | None:
        """Take the frame that begins there; give where it ends, None if it is not complete."""
        received = self._received
        if len(received) - begin < _DONE.size:
            return None
        magic, length, call_id = _DONE.unpack_from(received, begin)
        if magic != _DONE_MAGIC:
            return self._take_general(begin, frames)
        end: int = begin + _DONE.size + length
        if len(received) < end:
            return None
        frames.append(Done(call_id, bytes(received[begin + _DONE.size : end])))
        return end

    def _take_general(self, begin: int, frames: deque[Frame | Done]) -> int | None:
        received = self._received
        magic, length = _LENGTH.unpack_from(received, begin)
        if magic != _MAGIC:
            raise ConnectionError("something else than a frame has come, written by a task perhaps")
        body = begin + _LENGTH.size + length
        if len(received) < body:
            return None
        with memoryview(received) as view:
            kind, fields, shapes = pickle.loads(view[begin + _LENGTH.size : body])
        end: int = body + sum(map(_inline_length, shapes))
        if len(received) < end:
            return None
        descriptor = self._descriptors.popleft() if kind == "segment" else -1
        frames.append(Frame(kind, fields, tuple(self._values(shapes, bytes(received[body:end]))), descriptor))
        return end

    def _values(self, shapes: Sequence[_Shape], body: bytes) -> Iterator[Stored | Loan]:
        offset = 0
        for shape in shapes:
            if isinstance(shape, Loan):
                yield shape
                continue
            shared, data, buffers = shape
            if shared:
                descriptor = self._descriptors.popleft()
                try:
                    yield view(descriptor, Layout(data, buffers), private=self._private)
                finally:
                    os.close(descriptor)
                continue
            parts = []
            for length in (data, *buffers):
                parts.append(body[offset : offset + length])
                offset += length
            yield Stored(parts[0], parts[1:])

    def close(self) -> None:
        """Close the end, and all descriptors that were not used."""
        self._outgoing.clear()
        while self._descriptors:
            os.close(self._descriptors.popleft())
        with contextlib.suppress(OSError):
            self._socket.close()


def _inline_length(shape: _Shape) -> int:
    return 0 if isinstance(shape, Loan) or shape[0] else shape[1] + sum(shape[2])


def _outgoing(encoded: Encoded) -> Iterator[_Outgoing]:
    small = sum(len(part) for part in encoded.parts) <= THRESHOLD
    for index, part in enumerate([b"".join(encoded.parts)] if small else encoded.parts):
        yield memoryview(part), encoded.shared if index == 0 else ()

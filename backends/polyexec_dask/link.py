"""A direct connection between the driver and one worker process, over Dask's own comms.

It carries calls, outcomes, requests, interrupts and values, so that none of them has to pass through the scheduler.
Messages arrive in the order in which they were sent. What was flushed before a process dies is still delivered,
because the kernel holds it by then: that is how the driver knows which bodies a dead worker had started.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from polyexec.spi import Stored
from polyexec_dask.engine import CommClosedError, to_serialize

Message: TypeAlias = tuple[Any, ...]

_INLINE_LIMIT = 64 * 1024


def pack(stored: Stored) -> tuple[Any, ...]:
    """Make a serialised value part of a message; large parts travel as frames of their own, uncopied."""
    large = len(stored.data) > _INLINE_LIMIT
    return (_frame(stored.data) if large else stored.data, *(_frame(buffer) for buffer in stored.buffers))


def _frame(buffer: bytes | bytearray | memoryview) -> Any:
    return to_serialize(pickle.PickleBuffer(buffer))


def unpack(parts: Sequence[Any]) -> Stored:
    """Take a serialised value out of a message."""
    data, *buffers = parts
    return Stored(data if isinstance(data, bytes) else bytes(data), tuple(memoryview(part) for part in buffers))


class Link:
    """One end of the connection. Belongs to an event loop; only ``post`` may be called from other threads.

    Args:
        comm: the connection.
        receive: called with each message.
        closed: called once when the connection is gone, after the last message.
    """

    def __init__(self, comm: Any, receive: Callable[[Message], None], closed: Callable[[], None]) -> None:
        self._comm = comm
        self._receive = receive
        self._closed = closed
        self._loop = asyncio.get_running_loop()
        self._outbox: list[Message] = []
        self._flushed: list[Callable[[], None]] = []
        self._wake = asyncio.Event()
        self.is_open = True
        self._writer = self._loop.create_task(self._write())

    def send(self, message: Message, flushed: Callable[[], None] | None = None) -> None:
        """Send a message soon.

        Args:
            message: what Dask's comms can carry.
            flushed: called when the kernel has the message, or when the connection is gone.
        """
        if not self.is_open:
            if flushed is not None:
                flushed()
            return
        self._outbox.append(message)
        if flushed is not None:
            self._flushed.append(flushed)
        self._wake.set()

    def post(self, message: Message, flushed: Callable[[], None] | None = None) -> None:
        """Send a message from any thread."""
        self._loop.call_soon_threadsafe(self.send, message, flushed)

    async def serve(self) -> None:
        """Receive messages until the connection is gone."""
        try:
            while True:
                for message in await self._comm.read():
                    self._receive(message)
        except (CommClosedError, OSError, EOFError):
            pass
        finally:
            self.close()

    def close(self) -> None:
        """Drop the connection."""
        if not self.is_open:
            return
        self.is_open = False
        self._comm.abort()
        self._writer.cancel()
        self._give_up()
        self._closed()

    def _give_up(self) -> None:
        self._outbox.clear()
        waiting, self._flushed = self._flushed, []
        for flushed in waiting:
            flushed()

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            # Lets what has arrived be read first: a failed write closes the stream and drops it. Gathers messages, too.
            await asyncio.sleep(0)
            batch, self._outbox = self._outbox, []
            waiting, self._flushed = self._flushed, []
            try:
                if batch:
                    await self._comm.write(batch, on_error="raise")
                    await _flush(self._comm)
            except (CommClosedError, OSError):
                # ``serve`` notices too, after it has read what had arrived before.
                self._give_up()
            finally:
                for flushed in waiting:
                    flushed()


async def _flush(comm: Any) -> None:
    stream = getattr(comm, "stream", None)
    if stream is not None and stream.writing():
        await stream.write(b"")

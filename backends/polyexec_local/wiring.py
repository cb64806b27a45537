"""What travels between the pool and its workers.

Belongs to the core's thread. A worker is on two ways: its channel, for calls and their ends, and its line, for what is
said while a call runs.
"""

from __future__ import annotations

import contextlib
import selectors
import time
from collections import deque
from collections.abc import Callable, Sequence

from polyexec_local.channel import Channel, Done, Encoded, Frame, encode_segment
from polyexec_local.member import Worker
from polyexec_local.segments import Segment

_END_GRACE = 1.0
"""Seconds that a worker gets to end when it cannot be spoken to any more."""


class Wiring:
    """Writes to workers, and takes what they have sent.

    Args:
        selector: says when there is something to do; not closed here.
        take: gets each frame, in order.
    """

    def __init__(self, selector: selectors.BaseSelector, take: Callable[[Worker, Frame | Done], None]) -> None:
        self._selector = selector
        self._take = take

    def add(self, worker: Worker) -> None:
        """Listen to a worker."""
        self._selector.register(worker.channel, selectors.EVENT_READ, worker)
        self._selector.register(worker.line, selectors.EVENT_READ, worker)

    def remove(self, worker: Worker) -> None:
        """Listen no more; before the channels are closed."""
        for channel in (worker.channel, worker.line):
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(channel)

    def serve(self, worker: Worker, events: int, descriptor: int) -> None:
        """Do what the selector has found to do."""
        channel = worker.channel if descriptor == worker.channel.fileno() else worker.line
        if events & selectors.EVENT_WRITE:
            self._flush(channel, worker)
        if events & selectors.EVENT_READ:
            self._read(channel, worker)

    def _read(self, channel: Channel, worker: Worker) -> None:
        try:
            frames = channel.receive()
            if frames is not None and channel is worker.line:
                # What came on the line must not overtake the ends of earlier calls.
                self.take_ready(worker)
        except BlockingIOError:
            return
        except ConnectionResetError:
            worker.deaf, frames = worker.deaf or channel is worker.channel, None
        except OSError as error:
            worker.give_up(f"what it sent cannot be taken: {error}")
            frames = None
        if frames is None:
            self._selector.unregister(channel)
            # Its end follows in a moment; if not, it is of no use any more.
            worker.doomed = True
            worker.deadline = min(worker.deadline, time.monotonic() + _END_GRACE)
        else:
            self._take_all(worker, frames)

    def take_ready(self, worker: Worker) -> None:
        """Take all ends of calls that a worker has reported by now; raises ``OSError`` if it is dying."""
        with contextlib.suppress(BlockingIOError):
            while (frames := worker.channel.receive()) is not None:
                self._take_all(worker, frames)

    def drain(self, worker: Worker) -> None:
        """Take what a dead worker had sent; nothing that comes half is reported."""
        for channel in (worker.channel, worker.line):
            try:
                while (frames := channel.receive()) is not None:
                    self._take_all(worker, frames)
            except ConnectionResetError:
                # What is unread on the line is older than the call.
                worker.deaf = worker.deaf or channel is worker.channel
            except OSError:
                continue

    def _take_all(self, worker: Worker, frames: deque[Frame | Done]) -> None:
        while frames:
            # Nothing of a frame may live here until the next one comes (O5).
            self._take(worker, frames.popleft())

    def send(self, worker: Worker, encoded: Encoded, line: Channel | None = None) -> None:
        """Send something to a worker, if it lives: on its channel, or on its line if that is given."""
        if worker.buried or worker.cause:
            return
        channel = line or worker.channel
        worker.fresh = False
        try:
            done = channel.enqueue(encoded)
        except (BrokenPipeError, ConnectionResetError):
            # It is dying, as the template says in a moment.
            return
        except OSError as error:
            worker.give_up(f"nothing can be sent to it: {error}")
            return
        if not done:
            self._selector.modify(channel, selectors.EVENT_READ | selectors.EVENT_WRITE, worker)

    def send_lent(self, worker: Worker, segments: Sequence[Segment], encoded: Encoded, channel: Channel) -> None:
        """Send something that is about loans; on both ways, since either may be read first, what segments there are."""
        for segment in segments:
            for way in (worker.channel, worker.line):
                self.send(worker, encode_segment(segment), way)
        self.send(worker, encoded, channel)

    def _flush(self, channel: Channel, worker: Worker) -> None:
        with contextlib.suppress(OSError):
            if channel.flush():
                self._selector.modify(channel, selectors.EVENT_READ, worker)

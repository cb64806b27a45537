"""A worker process: its main thread runs calls, a second thread listens to what the driver wants meanwhile.

State and who owns it
    Calls come on a channel of their own, from which the main thread alone reads, when it has nothing to do, and to
    which it alone writes, when a body has ended; so a call costs no change of threads. Whatever a running body needs
    goes over the other channel, the line: the listener alone reads from it, the speaker alone writes to it. A body's
    own thread never writes to either, because an interrupt could tear a frame; it leaves that to the speaker.
    ``_items`` belongs to the main thread. ``_boxes`` maps a request to the queue on which its thread waits, by atomic
    dict operations. ``_deciding`` and ``_running`` are written by the main thread alone: it is about to look whether
    a call may start; the plain call that has started. ``Page`` says who writes what to the memory that is shared with
    the driver. The listener ends the process when the driver is gone.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Any, TypeAlias

from polyexec import envelope
from polyexec.interrupts import SignalInterrupts
from polyexec.plain_worker import PlainWorker
from polyexec.spi import Stored
from polyexec_local.channel import Channel, Encoded, Frame, encode
from polyexec_local.page import Page, receive_kit

_forked: list[bool] = []
"""Not empty in a process that a task has forked."""

_Plain: TypeAlias = tuple[int, int, int, bytes, str]
"""Seat, call, key of the function, data, and the name of the task if the key is 0."""


class _Worker:
    def __init__(self, channel: Channel, line: Channel, page: Page) -> None:
        self._channel = channel
        self._line = line
        self._page = page
        self._items: deque[Frame | _Plain] = deque()
        self._outgoing: SimpleQueue[Encoded | int] = SimpleQueue()
        self._boxes: dict[int, SimpleQueue[tuple[bytes, Sequence[Stored]]]] = {}
        self._numbers = itertools.count(1)
        self._interrupts = SignalInterrupts()
        self._setup = b""
        self._plain: PlainWorker | None = None
        self._seat = 0
        self._running = 0
        self._deciding = False

    # The main thread

    def run(self) -> None:
        """Serve until the driver says goodbye."""
        threading.Thread(target=self._listen, name="polyexec-listener", daemon=True).start()
        threading.Thread(target=self._speak, name="polyexec-speaker", daemon=True).start()
        while True:
            while not self._items:
                self._receive()
            item = self._items.popleft()
            if isinstance(item, tuple):
                self._run_plain(*item)
            elif not self._run_frame(item):
                return
            # Nothing of a call may live until the next one comes (O5).
            del item

    def _receive(self) -> None:
        frames = self._channel.receive()
        if frames is None:
            _die()
            return
        while frames:
            frame = frames.popleft()
            assert isinstance(frame, Frame)
            if frame.kind == "hand":
                self._learn(*frame.fields)
            else:
                self._items.append(frame)

    def _learn(
        self, seat: int, forget: bool, functions: Sequence[tuple[int, bytes, str]], calls: Sequence[Any]
    ) -> None:
        assert self._plain is not None
        if forget:
            self._plain.forget()
        for function in functions:
            self._plain.learn(*function)
        self._items.extend((seat, *call) for call in calls)

    def _run_plain(self, seat: int, call_id: int, key: int, data: bytes, name: str) -> None:
        self._deciding = True
        # In this order: whoever closes the seat looks at the mark afterwards, so that one of the two is seen.
        self._page.mark(call_id)
        if self._page.closed >= seat:
            # The driver has taken it back, or will.
            self._deciding = False
            return
        self._seat, self._running = seat, call_id
        self._deciding = False
        assert self._plain is not None
        result = self._plain.run(call_id, key, data, name)
        self._check_process()
        if isinstance(result, bytes):
            self._channel.send_done(call_id, result)
        else:
            self._channel.send(self._encode_outcome(call_id, result))
        self._seat = self._running = 0

    def _run_frame(self, frame: Frame) -> bool:
        if frame.kind == "exit":
            return False
        answer = self._answer(frame)
        self._check_process()
        self._channel.send(answer)
        return True

    def _check_process(self) -> None:
        if _forked:
            # The task has forked, and this is its child; only the worker itself may answer.
            os._exit(0)

    def _answer(self, frame: Frame) -> Encoded:
        if frame.kind == "setup":
            self._setup = frame.fields[0]
            refusal = envelope.prepare(self._setup)
            if refusal is None:
                self._plain = PlainWorker(self._setup, lambda call_id: _Uplink(self, call_id), self._interrupts)
            return encode("ready", (), () if refusal is None else (refusal,))
        call_id, head = frame.fields
        body, *values = frame.values
        outcome = envelope.run(head, body, values, _Uplink(self, call_id), self._interrupts, setup=self._setup)
        return self._encode_outcome(call_id, outcome)

    @staticmethod
    def _encode_outcome(call_id: int, outcome: Stored) -> Encoded:
        try:
            return encode("finished", (call_id,), (outcome,))
        except OSError as error:
            return encode("failed", (call_id, str(error)))

    # The other threads

    def _listen(self) -> None:
        try:
            while (frames := self._line.receive()) is not None:
                while frames:
                    frame = frames.popleft()
                    assert isinstance(frame, Frame)
                    self._hear(frame)
                    # Nothing of a frame may live here until the next one comes (O5).
                    del frame
        finally:
            # Whatever has gone wrong, nobody would hear of a worker that cannot read.
            _die()

    def _hear(self, frame: Frame) -> None:
        if frame.kind == "recall":
            self._outgoing.put(frame.fields[0])
        elif frame.kind == "interrupt":
            verdict = self._interrupts.deliver(frame.fields[0])
            self._outgoing.put(encode("stopped", (frame.fields[0], verdict.value)))
        elif frame.kind == "reply":
            request, message = frame.fields
            self._boxes.pop(request).put((message, frame.values))

    def _speak(self) -> None:
        while True:
            item = self._outgoing.get()
            self._line.send(self._close_seat(item) if isinstance(item, int) else item)

    def _close_seat(self, seat: int) -> Encoded:
        """Let nothing more start of a seat, and say what has started."""
        self._page.close(seat)
        while self._deciding:
            time.sleep(0)
        return encode("kept", (seat, self._running))

    # The threads of bodies

    def ask(self, call_id: int, message: Stored) -> tuple[bytes, Sequence[Stored]]:
        """Send a request to the driver, and wait for its reply."""
        seat = self._seat
        if seat and self._page.closed < seat:
            # From here on the driver treats the call like any other; those behind it cannot wait for its end.
            self._outgoing.put(seat)
        number = next(self._numbers)
        box = self._boxes[number] = SimpleQueue()
        self._outgoing.put(encode("request", (number, call_id), (message,)))
        return box.get()


class _Uplink:
    def __init__(self, worker: _Worker, call_id: int) -> None:
        self._worker = worker
        self._call_id = call_id

    def request(self, message: Stored) -> tuple[bytes, Sequence[Stored]]:
        return self._worker.ask(self._call_id, message)


def _die() -> None:
    """End this process and what its tasks have started: the driver is gone."""
    with contextlib.suppress(OSError):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def serve(connection: socket.socket) -> None:
    """Run a worker on a connection, on which the descriptors of its line and its page come first."""
    connection.setblocking(True)
    line, page = receive_kit(connection)
    line.setblocking(True)
    os.register_at_fork(after_in_child=lambda: _forked.append(True))
    try:
        _Worker(Channel(connection, private=True), Channel(line, private=True), page).run()
    except (BrokenPipeError, ConnectionResetError):
        # The driver is gone, or needs this worker no more.
        _die()

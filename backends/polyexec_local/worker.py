"""A worker process: its main thread runs calls, a second thread listens to what the driver wants meanwhile.

State and who owns it
    Calls come on a channel of their own, from which the main thread alone reads, when it has nothing to do, and to
    which it alone writes, when a body has ended; so a call costs no change of threads. Whatever a running body needs
    goes over the other channel, the line: the listener alone reads from it, the speaker alone writes to it. A body's
    own thread never writes to either, because an interrupt could tear a frame; it leaves that to the speaker. What
    calls tell goes on the channel, so that it comes before their ends: whoever has ``_telling``, the speaker, or the
    main thread when a body has ended, sends what is in ``_tidings``. ``_has_told`` is set by whoever adds to it, and
    cleared by the main thread alone.
    ``_items`` belongs to the main thread. ``_boxes`` maps a request to the queue on which its thread waits, by atomic
    dict operations. ``_known`` and what the borrower knows of segments is guarded by ``_borrowing``, because each of
    the two channels may tell of a new one, and so is the look for what is seen no more. ``_room`` belongs to the main
    thread. ``_deciding`` and ``_running`` are written by the main thread alone: it is about to look whether
    a call may start; the plain call that has started. ``Page`` says who writes what to the memory that is shared with
    the driver. The listener ends the process when the driver is gone.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import select
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias

from polyexec import envelope, outcome
from polyexec.errors import PolyexecError, ResourceExhausted
from polyexec.interrupts import SignalInterrupts
from polyexec.plain_worker import PlainWorker
from polyexec.spi import Head, Stored, Tag
from polyexec_local.borrower import Borrower, Loan
from polyexec_local.channel import Channel, Done, Encoded, Frame, encode
from polyexec_local.memory import THRESHOLD, Layout
from polyexec_local.page import Page, receive_kit

_forked: list[bool] = []
"""Not empty in a process that a task has forked."""

_Plain: TypeAlias = tuple[int, int, int, bytes, str]
"""Seat, call, key of the function, data, and the name of the task if the key is 0."""

_SHORT = 1e-4
"""Seconds for which the main thread watches for the next call before it sleeps, if that was there as soon before."""

_LOOK = 0.3
"""Seconds between looks at whether something that was lent is not seen any more; O5 allows one second for all."""


class _Room:
    """Room that was lent for a value; given back unless the value was written and sent.

    A body may be interrupted anywhere between, so that nobody else would know.
    """

    def __init__(self, borrower: Borrower, loan: Loan) -> None:
        self._borrower = borrower
        self._is_sent = False
        self.loan = loan

    def write(self, stored: Stored) -> None:
        """Copy the value into it; raises ``ResourceExhausted`` if there is no memory."""
        try:
            self._borrower.write(self.loan, stored)
        except OSError as error:
            reason = f"a value of {self.loan.layout.size} bytes: {error}"
            raise ResourceExhausted("shared-memory", reason) from error

    def sent(self) -> None:
        """Note that the driver takes it over."""
        self._is_sent = True

    def __del__(self) -> None:
        if not self._is_sent:
            self._borrower.refuse(self.loan)


_Reply: TypeAlias = tuple[bytes, Sequence[Stored]]
_Answer: TypeAlias = _Reply | _Room | PolyexecError


class _Worker:
    def __init__(self, channel: Channel, line: Channel, page: Page) -> None:
        self._channel = channel
        self._line = line
        self._page = page
        self._items: deque[Frame | _Plain] = deque()
        self._outgoing: SimpleQueue[Encoded | int | None] = SimpleQueue()
        self._boxes: dict[int, SimpleQueue[_Answer]] = {}
        self._borrower = Borrower()
        self._borrowing = threading.Lock()
        self._known: set[int] = set()
        self._room: _Answer | None = None
        self._numbers = itertools.count(1)
        self._tidings: deque[Encoded] = deque()
        self._telling = threading.Lock()
        self._has_told = False
        self._interrupts = SignalInterrupts()
        self._setup = b""
        self._plain: PlainWorker | None = None
        self._seat = 0
        self._running = 0
        self._deciding = False
        self._watchful = False

    # The main thread

    def run(self) -> None:
        """Serve until the driver says goodbye."""
        threading.Thread(target=self._listen, name="polyexec-listener", daemon=True).start()
        threading.Thread(target=self._speak, name="polyexec-speaker", daemon=True).start()
        while True:
            if not self._items and self._borrower.sees:
                self._collect()
            while not self._items:
                self._receive()
            item = self._items.popleft()
            if isinstance(item, tuple):
                self._run_plain(*item)
            elif not self._run_frame(item):
                return
            # Nothing of a call may live until the next one comes (O5).
            del item
            self._give_back(self._channel)

    def _receive(self) -> None:
        frames = self._next_frames()
        if frames is None:
            _die()
            return
        while frames:
            frame = frames.popleft()
            assert isinstance(frame, Frame)
            if frame.kind in ("room", "refused"):
                self._room = self._taken(frame)
            elif frame.kind == "segment":
                self._learn_segment(frame)
            else:
                self._items.append(frame)

    def _next_frames(self) -> deque[Frame | Done] | None:
        """Wait for the driver; by watching for a moment if that was worth it before, since to wake up takes as long."""
        began = time.monotonic()
        while self._watchful and time.monotonic() - began < _SHORT:
            with contextlib.suppress(BlockingIOError):
                return self._channel.receive(socket.MSG_DONTWAIT)
        frames = self._channel.receive()
        self._watchful = time.monotonic() - began < 2 * _SHORT
        return frames

    def _collect(self) -> None:
        """If nothing comes for a while, let go of values that only garbage refers to, as tracebacks often do (O5)."""
        if not select.select([self._channel], (), (), _LOOK)[0]:
            gc.collect()
            self._give_back(self._channel)

    def _unpack(
        self, seat: int, forget: bool, functions: Sequence[tuple[int, bytes, str]], calls: Sequence[Any]
    ) -> None:
        """Take the functions and calls of a message; those of earlier ones have run, and need no function any more."""
        assert self._plain is not None
        if forget:
            self._plain.forget()
        for function in functions:
            self._plain.learn(*function)
        self._items.extendleft((seat, *call) for call in reversed(calls))

    def _run_plain(self, seat: int, call_id: int, key: int, data: bytes, name: str) -> None:
        self._deciding = True
        if not self._page.may_start(seat, call_id):
            # The driver has taken it back, or will.
            self._deciding = False
            return
        self._seat, self._running = seat, call_id
        self._deciding = False
        assert self._plain is not None
        result = self._plain.run(call_id, key, data, name)
        self._check_process()
        if self._has_told:
            self._has_told = False
            self._send_tidings()
        if isinstance(result, bytes) and len(result) <= THRESHOLD:
            self._channel.send_done(call_id, result)
        else:
            self._send_outcome(call_id, Stored(result) if isinstance(result, bytes) else result)
        self._seat = self._running = 0

    def _run_frame(self, frame: Frame) -> bool:
        if frame.kind == "exit":
            return False
        if frame.kind == "hand":
            self._unpack(*frame.fields)
            return True
        if frame.kind == "setup":
            self._channel.send(self._set_up(frame.fields[0]))
            return True
        call_id, head = frame.fields
        try:
            result = self._run_call(call_id, head, frame.values)
        except OSError as error:
            self._channel.send(encode("failed", (call_id, str(error))))
            return True
        self._check_process()
        if self._has_told:
            self._has_told = False
            self._send_tidings()
        self._send_outcome(call_id, result)
        return True

    def _check_process(self) -> None:
        if _forked:
            # The task has forked, and this is its child; only the worker itself may answer.
            os._exit(0)

    def _set_up(self, setup: bytes) -> Encoded:
        self._setup = setup
        refusal = envelope.prepare(setup)
        if refusal is None:
            self._plain = PlainWorker(setup, lambda call_id: _Uplink(self, call_id), self._interrupts)
        return encode("ready", (os.getpid(),), () if refusal is None else (refusal,))

    def _run_call(self, call_id: int, head: bytes, given: Sequence[Stored | Loan]) -> Stored:
        """Run a call; raises ``OSError``, and does not run it, if there is no room for its values."""
        body, *values = self._opened(given, private=1)
        return envelope.run(head, body, values, _Uplink(self, call_id), self._interrupts, setup=self._setup)

    def _send_outcome(self, call_id: int, result: Stored) -> None:
        try:
            # The driver itself may have to look at an error.
            if result.nbytes > THRESHOLD and Head.decode(result.data)[0].tag is Tag.VALUE:
                self._store_outcome(call_id, result)
            else:
                self._channel.send(encode("finished", (call_id,), (result,)))
        except PolyexecError as error:
            self._channel.send(encode("finished", (call_id,), (outcome.encode_error(error),)))
        except OSError as error:
            self._channel.send(encode("failed", (call_id, str(error))))

    def _store_outcome(self, call_id: int, result: Stored) -> None:
        """Write an outcome into the store, and tell the driver."""
        # What the call has looked at may have to make room.
        self._give_back(self._channel)
        layout = Layout.of(result)
        self._channel.send(encode("reserve", (0, layout.data, layout.buffers)))
        while self._room is None:
            self._receive()
        answer, self._room = self._room, None
        room = _room(answer)
        room.write(result)
        head = result.data[: Head.decode(result.data)[1]]
        self._channel.send(encode("finished", (call_id, room.loan.number, head)))
        room.sent()

    # Any thread

    def _send_tidings(self) -> None:
        """Send what was told; in a thread in which nothing is raised."""
        with self._telling:
            while self._tidings:
                self._channel.send(self._tidings.popleft())

    def _learn_segment(self, frame: Frame) -> None:
        number, size = frame.fields
        with self._borrowing:
            if number in self._known:
                os.close(frame.descriptor)
            else:
                self._borrower.learn(number, size, frame.descriptor)
                self._known.add(number)
                # The speaker looks from time to time from now on.
                self._outgoing.put(None)

    def _opened(self, given: Sequence[Stored | Loan], *, private: int = 0) -> list[Stored]:
        """Open what was lent, the first ones to be written into; raises ``OSError`` if there is no room for them."""
        opened: list[Stored] = []
        try:
            for index, value in enumerate(given):
                if isinstance(value, Loan):
                    opened.append(self._borrower.open(value, private=index < private))
                else:
                    opened.append(value)
        except OSError:
            for value in given[len(opened) + 1 :]:
                if isinstance(value, Loan):
                    self._borrower.refuse(value)
            raise
        return opened

    def _give_back(self, channel: Channel) -> None:
        """Tell the driver what was lent and is seen no more; for the thread that writes to the channel."""
        if self._known:
            with self._borrowing:
                numbers = self._borrower.returned()
            if numbers:
                channel.send(encode("returned", (numbers,)))

    def _taken(self, frame: Frame) -> _Answer:
        """Give what a frame brings to who waits for it."""
        if frame.kind == "refused":
            error = outcome.decode_error(Stored(frame.fields[1]))
            assert isinstance(error, PolyexecError)
            return error
        if frame.kind == "room":
            (loan,) = frame.values
            assert isinstance(loan, Loan)
            return _Room(self._borrower, loan)
        try:
            return frame.fields[1], self._opened(frame.values)
        except OSError as error:
            return ResourceExhausted("memory", str(error))

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
        elif frame.kind == "segment":
            self._learn_segment(frame)
        else:
            self._boxes.pop(frame.fields[0]).put(self._taken(frame))

    def _speak(self) -> None:
        while True:
            item = self._next_item()
            if self._tidings:
                self._send_tidings()
            if item is not None:
                self._line.send(self._close_seat(item) if isinstance(item, int) else item)
                # Nothing of a request may live until the next one comes (O5).
                del item
            self._give_back(self._line)

    def _next_item(self) -> Encoded | int | None:
        try:
            return self._outgoing.get(timeout=_LOOK if self._known else None)
        except Empty:
            return None

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
        if seat:
            # From here on the driver treats the call like any other; those behind it cannot wait for its end.
            self._outgoing.put(seat)
        if sum(memoryview(buffer).nbytes for buffer in message.buffers) <= THRESHOLD:
            return _reply(self._wait_for("request", (call_id, 0), message))
        # The buffers are those of a value, and before them its data; see ``Message``.
        value = Stored(bytes(message.buffers[0]), message.buffers[1:])
        layout = Layout.of(value)
        room = _room(self._wait_for("reserve", (layout.data, layout.buffers)))
        room.write(value)
        return _reply(self._wait_for("request", (call_id, room.loan.number), Stored(message.data), room))

    def _wait_for(
        self, kind: str, fields: tuple[Any, ...], message: Stored | None = None, room: _Room | None = None
    ) -> _Answer:
        """Send a message, and wait for what the driver answers."""
        number = next(self._numbers)
        box = self._boxes[number] = SimpleQueue()
        self._outgoing.put(encode(kind, (number, *fields), () if message is None else (message,)))
        if room is not None:
            room.sent()
        return box.get()

    def tell(self, call_id: int, message: Stored) -> None:
        """Let something be sent to the driver that nobody answers."""
        try:
            self._tidings.append(encode("told", (call_id,), (message,)))
        except OSError as error:
            raise ResourceExhausted("shared-memory", f"what a task tells: {error}") from error
        self._has_told = True
        self._outgoing.put(None)


class _Uplink:
    def __init__(self, worker: _Worker, call_id: int) -> None:
        self._worker = worker
        self._call_id = call_id

    def request(self, message: Stored) -> tuple[bytes, Sequence[Stored]]:
        return self._worker.ask(self._call_id, message)

    def tell(self, message: Stored) -> None:
        self._worker.tell(self._call_id, message)


def _room(answer: _Answer) -> _Room:
    if isinstance(answer, PolyexecError):
        raise answer
    assert isinstance(answer, _Room)
    return answer


def _reply(answer: _Answer) -> _Reply:
    if isinstance(answer, PolyexecError):
        raise answer
    assert isinstance(answer, tuple)
    return answer


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

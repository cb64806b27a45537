"""A worker process: its main thread runs calls, a second thread reads from the driver.

State: ``_boxes`` maps a request to the queue on which its thread waits, by atomic dict operations. Only the sender
thread and, after a body has ended, the main thread write to the channel; a body's own thread never does, because an
interrupt could tear a frame. The reader ends the process when the driver is gone.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Any

from polyexec import envelope
from polyexec.interrupts import SignalInterrupts
from polyexec.spi import Stored
from polyexec_local.channel import Channel, Encoded, Frame, encode

BOOTSTRAP = "import sys, json; sys.path[:] = json.loads(sys.argv[2]); from polyexec_local.worker import main; main()"


class _Worker:
    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._calls: SimpleQueue[Frame | None] = SimpleQueue()
        self._outgoing: SimpleQueue[Encoded] = SimpleQueue()
        self._boxes: dict[int, SimpleQueue[tuple[bytes, Sequence[Stored]]]] = {}
        self._numbers = itertools.count(1)
        self._interrupts = SignalInterrupts()
        self._setup = b""

    def run(self) -> None:
        """Serve until the driver says goodbye."""
        threading.Thread(target=self._read, name="polyexec-reader", daemon=True).start()
        threading.Thread(target=self._send, name="polyexec-sender", daemon=True).start()
        pid = os.getpid()
        while (frame := self._calls.get()) is not None:
            answer = self._answer(frame)
            if os.getpid() != pid:
                # The task has forked, and this is its child; only the worker itself may answer.
                os._exit(0)
            self._channel.send(answer)
            del frame, answer

    def _answer(self, frame: Frame) -> Encoded:
        if frame.kind == "setup":
            self._setup = frame.fields[0]
            refusal = envelope.prepare(self._setup)
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

    def _read(self) -> None:
        try:
            while (frames := self._channel.receive()) is not None:
                while frames:
                    # Nothing of a frame may live here until the next one comes (O5).
                    self._take(frames.popleft())
        finally:
            # Whatever has gone wrong, nobody would hear of a worker that cannot read.
            _die()

    def _take(self, frame: Frame) -> None:
        if frame.kind == "interrupt":
            verdict = self._interrupts.deliver(frame.fields[0])
            self._outgoing.put(encode("stopped", (frame.fields[0], verdict.value)))
        elif frame.kind == "reply":
            request, message = frame.fields
            self._boxes.pop(request).put((message, frame.values))
        else:
            self._calls.put(None if frame.kind == "exit" else frame)

    def _send(self) -> None:
        while True:
            self._channel.send(self._outgoing.get())

    def ask(self, call_id: int, message: Stored) -> tuple[bytes, Sequence[Stored]]:
        """Send a request to the driver, and wait for its reply."""
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


def command(descriptor: int) -> list[str]:
    """Give the command that starts a worker on a descriptor."""
    return [sys.executable, "-c", BOOTSTRAP, str(descriptor), json.dumps(_import_path())]


def _import_path() -> list[Any]:
    return [os.path.abspath(path) for path in sys.path]


def main() -> None:
    """Run a worker; the first argument is the descriptor of its socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The driver's thread may have blocked it, and a task could not be interrupted.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.setblocking(True)
    os.set_inheritable(connection.fileno(), False)
    sys.argv = ["polyexec-worker"]
    _Worker(Channel(connection, private=True)).run()

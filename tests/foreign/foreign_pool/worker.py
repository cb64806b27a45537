"""The worker process: its main thread runs one body at a time, two other threads read and write its socket."""

from __future__ import annotations

import itertools
import os
import sys
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

from polyexec import envelope
from polyexec.interrupts import SignalInterrupts
from polyexec.spi import Stored


def packed(stored: Stored) -> tuple[bytes, list[bytes]]:
    """Give what travels of a value; views of memory cannot be pickled."""
    return stored.data, [bytes(buffer) for buffer in stored.buffers]


class Worker:
    """The process; it is also the uplink of the body that it runs.

    Args:
        connection: to the driver.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._calls: SimpleQueue[Any] = SimpleQueue()
        self._outbox: SimpleQueue[Any] = SimpleQueue()
        self._replies: dict[int, SimpleQueue[Any]] = {}
        self._numbers = itertools.count()
        self._sending = threading.Lock()
        self._interrupts = SignalInterrupts()
        self._setup: bytes = connection.recv()

    def run(self) -> None:
        """Run calls for ever; the process ends when the driver closes the connection."""
        threading.Thread(target=self._read, daemon=True).start()
        threading.Thread(target=self._write, daemon=True).start()
        envelope.prepare(self._setup)
        while True:
            call_id, head, body, values = self._calls.get()
            # Whoever dies from now on had started, so that this must be under way before the body begins.
            self._send(("started", call_id))
            result = envelope.run(
                head,
                Stored(*body),
                [Stored(*value) for value in values],
                self,
                self._interrupts,
                setup=self._setup,
            )
            self._outbox.put(("finished", call_id, *packed(result)))

    def request(self, message: Stored) -> tuple[bytes, Sequence[Stored]]:
        """Send a message for the running body, and wait for the reply (``Uplink``)."""
        number = next(self._numbers)
        arrived = self._replies[number] = SimpleQueue()
        # An interrupt may be raised here at any time, so that only queues are touched, never the socket.
        self._outbox.put(("request", number, *packed(message)))
        data, values = arrived.get()
        return data, [Stored(*value) for value in values]

    def tell(self, message: Stored) -> None:
        """Send a message for the running body that nobody answers (``Uplink``)."""
        self._outbox.put(("told", 0, *packed(message)))

    def _write(self) -> None:
        while True:
            self._send(self._outbox.get())

    def _send(self, message: tuple[Any, ...]) -> None:
        with self._sending:
            self._connection.send(message)

    def _read(self) -> None:
        try:
            while True:
                self._take(*self._connection.recv())
        finally:
            # The driver has closed its end, or died. Nothing is left to do, whatever the body does.
            os._exit(0)

    def _take(self, kind: str, number: int, *rest: Any) -> None:
        if kind == "run":
            self._calls.put((number, *rest))
        elif kind == "reply":
            self._replies.pop(number).put(rest)
        elif kind == "cancel":
            self._outbox.put(("stopped", number, self._interrupts.deliver(number)))


def main() -> None:
    """Run the worker process; its argument is the descriptor of its socket."""
    Worker(Connection(int(sys.argv[1]))).run()

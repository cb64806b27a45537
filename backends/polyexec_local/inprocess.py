"""What serial and threads share: calls that run in the driver's own process."""

from __future__ import annotations

import os
import platform
import socket
from abc import abstractmethod
from collections.abc import Sequence
from queue import SimpleQueue
from typing import TypeAlias

from polyexec import envelope
from polyexec.config import LocalClusterConfig
from polyexec.interrupts import ThreadInterrupts
from polyexec.outcome import cancelled
from polyexec.spi import Backend, Call, EngineInfo, Host, Node, Outcome, Protection, Stored, Value, WorkerState

Reply: TypeAlias = tuple[bytes, Sequence[Stored]]


class Uplink:
    """Reaches the driver through a queue of each request's own."""

    def __init__(self, host: Host, call_id: int) -> None:
        self._host = host
        self._call_id = call_id

    def request(self, message: Stored) -> Reply:
        """Send a message and wait for its reply."""
        box: SimpleQueue[Reply] = SimpleQueue()
        self._host.request(box, self._call_id, message)
        return box.get()

    def tell(self, message: Stored) -> None:
        """Send a message that nobody answers."""
        self._host.told(self._call_id, message)


class InProcessBackend(Backend):
    """Runs calls in threads of this process.

    ``_interrupts`` is thread-safe; there is no other shared state.
    """

    config: LocalClusterConfig

    def open(self, host: Host) -> EngineInfo:
        """Run the initializer, here and now."""
        self._host = host
        self._interrupts = ThreadInterrupts()
        self._node = Node(
            "local", socket.gethostname(), self.config.total(), self.slots(), gpu_ids=self.config.gpu_ids()
        )
        envelope.prepare(host.setup)
        return EngineInfo(f"{platform.python_implementation()} {platform.python_version()}")

    def protection(self) -> Protection:
        """Nobody else takes part."""
        return Protection("all runs in this process")

    @abstractmethod
    def slots(self) -> int:
        """Give the number of calls that may run at the same time."""

    def nodes(self) -> Sequence[Node]:
        """Give this machine."""
        return (self._node,)

    def cancel(self, call_id: int, *, force: bool) -> None:
        """Raise an exception in the body; force can do no more here."""
        self._host.stopped(call_id, self._interrupts.deliver(call_id))

    def reply(self, request_id: object, message: bytes, values: Sequence[Value]) -> None:
        """Answer a request."""
        assert isinstance(request_id, SimpleQueue)
        request_id.put((message, [value.stored for value in values]))

    def inspect(self, timeout: float) -> Sequence[WorkerState]:
        """Say which thread runs which call."""
        running = self._interrupts.running()
        return [WorkerState(self._node.id, os.getpid(), (call,), thread) for call, thread in running.items()]

    def run(self, call: Call) -> None:
        """Run a call in this thread, and report its end."""
        outcome = envelope.run(
            call.head,
            call.body,
            [value.stored for value in call.values if value.stored is not None],
            Uplink(self._host, call.id),
            self._interrupts,
            setup=self._host.setup,
            shared=call.shared,
        )
        self.ended()
        self._host.finished(call.id, Outcome.of(outcome))

    def report_cancelled(self, call: Call) -> None:
        """Report the end of a call that this thread has left; the core ignores it if the call has ended before."""
        self._host.finished(call.id, Outcome.of(cancelled(call.name)))

    def ended(self) -> None:
        """Learn that this thread is about to be free."""
        return

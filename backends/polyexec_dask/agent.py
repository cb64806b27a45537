"""The part of polyexec that lives in each Dask worker process: it runs calls and talks to the driver.

Dask starts ``run_call`` like any other task; everything that the call needs, and everything that it says, goes over
the direct ``Link``. A call id can be claimed once, and only in the process to which the driver sent the call: whatever
Dask repeats on its own, no body starts twice.
"""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any

import attrs
from distributed import Worker
from distributed.core import Status

from polyexec import envelope, memory_usage, outcome, stacks
from polyexec.interrupts import ThreadInterrupts
from polyexec.spi import Stored, Verdict
from polyexec_dask import memory
from polyexec_dask.link import Link, Message, pack, unpack
from polyexec_dask.uplink import CallUplink, DriverGone, Requests


@attrs.define(eq=False)
class _Call:
    id: int
    head: bytes
    body: Any
    values: Sequence[Any]
    beside: bool
    resident: bool
    limited: bool


class Agent:
    """Runs the calls of one executor in this process.

    Args:
        worker: Dask's worker.
        setup: for the envelope.
    """

    def __init__(self, worker: Worker, setup: bytes) -> None:
        self._worker = worker
        self._setup = setup
        self._link: Link | None = None
        self._shares_memory = False
        self._changed = threading.Condition()
        self._waiting: dict[int, _Call] = {}
        self._running: dict[int, int] = {}
        self._revoked: set[int] = set()
        self._values: dict[int, Stored] = {}
        self._requests = Requests(self.post, self.resolve, self._shared)
        self._segments: dict[int, threading.Event] = {}
        self._refused: set[int] = set()
        self._held = False
        self._limit = 1
        self._blocked: set[int] = set()
        self._guard: asyncio.TimerHandle | None = None
        self._interrupts = ThreadInterrupts()

    async def attach(self, comm: Any, machine: str, limit: int) -> Status:
        """Serve the driver that connected; Dask calls this for our operation."""
        self._limit = limit
        self._shares_memory = bool(machine) and machine == memory.machine()
        loop = asyncio.get_running_loop()
        failure = await loop.run_in_executor(self._worker.executors["default"], envelope.prepare, self._setup)
        await comm.write((os.getpid(), self._shares_memory, None if failure is None else pack(failure)))
        self._link = Link(comm, self._receive, self._on_lost)
        await self._link.serve()
        return Status.dont_reply

    def detach(self) -> None:
        """Drop the driver."""
        if self._link is not None:
            self._link.close()
        envelope.release(self._setup)

    def _on_lost(self) -> None:
        for call_id in list(self._running):
            self._interrupts.deliver(call_id)
        with self._changed:
            self._waiting.clear()
            self._values.clear()
            self._changed.notify_all()
        self._requests.lose()
        envelope.release(self._setup)
        for acknowledged in list(self._segments.values()):
            acknowledged.set()

    def _receive(self, message: Message) -> None:
        kind, *fields = message
        handlers: dict[str, Callable[..., None]] = {
            "run": self._on_run,
            "stop": self._on_stop,
            "steal": self._on_steal,
            "reply": self._on_reply,
            "blocked": self._on_blocked,
            "resumed": self._on_resumed,
            "value": self._on_value,
            "open": self._on_open,
            "drop": self._on_drop,
            "taken": self._on_taken,
            "resend": self._requests.resend,
            "exit": self._on_exit,
            "die": self._on_die,
            "guard": self._on_guard,
            "stacks": self._on_stacks,
        }
        handlers[kind](*fields)

    def _on_run(
        self,
        number: int,
        call_id: int,
        head: bytes,
        body: Any,
        values: Sequence[Any],
        beside: bool,
        resident: bool,
        limited: bool,
    ) -> None:
        with self._changed:
            self._waiting[number] = _Call(call_id, head, body, values, beside, resident, limited)
            self._changed.notify_all()

    def _revoke(self, number: int) -> bool:
        with self._changed:
            if self._waiting.pop(number, None) is None:
                return False
            self._revoked.add(number)
            self._changed.notify_all()
            return True

    def _on_steal(self, number: int, call_id: int) -> None:
        if self._revoke(number):
            self._send(("stolen", call_id))

    def _on_stop(self, number: int, call_id: int, force: bool) -> None:
        if self._revoke(number):
            self._send(("stopped", call_id, Verdict.REVOKED.value))
        elif call_id not in self._running:
            self._send(("stopped", call_id, Verdict.LATE.value))
        elif force:
            # The process is about to be killed: nothing else may start in it.
            self._held = True
            self._send(("running", call_id))
        else:
            verdict = self._interrupts.deliver(call_id)
            self._requests.wake(call_id)
            self._send(("stopped", call_id, verdict.value))

    def _on_reply(self, number: int, message: bytes, values: Sequence[Any]) -> None:
        self._requests.reply(number, message, values)

    def _on_blocked(self, call_id: int) -> None:
        self._requests.secede(call_id)
        with self._changed:
            if call_id in self._running:
                self._blocked.add(call_id)
                self._changed.notify_all()

    def _on_resumed(self, call_id: int) -> None:
        self._blocked.discard(call_id)

    def _on_value(self, value_id: int, stored: Sequence[Any]) -> None:
        self._keep(value_id, unpack(stored))

    def _on_open(self, value_id: int, path: str, sizes: Sequence[int], private: bool) -> None:
        try:
            self._keep(value_id, memory.load(memory.Place(path, tuple(sizes)), private=private))
        except OSError:
            self._send(("missing", value_id))

    def _keep(self, value_id: int, stored: Stored) -> None:
        with self._changed:
            self._values[value_id] = stored
            self._changed.notify_all()

    def _on_drop(self, value_id: int) -> None:
        self._values.pop(value_id, None)

    def _on_taken(self, call_id: int, success: bool) -> None:
        if not success:
            self._refused.add(call_id)
        acknowledged = self._segments.pop(call_id, None)
        if acknowledged is not None:
            acknowledged.set()

    def _on_exit(self) -> None:
        self._worker.loop.add_callback(functools.partial(self._worker.close, nanny=False, reason="polyexec"))

    def _on_die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def _on_guard(self, before: int, allowance: int) -> None:
        if self._guard is not None:
            self._guard.cancel()
            self._guard = None
        if allowance:
            self._check_memory(before, allowance)

    def _on_stacks(self) -> None:
        threads = [thread for thread, _ in stacks.here()]
        self._send(("stacks", *((thread.ident, thread.name, thread.frames) for thread in threads)))

    def _check_memory(self, before: int, allowance: int) -> None:
        used = memory_usage.outgrown(os.getpid(), before, allowance)
        if used is not None and self._link is not None:
            self._held = True
            self._link.send(("outgrown", used, allowance), self._on_die)
            return
        loop = asyncio.get_running_loop()
        self._guard = loop.call_later(memory_usage.CHECK_SECONDS, self._check_memory, before, allowance)

    def run(self, number: int) -> None:
        """Run a call that the driver has sent, or do nothing if it is revoked or not for this process.

        Args:
            number: the driver's for this attempt.
        """
        call = self._claim(number)
        if call is None:
            return
        call_id = call.id
        try:
            if call.beside:
                self._requests.leave_pool(call_id)
            # Read before the body can take any, however late those who watch it hear of it.
            before = memory_usage.used_by(os.getpid()) if call.limited else 0
            self._flush(("started", call_id, before))
            body, values = self.resolve(call.body), [self.resolve(value) for value in call.values]
            uplink = CallUplink(self._requests, call_id)
            result = envelope.run(call.head, body, values, uplink, self._interrupts, setup=self._setup)
            del body, values, call
            self._report(call_id, result)
        except DriverGone:
            pass
        except BaseException as error:
            # A fault of ours must end this call, not leave its caller waiting.
            self.post(("finished", call_id, pack(outcome.encode_error(error)), None))
        finally:
            with self._changed:
                self._running.pop(call_id, None)
                self._blocked.discard(call_id)
                self._changed.notify_all()

    def _claim(self, number: int) -> _Call | None:
        with self._changed:
            while not (self._is_lost() or number in self._revoked or self._may_start(number)):
                self._changed.wait()
            self._revoked.discard(number)
            call = self._waiting.pop(number, None)
            if call is not None:
                self._running[call.id] = number
                if call.resident:
                    # It lives beside whatever else runs here.
                    self._blocked.add(call.id)
            return call

    def _may_start(self, number: int) -> bool:
        call = self._waiting.get(number)
        if call is None or self._held:
            return False
        return call.beside or len(self._running) - len(self._blocked) < self._limit

    def _is_lost(self) -> bool:
        return self._link is None or not self._link.is_open

    def resolve(self, value: Any) -> Stored:
        """Give the value that a message has or refers to; waits until it is there."""
        if not isinstance(value, int):
            return unpack(value)
        with self._changed:
            while value not in self._values:
                if self._is_lost():
                    raise DriverGone
                self._changed.wait()
            return self._values[value]

    def _shared(self, stored: Stored) -> memory.Segment | None:
        """Copy a large value into memory that the driver can open; None if it is small, or if that is not possible."""
        if not self._shares_memory or stored.nbytes < memory.THRESHOLD:
            return None
        return memory.Segment.holding(stored)

    def _report(self, call_id: int, result: Stored) -> None:
        segment = self._shared(result)
        if segment is None:
            self.post(("finished", call_id, pack(result), None))
            return
        try:
            # The memory is only as lasting as this process until the driver has opened it, too.
            acknowledged = self._segments[call_id] = threading.Event()
            self.post(("finished", call_id, segment.place.path, segment.place.sizes))
            while not self._is_lost() and not acknowledged.wait(1.0):
                pass
        finally:
            self._segments.pop(call_id, None)
            segment.close()
        if call_id in self._refused:
            self._refused.discard(call_id)
            self.post(("finished", call_id, pack(result), None))

    def _send(self, message: Message) -> None:
        if self._link is not None:
            self._link.send(message)

    def post(self, message: Message) -> None:
        """Send a message from any thread."""
        if self._link is None or not self._link.is_open:
            raise DriverGone
        self._link.post(message)

    def _flush(self, message: Message) -> None:
        """Send a message, and with it all before it, so that they arrive even if this process dies now."""
        if self._link is None or not self._link.is_open:
            raise DriverGone
        flushed = threading.Event()
        self._link.post(message, flushed.set)
        flushed.wait()
        if self._is_lost():
            raise DriverGone

"""How running calls ask the driver for something and wait for its replies."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import attrs

from polyexec.errors import BackendLost
from polyexec.spi import Stored
from polyexec_dask import memory
from polyexec_dask.engine import secede, thread_state
from polyexec_dask.link import Message, pack


class DriverGone(BackendLost):
    """Nobody is there any more to tell or to ask."""


@attrs.define(eq=False)
class _Waiter:
    call_id: int
    thread: int = attrs.field(factory=threading.get_ident)
    woken: threading.Event = attrs.field(factory=threading.Event)
    reply: tuple[bytes, Sequence[Any]] | None = None
    must_secede: bool = False
    must_resend: bool = False
    is_lost: bool = False


class Requests:
    """The requests of all calls of a process that wait for a reply.

    Args:
        post: sends a message; raises ``DriverGone``.
        resolve: gives a value that a message has or refers to.
        share: copies a value into memory that the driver can open, if that pays and is possible.
    """

    def __init__(
        self,
        post: Callable[[Message], None],
        resolve: Callable[[Any], Stored],
        share: Callable[[Stored], memory.Segment | None],
    ) -> None:
        self._post = post
        self._resolve = resolve
        self._share = share
        self._numbers = itertools.count(1)
        self._waiters: dict[int, _Waiter] = {}
        self._seceded: dict[int, int] = {}

    def ask(self, call_id: int, message: Stored) -> tuple[bytes, Sequence[Stored]]:
        """Send a request of a running call, and wait for its reply.

        Args:
            call_id: the call.
            message: the request.

        Returns:
            The reply's message and values.

        Raises:
            BackendLost: the driver is gone.
        """
        waiter = _Waiter(call_id)
        number = next(self._numbers)
        self._waiters[number] = waiter
        segment = None
        try:
            segment = self._send(call_id, number, message)
            while waiter.reply is None:
                if waiter.is_lost:
                    raise DriverGone(f"the driver of call {call_id} is gone")
                waiter.woken.wait()
                waiter.woken.clear()
                if waiter.must_secede:
                    waiter.must_secede = False
                    self.leave_pool(call_id)
                if waiter.must_resend:
                    waiter.must_resend = False
                    self._post(("request", call_id, number, pack(message), None, None))
        finally:
            self._waiters.pop(number, None)
            if segment is not None:
                # The driver has opened it by now.
                segment.close()
        reply, values = waiter.reply
        return reply, [self._resolve(value) for value in values]

    def tell(self, call_id: int, message: Stored) -> None:
        """Send what a call tells; if the driver is gone, do nothing."""
        with contextlib.suppress(DriverGone):
            self._post(("told", call_id, pack(message)))

    def _send(self, call_id: int, number: int, message: Stored) -> memory.Segment | None:
        """Send a request; a large value that comes with it by memory that this gives, to be kept until the reply."""
        # The buffers are those of a value, and before them its data; see ``polyexec.spi.Message``.
        value = Stored(bytes(message.buffers[0]), message.buffers[1:]) if message.buffers else None
        segment = None if value is None else self._share(value)
        if segment is None:
            self._post(("request", call_id, number, pack(message), None, None))
        else:
            place = segment.place
            self._post(("request", call_id, number, pack(Stored(message.data)), place.path, place.sizes))
        return segment

    def resend(self, number: int) -> None:
        """Learn that the driver cannot open what came with a request."""
        waiter = self._waiters.get(number)
        if waiter is not None:
            waiter.must_resend = True
            waiter.woken.set()

    def leave_pool(self, call_id: int) -> None:
        """Let Dask start another task beside the one that runs in this thread."""
        # Once is enough: Dask's pool does not count the thread any more until its task has ended.
        thread = threading.get_ident()
        is_of_pool = hasattr(thread_state, "start_time")
        if is_of_pool and self._seceded.get(thread) != call_id:
            self._seceded[thread] = call_id
            secede()

    def reply(self, number: int, message: bytes, values: Sequence[Any]) -> None:
        """Take a reply."""
        waiter = self._waiters.get(number)
        if waiter is not None:
            waiter.reply = (message, values)
            waiter.woken.set()

    def secede(self, call_id: int) -> None:
        """Let a call that waits leave Dask's thread pool, so that another call can start beside it."""
        for waiter in self._of(call_id):
            waiter.must_secede = True
            waiter.woken.set()

    def wake(self, call_id: int) -> None:
        """Let the threads of a call that wait come back to Python for a moment, so that an interrupt can arrive."""
        for waiter in self._of(call_id):
            waiter.woken.set()

    def lose(self) -> None:
        """Note that no reply will come any more."""
        for waiter in list(self._waiters.values()):
            waiter.is_lost = True
            waiter.woken.set()

    def _of(self, call_id: int) -> list[_Waiter]:
        return [waiter for waiter in list(self._waiters.values()) if waiter.call_id == call_id]


@attrs.frozen(eq=False)
class CallUplink:
    """How one running call reaches the executor."""

    requests: Requests
    call_id: int

    def request(self, message: Stored) -> tuple[bytes, Sequence[Stored]]:
        """Send a message, wait for its reply, and give the reply's message and values."""
        return self.requests.ask(self.call_id, message)

    def tell(self, message: Stored) -> None:
        """Send a message that nobody answers."""
        self.requests.tell(self.call_id, message)

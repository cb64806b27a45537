"""The way of calls to the instances of actors, and of their outcomes back. A part of the runtime: all in the loop.

An instance always has one request open, which is answered as soon as there is something for it: calls, cancels, or the
end. What has piled up meanwhile goes along. A call with large parts goes alone, so that if these cannot be brought, it
alone fails.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs

from polyexec import outcome
from polyexec.errors import ResourceExhausted
from polyexec.records import Dismiss, Invoke
from polyexec.spi import Value, Verdict
from polyexec.stored import Outcome, Stored
from polyexec.wire import Attempt

if TYPE_CHECKING:
    from polyexec.runtime import Runtime

_SMALL = 16 * 1024
"""Bytes up to which what a call needs is a part of the message."""

_BATCH = 256

Item: TypeAlias = tuple[Any, ...]


@attrs.define(eq=False)
class _Box:
    """What an instance is to be told.

    Attributes:
        items: what waits for the next answer, each with the values that go with it.
        request: the request that is open.
        sent: the calls of the last answer.
    """

    items: deque[tuple[Item, Sequence[Value]]] = attrs.field(factory=deque)
    request: object | None = None
    sent: tuple[int, ...] = ()


class ActorDesk:
    """Serves the instances of actors.

    Args:
        runtime: what it is a part of.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._boxes: dict[int, _Box] = {}
        self._hosts: dict[int, int] = {}
        self._dirty: set[int] = set()
        runtime.requests.serve("actor_next", self._next)
        runtime.requests.serve("actor_done", self._done)
        runtime.requests.serve("actor_made", self._is_made)

    # What the scheduler has decided

    def invoke(
        self, action: Invoke, attempt: Attempt, body: Stored, handle: object | None, values: list[Value]
    ) -> None:
        """Hand over a call."""
        self._hosts[action.call] = action.host
        whole = [Value(body, None) if handle is None else Value(handle=handle), *values]
        inline = _inline(whole)
        item = ("call", action.call, attempt.encode(), inline)
        self._put(action.host, item, whole if inline is None else ())

    def halt(self, call: int) -> bool:
        """Ask the instance to stop a call that runs there; False if it does not."""
        host = self._hosts.get(call)
        if host is not None:
            self._put(host, ("stop", call))
        return host is not None

    def dismiss(self, action: Dismiss) -> None:
        """Let an instance end."""
        self._put(action.host, ("end", action.now))

    def drop(self, call: int) -> None:
        """Forget a call that has ended, or an instance: whoever still listens there hears that this is the end."""
        self._hosts.pop(call, None)
        box = self._boxes.pop(call, None)
        if box is not None and box.request is not None:
            self._runtime.requests.reply(box.request, "ok", [("end", True)])

    def hosts(self, call: int) -> bool:
        """Say whether a call runs in the body of another."""
        return call in self._hosts

    def flush(self) -> None:
        """Answer the instances for which there is something."""
        while self._dirty:
            box = self._boxes.get(self._dirty.pop())
            if box is not None and box.request is not None and box.items:
                self._answer(box)

    def _put(self, host: int, item: Item, values: Sequence[Value] = ()) -> None:
        # Whatever comes for an instance that has ended is settled with it.
        if host in self._boxes:
            self._boxes[host].items.append((item, values))
            self._dirty.add(host)

    def _answer(self, box: _Box) -> None:
        items: list[Item] = []
        values: Sequence[Value] = ()
        while box.items and len(items) < _BATCH and not (values or (items and box.items[0][1])):
            item, values = box.items.popleft()
            items.append(item)
        request, box.request = box.request, None
        box.sent = tuple(item[1] for item in items if item[0] == "call")
        try:
            self._runtime.requests.reply(request, "ok", items, values)
        except OSError as error:
            # A large value found no room on its way; the instance still waits.
            box.request = request
            self._fail(box, outcome.encode_error(ResourceExhausted("shared-memory", str(error))))

    def _fail(self, box: _Box, error: Stored) -> None:
        for call in box.sent:
            self._runtime.take_outcome(call, Outcome.of(error))

    # What an instance asks and says

    def _next(
        self, request_id: object, call_id: int, main: bool, value: Value, failure: bytes | None, loops: bool
    ) -> None:
        """Take a request for more; the one before it was answered, or that answer could not be brought."""
        box = self._boxes.get(call_id)
        if box is None:
            box = self._boxes[call_id] = _Box()
        box.request = request_id
        self._dirty.add(call_id)
        if failure is not None:
            self._fail(box, Stored(failure))
        self._runtime.scheduler.actors.attach(call_id, loops=loops)
        if not self._runtime.schedule():
            self.flush()

    def _is_made(self, request_id: object, call_id: int, main: bool, value: Value, actor_id: int) -> None:
        self._runtime.requests.reply(request_id, "ok", self.is_made(actor_id))

    def is_made(self, actor_id: int) -> bool:
        """Say whether there is an instance, or will be in a moment, or never will; else it waits for resources."""
        self._runtime.schedule()
        task = self._runtime.scheduler.tasks.get(actor_id)
        return task is None or task.call is not None

    def _done(
        self,
        request_id: object,
        call_id: int,
        main: bool,
        value: Value,
        outcomes: Sequence[tuple[int, bytes, Sequence[bytes] | None]],
        verdicts: Sequence[tuple[int, str]],
        kept: Sequence[int],
        gone: Sequence[int],
    ) -> None:
        """Take what has ended, and what the instance refers to beyond the calls in which it came to know of it."""
        runtime = self._runtime
        runtime.requests.hold(call_id, kept)
        for call, data, buffers in outcomes:
            if buffers is None:
                runtime.take_outcome(call, Outcome(data, value.stored, value.handle))
            else:
                runtime.take_outcome(call, Outcome.of(Stored(data, buffers)))
        for call, verdict in verdicts:
            runtime.scheduler.stopped(call, Verdict(verdict))
        # Outcomes may refer to what is let go of after them.
        runtime.schedule()
        runtime.requests.let_go(call_id, gone)
        runtime.requests.reply(request_id, "ok", None)


def _inline(values: Sequence[Value]) -> tuple[tuple[bytes, tuple[bytes, ...]], ...] | None:
    """Give values as a part of a message, None if one of them is too large for that."""
    small = [value.stored for value in values if value.stored is not None and value.stored.nbytes <= _SMALL]
    if len(small) < len(values):
        return None
    return tuple((stored.data, tuple(map(bytes, stored.buffers))) for stored in small)

"""What the driver knows about one worker process, and the values that it has sent there."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import attrs

from polyexec import outcome
from polyexec.errors import BackendBroken
from polyexec.spi import Call, Death, Stored, Value
from polyexec_dask import memory, plugin
from polyexec_dask.engine import connect
from polyexec_dask.link import Link, Message, pack, unpack

_value_ids = itertools.count(1)


Answer: TypeAlias = Sequence[tuple[int, str, Sequence[str]]]
"""Threads as a worker describes them: identity, name, frames."""


class Kept:
    """A value that the engine keeps for the core: in shared memory, or, where there is none, in the driver's own.

    Args:
        segment: shared memory that holds it, or None.
        stored: the value itself, if there is no segment.
    """

    def __init__(self, segment: memory.Segment | None, stored: Stored | None = None) -> None:
        self.id = next(_value_ids)
        self.segment = segment
        self._stored = stored

    @staticmethod
    def holding(stored: Stored) -> Kept:
        """Keep a value."""
        segment = memory.Segment.holding(stored)
        # The buffers are somebody's own memory, which may change.
        return Kept(segment, Stored(stored.data, tuple(map(bytes, stored.buffers))) if segment is None else None)

    def load(self) -> Stored:
        """Give the value; raises ``OSError`` if it has been freed."""
        if self._stored is not None:
            return self._stored
        if self.segment is None:
            raise OSError("the value has been freed")
        return self.segment.load()

    def free(self) -> None:
        """Forget the value."""
        self._stored = None
        segment, self.segment = self.segment, None
        if segment is not None:
            segment.close()


@attrs.define(eq=False)
class Record:
    """A call on its way.

    Attributes:
        call: the call.
        remote: the worker to which it was sent, None while it waits for one.
        number: identifies the attempt to have it run there.
        future: Dask's future for the task that runs it.
        started: its body has started.
        blocked: it waits for others, or lives on beside them.
        stop: None, or whether the stop that is under way is forced.
        dropped: it was revoked while it waited for a worker.
        body: what holds the call's body, if that is large.
    """

    call: Call
    remote: Remote | None = None
    number: int = 0
    future: Any = None
    started: bool = False
    blocked: bool = False
    stop: bool | None = None
    dropped: bool = False
    body: Kept | None = None

    @staticmethod
    def of(call: Call) -> Record:
        """Take a call; its body, if that is large, into memory that the worker can map."""
        handle = call.body_handle
        if handle is None and call.body.nbytes >= memory.THRESHOLD:
            handle = Kept.holding(call.body)
        assert handle is None or isinstance(handle, Kept)
        return Record(call, body=handle)

    def end(self) -> None:
        """Let go of what was made for it."""
        if self.body is not None and self.body is not self.call.body_handle:
            self.body.free()

    def goes_on(self) -> bool:
        """Say whether it would be lost if its process ended."""
        return self.started and (self.call.resident or not self.blocked)


@attrs.frozen(eq=False)
class RequestId:
    """Identifies a request that waits for its reply."""

    remote: Remote
    number: int


@attrs.define(eq=False)
class Remote:
    """A worker process.

    Attributes:
        address: Dask's address of it.
        node: id of the node to which it belongs.
        host: name of its machine.
        pid: its process id.
        link: the connection to it.
        shares_memory: whether it can open the driver's shared memory.
        kill: kills the process.
        bury: asks how the process ended, and calls back with it.
        guard: has the process killed when it uses more memory than before, both in bytes, and an allowance; one of 0
            ends this.
        cause: why it was killed, if that is known.
        records: the calls that were sent to it and have not ended, in order.
        values: the kept values that it has, by their ids.
        fresh: calls that are to be sent with the next batch.
        blocked_count: number of calls there that wait for others.
        gone: it is dead, or being killed.
        askers: who has asked where its threads are.
    """

    address: str
    node: str
    host: str
    pid: int
    link: Link
    shares_memory: bool
    kill: Callable[[Remote], None]
    bury: Callable[[Remote, Callable[[Death], None]], None]
    guard: Callable[[Remote, int, int], None]
    cause: str = ""
    records: dict[int, Record] = attrs.field(factory=dict)
    values: dict[int, Kept] = attrs.field(factory=dict)
    fresh: list[Record] = attrs.field(factory=list)
    blocked_count: int = 0
    gone: bool = False
    askers: list[Callable[[tuple[str, Answer]], None]] = attrs.field(factory=list)

    def load(self) -> int:
        """Count the calls that keep it busy, now or soon."""
        return len(self.records) - self.blocked_count

    def take(self, record: Record) -> None:
        """Assign a call."""
        record.remote = self
        self.records[record.call.id] = record
        self.fresh.append(record)
        if record.call.resident:
            self.set_blocked(record, blocked=True)

    def drop(self, record: Record) -> None:
        """Note that a call has ended, or goes elsewhere."""
        self.set_blocked(record, blocked=False)
        if record.body is not None:
            # Another attempt must not see what this one has written.
            self.drop_value(record.body)
        record.remote = None
        self.records.pop(record.call.id, None)

    def set_blocked(self, record: Record, *, blocked: bool) -> None:
        """Note whether a call waits for others."""
        self.blocked_count += blocked - record.blocked
        record.blocked = blocked

    def send_values(self, values: Sequence[Value]) -> tuple[Any, ...]:
        """Send the kept values that are not there yet, and give what a message needs to refer to all."""
        return tuple(self._refer(value) for value in values)

    def send_body(self, record: Record) -> Any:
        """Send a call's body if it is large, and give what a message needs to refer to it, or the body itself."""
        return pack(record.call.body) if record.body is None else self._refer_to(record.body, private=True)

    def _refer(self, value: Value) -> Any:
        if value.stored is not None:
            return pack(value.stored)
        kept = value.handle
        if not isinstance(kept, Kept):
            raise TypeError(f"not a value of this backend: {kept!r}")
        return self._refer_to(kept)

    def _refer_to(self, kept: Kept, *, private: bool = False) -> int:
        if kept.id not in self.values:
            self.values[kept.id] = kept
            self._transfer(kept, private)
        return kept.id

    def _transfer(self, kept: Kept, private: bool) -> None:
        if self.shares_memory and kept.segment is not None:
            place = kept.segment.place
            self.link.send(("open", kept.id, place.path, place.sizes, private))
        else:
            self.link.send(("value", kept.id, pack(kept.load())))

    def drop_value(self, kept: Kept) -> None:
        """Let it forget a kept value."""
        if self.values.pop(kept.id, None) is not None:
            self.link.send(("drop", kept.id))

    def ask_for_stacks(self, take: Callable[[tuple[str, Answer]], None]) -> None:
        """Ask where its threads are; what it answers is taken together with its address, and nothing if it is stuck."""
        self.askers.append(take)
        self.link.send(("stacks",))

    def take_stacks(self, answer: Answer) -> None:
        """Learn where its threads are."""
        if self.askers:
            self.askers.pop(0)((self.address, answer))

    def send_whole(self, value_id: int) -> None:
        """Send a kept value that it could not open."""
        kept = self.values.get(value_id)
        if kept is not None:
            self.link.send(("value", value_id, pack(kept.load())))


@attrs.frozen
class Greeting:
    """What a worker says of itself when a driver attaches."""

    pid: int
    shares_memory: bool


async def attach(
    address: str,
    executor_id: str,
    limit: int,
    connection_options: dict[str, Any],
    receive: Callable[[Message], None],
    closed: Callable[[], None],
) -> tuple[Link, Greeting]:
    """Connect to the agent in a worker, and wait until it has prepared its process.

    Args:
        address: Dask's address of the worker.
        executor_id: whose agent.
        limit: number of calls that run at the same time in the process, those that wait for others not counted.
        connection_options: Dask's options for the connection, such as its TLS context.
        receive: called with each message.
        closed: called once when the connection is gone.

    Returns:
        The connection, to be served by the caller, and what the worker says of itself.

    Raises:
        BackendBroken: the worker cannot run our calls; says why.
        OSError: there is no connection.
    """
    comm = await connect(address, **connection_options)
    try:
        await comm.write(
            {"op": plugin.operation(executor_id), "machine": memory.machine(), "limit": limit, "reply": False}
        )
        pid, shares_memory, failure = await comm.read()
    except BaseException:
        comm.abort()
        raise
    if failure is not None:
        comm.abort()
        error = outcome.decode_error(unpack(failure))
        if isinstance(error, BackendBroken):
            raise error
        raise BackendBroken(f"worker {address} cannot be prepared: {error}") from error
    return Link(comm, receive, closed), Greeting(pid, shares_memory)

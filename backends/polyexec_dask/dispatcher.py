"""Which call goes to which worker process, and what comes back. Lives in the event loop of the backend.

Each call becomes one Dask task, pinned to the worker that was chosen here; Dask's scheduler starts it there, and shows
it under its name. Calls that were handed over ahead of time are taken back from a worker that is slow to get to them.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from typing import Any

from polyexec import memory_usage
from polyexec.spi import Call, Death, Host, Outcome, Value, Verdict
from polyexec.spi import Message as Request
from polyexec_dask import memory
from polyexec_dask.dask_tasks import DaskTasks
from polyexec_dask.link import Message, unpack
from polyexec_dask.placement import Workers
from polyexec_dask.remote import Kept, Record, Remote, RequestId

_INSIST_SECONDS = 0.3


class Dispatcher:
    """Hands calls to workers.

    Args:
        host: the core.
        client: Dask's client, for starting tasks.
        limit: number of calls that run at the same time in one worker process.
        secedes: whether a call that waits makes room for another in its own process.
        width: number of workers among which calls that were handed over ahead of time are spread; None for all.
    """

    def __init__(self, host: Host, client: Any, *, limit: int, secedes: bool, width: int | None = None) -> None:
        self._host = host
        self._tasks = DaskTasks(client)
        self._limit = limit
        self._secedes = secedes
        self._loop = asyncio.get_running_loop()
        self.workers = Workers(limit, width, secedes=secedes)
        self.remotes = self.workers.remotes
        self._records: dict[int, Record] = {}
        self._pending: defaultdict[str, deque[Record]] = defaultdict(deque)
        self._numbers = 0

    def add(self, remote: Remote) -> None:
        """Use a worker from now on."""
        self.remotes[remote.address] = remote
        self.dispatch()
        if not remote.records:
            self._steal_for(remote)

    def submit(self, calls: Iterable[Call]) -> None:
        """Take calls, to be run in this order."""
        for call in calls:
            record = self._records[call.id] = Record.of(call)
            self._pending[call.lease.node].append(record)
        self.dispatch()

    def dispatch(self) -> None:
        """Send what can be sent."""
        chosen: dict[str, Remote] = {}
        for queue in list(self._pending.values()):
            while queue:
                if queue[0].dropped:
                    queue.popleft()
                    continue
                remote = self.workers.choose(queue[0].call)
                if remote is None:
                    break
                remote.take(queue.popleft())
                chosen[remote.address] = remote
        for remote in chosen.values():
            self._send_fresh(remote)

    def shortage(self) -> int:
        """Count the calls that should be running, and wait for a worker."""
        return sum(not (record.dropped or record.call.queued) for queue in self._pending.values() for record in queue)

    def _send_fresh(self, remote: Remote) -> None:
        fresh, remote.fresh = remote.fresh, []
        keys = []
        for record in fresh:
            call = record.call
            values = remote.send_values(call.values)
            self._numbers += 1
            record.number = self._numbers
            beside = self._secedes and not call.queued
            body = remote.send_body(record)
            flags = (beside, call.resident, self._is_limited(call))
            remote.link.send(("run", record.number, call.id, call.head, body, values, *flags))
            keys.append(f"{call.name}-{self._host.executor_id[:8]}{self._numbers:06d}")
        numbers = [record.number for record in fresh]
        futures = self._tasks.start(remote.address, self._host.executor_id, numbers, keys)
        for record, future in zip(fresh, futures, strict=True):
            record.future = future

    def receive(self, remote: Remote, message: Message) -> None:
        """Take a message of a worker."""
        kind, *fields = message
        getattr(self, f"_on_{kind}")(remote, *fields)

    def _is_limited(self, call: Call) -> bool:
        return bool(call.lease.held.memory) and self._limit == 1

    def _on_started(self, remote: Remote, call_id: int, before: int) -> None:
        record = remote.records.get(call_id)
        if record is not None:
            record.started = True
            self._host.started(call_id)
            self._host.placed(call_id, remote.pid)
            if self._is_limited(record.call):
                remote.guard(remote, before, record.call.lease.held.memory)

    def _on_finished(self, remote: Remote, call_id: int, place: Any, sizes: Sequence[int] | None) -> None:
        record = remote.records.get(call_id)
        if record is None:
            return
        if sizes is None:
            outcome = Outcome.of(unpack(place))
        else:
            try:
                segment = memory.Segment.adopting(memory.Place(place, tuple(sizes)))
                outcome = Outcome(segment.load().data, None, Kept(segment))
            except OSError:
                # There is no room for another descriptor or mapping here. Or the worker has died: then its loss tells
                # the rest.
                remote.link.send(("taken", call_id, False))
                return
            remote.link.send(("taken", call_id, True))
        self._forget(record)
        if record.call.lease.held.memory:
            remote.guard(remote, 0, 0)
        if record.stop is not None:
            self._host.stopped(call_id, Verdict.LATE)
        self._host.finished(call_id, outcome)
        self.dispatch()
        if not remote.records:
            self._steal_for(remote)

    def _forget(self, record: Record) -> None:
        self._records.pop(record.call.id, None)
        self._withdraw(record)
        record.end()

    def _withdraw(self, record: Record) -> None:
        if record.remote is not None:
            record.remote.drop(record)
        if record.future is not None:
            self._tasks.release(record.future)
            record.future = None

    def _steal_for(self, idle: Remote) -> None:
        victim = self.workers.rival_of(idle)
        if victim is not None:
            self._steal(victim, (victim.load() - self._limit + 1) // 2)

    def _steal(self, victim: Remote, count: int) -> None:
        waiting = [record for record in victim.records.values() if not record.started]
        for record in waiting[-count:] if count else []:
            victim.link.send(("steal", record.number, record.call.id))

    def _on_stolen(self, remote: Remote, call_id: int) -> None:
        record = remote.records.get(call_id)
        if record is None:
            return
        if record.stop is not None:
            self._forget(record)
            self._host.stopped(call_id, Verdict.REVOKED)
        else:
            self._requeue([record])
            self.dispatch()

    def _requeue(self, records: Sequence[Record]) -> None:
        for record in reversed(records):
            node = record.call.lease.node
            self._withdraw(record)
            self._pending[node].appendleft(record)

    def cancel(self, call_id: int, *, force: bool) -> None:
        """Stop a call."""
        record = self._records.get(call_id)
        if record is None:
            self._host.stopped(call_id, Verdict.LATE)
        elif record.remote is None:
            record.dropped = True
            self._forget(record)
            self._host.stopped(call_id, Verdict.REVOKED)
        else:
            record.stop = force
            if force and record.started and len(record.remote.records) == 1:
                self._kill(record)
                return
            record.remote.link.send(("stop", record.number, call_id, force))
            if force:
                self._loop.call_later(_INSIST_SECONDS, self._insist, record)

    def _insist(self, record: Record) -> None:
        remote = record.remote
        if remote is None or remote.gone or record.stop is not True:
            return
        if any(other.goes_on() and other is not record for other in remote.records.values()):
            self._loop.call_later(_INSIST_SECONDS, self._insist, record)
        else:
            self._kill(record)

    def _kill(self, record: Record) -> None:
        remote = record.remote
        record.stop = None
        record.started = True
        self._host.stopped(record.call.id, Verdict.DELIVERED)
        if remote is not None and not remote.gone:
            remote.gone = True
            remote.kill(remote)

    def _on_running(self, remote: Remote, call_id: int) -> None:
        record = remote.records.get(call_id)
        if record is not None and record.stop is True:
            self._kill(record)

    def _on_stopped(self, remote: Remote, call_id: int, verdict: str) -> None:
        record = remote.records.get(call_id)
        if record is None or record.stop is None:
            return
        record.stop = None
        if verdict == Verdict.REVOKED.value:
            self._forget(record)
        self._host.stopped(call_id, Verdict(verdict))
        self.dispatch()

    def _on_request(
        self, remote: Remote, call_id: int, number: int, message: Any, place: Any, sizes: Sequence[int] | None
    ) -> None:
        request = unpack(message)
        if sizes is not None:
            try:
                segment = memory.Segment.adopting(memory.Place(place, tuple(sizes)))
            except OSError:
                # As for outcomes.
                remote.link.send(("resend", number))
                return
            request = Request(request.data, (), Kept(segment))
        self._host.request(RequestId(remote, number), call_id, request)

    def _on_told(self, remote: Remote, call_id: int, message: Any) -> None:
        self._host.told(call_id, unpack(message))

    def _on_stacks(self, remote: Remote, *threads: tuple[int, str, Sequence[str]]) -> None:
        remote.take_stacks(threads)

    def _on_outgrown(self, remote: Remote, used: int, allowance: int) -> None:
        remote.cause = memory_usage.describe(used, allowance)

    def reply(self, request_id: object, message: bytes, values: Sequence[Value]) -> None:
        """Answer a request."""
        assert isinstance(request_id, RequestId)
        remote = request_id.remote
        remote.link.send(("reply", request_id.number, message, remote.send_values(values)))

    def _on_missing(self, remote: Remote, value_id: int) -> None:
        remote.send_whole(value_id)

    def free(self, kept: Kept) -> None:
        """Let all workers forget a value."""
        for remote in self.remotes.values():
            remote.drop_value(kept)
        kept.free()

    def blocked(self, call_id: int) -> None:
        """Make room for another call."""
        record = self._records.get(call_id)
        if record is None or record.remote is None or record.call.resident:
            return
        record.remote.set_blocked(record, blocked=True)
        if self._secedes:
            record.remote.link.send(("blocked", call_id))
        else:
            self._steal(record.remote, len(record.remote.records))
        self.dispatch()

    def resumed(self, call_id: int) -> None:
        """Note that a call goes on."""
        record = self._records.get(call_id)
        if record is not None and record.remote is not None and not record.call.resident:
            record.remote.set_blocked(record, blocked=False)
            if self._secedes:
                record.remote.link.send(("resumed", call_id))

    def remove(self, remote: Remote) -> None:
        """Note that a worker is gone; its messages have all been received."""
        remote.gone = True
        if self.remotes.pop(remote.address, None) is not None:
            remote.bury(remote, lambda death: self._mourn(remote, death))

    def _mourn(self, remote: Remote, death: Death) -> None:
        innocent = []
        for record in list(remote.records.values()):
            if record.started:
                self._forget(record)
                if record.stop is not None:
                    self._host.stopped(record.call.id, Verdict.LATE)
                self._host.lost(record.call.id, death)
            elif record.stop is not None:
                self._forget(record)
                self._host.stopped(record.call.id, Verdict.REVOKED)
            else:
                innocent.append(record)
        self._requeue(innocent)
        self.dispatch()

    def abandon(self, node: str) -> None:
        """Give the calls that wait for a lost node back to the core."""
        for record in self._pending.pop(node, ()):
            if not record.dropped:
                self._forget(record)
                self._host.lost(record.call.id, Death(node, cause="the node is gone", started=False))

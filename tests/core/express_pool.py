"""A pool of imaginary workers for the random world of plain calls; it keeps to ``Seats``, and to no more.

What a worker says travels on two ways: ends of bodies on the one, everything else on the other. What comes on the
second never overtakes an end that was reported before; an end may overtake what comes on the second.
"""

from __future__ import annotations

import pickle
import random
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

import attrs

from polyexec.ledger import Need
from polyexec.options import Resources
from polyexec.session import Entry
from polyexec.spi import (
    Backend,
    Call,
    Death,
    EngineInfo,
    Host,
    Node,
    Outcome,
    PlainCall,
    SeatListener,
    Stored,
    Value,
    Verdict,
)
from polyexec.stored import Head, Tag, value_head

PATIENCE = 0.05
BROKEN = Outcome.of(Stored(Head(Tag.BROKEN).encode() + b"."))
ERROR = Head(Tag.ERROR).encode() + b"own"
CANCELLED = Head(Tag.CANCELLED).encode() + b"own"
_REFUSALS = 2
"""Starts that fail in one schedule at most; with three the core gives up."""


@attrs.define(eq=False)
class Story:
    """What the world knows of one call or task.

    Attributes:
        seconds: how long its body takes.
        asks: what its body asks of the executor, the last first.
        parent: the task that has submitted it.
        needs: what it depends on.
        started: how often its body has started.
        settled: how often its value was settled.
        killed: its worker died while its body ran.
        asked: somebody has cancelled it, or may have.
        answers: what those were told.
        unanswered: how many were told nothing yet.
    """

    entry: Entry
    need: Need
    seconds: float
    fails: bool = False
    asks: list[str] = attrs.field(factory=list)
    parent: Story | None = None
    needs: list[Story] = attrs.field(factory=list)
    children: list[int] = attrs.field(factory=list)
    started: int = 0
    settled: int = 0
    killed: bool = False
    asked: bool = False
    answers: list[bool] = attrs.field(factory=list)
    unanswered: int = 0

    @property
    def value(self) -> bytes:
        """What its body returns."""
        return value_head(self.seconds) + b"%d" % self.entry.id


@attrs.define(eq=False)
class Body:
    """A body that runs."""

    call: int
    seat: int
    story: Story
    ends: float
    interrupted: bool = False
    asking: bool = False
    lent: bool = False


@attrs.define(eq=False)
class Worker:
    """One imaginary process, and what the pool knows of it.

    Attributes:
        call: what the pool takes it to run, if that is no plain call.
        seat: whose worker it is.
        closed: the last seat of which nothing more may start there.
        items: seat, call and story of what it is to run.
        heard: what its listener has not dealt with: a seat that is recalled, or a call to be interrupted.
        ends: reported ends of bodies.
        line: everything else that it has said.
    """

    ready: bool = False
    dead: bool = False
    call: int | None = None
    seat: int = 0
    closed: int = 0
    body: Body | None = None
    items: deque[tuple[int, int, Story]] = attrs.field(factory=deque)
    heard: deque[tuple[str, int]] = attrs.field(factory=deque)
    ends: deque[tuple[int, bytes]] = attrs.field(factory=deque)
    line: deque[tuple[Any, ...]] = attrs.field(factory=deque)


class _World(Protocol):
    random: random.Random
    now: float
    stories: dict[int, Story]

    def on_hand(self, calls: Sequence[PlainCall]) -> None: ...

    def on_start(self, body: Body) -> None: ...

    def on_child(self, parent: Story, entry_id: int) -> None: ...

    def on_resume(self, call_id: int) -> None: ...


class ImaginaryPool:
    """Runs nothing, and reports in random order what would have come of it. It has what ``Seats`` has.

    Args:
        world: what it is a part of.
    """

    host: Host
    listener: SeatListener

    def __init__(self, world: _World) -> None:
        self.world = world
        self.workers: list[Worker] = []
        self.idle: list[Worker] = []
        self.waiting: deque[tuple[int, Call | None]] = deque()
        self.by_seat: dict[int, Worker] = {}
        self.recalls: dict[int, float] = {}
        self.refusals = 0

    # What the core wants

    def report_to(self, listener: SeatListener) -> None:
        self.listener = listener

    def open(self, seat: int) -> None:
        self._find_worker(seat, None)

    def close(self, seat: int) -> None:
        worker = self.by_seat.pop(seat)
        assert worker.dead or worker.body is None, "a seat is given back on which something runs"
        worker.closed = max(worker.closed, seat)
        self._free(worker)

    def submit(self, call: Call) -> None:
        self._find_worker(call.id, call)

    def _find_worker(self, call_id: int, call: Call | None) -> None:
        while self.idle:
            worker = self.idle.pop()
            if not worker.dead:
                self._give(worker, call_id, call)
                return
        self.waiting.append((call_id, call))
        self.workers.append(Worker())

    def _give(self, worker: Worker, call_id: int, call: Call | None) -> None:
        if call is None:
            worker.seat = call_id
            self.by_seat[call_id] = worker
            self.listener.seated(call_id)
        else:
            worker.call = call_id
            worker.items.append((0, call_id, self.world.stories[call.task_id]))

    def _free(self, worker: Worker) -> None:
        worker.call, worker.seat = None, 0
        if worker.dead:
            return
        if self.waiting:
            self._give(worker, *self.waiting.popleft())
        else:
            self.idle.append(worker)

    def hand(self, seat: int, calls: Sequence[PlainCall]) -> None:
        worker = self.by_seat[seat]
        assert seat not in self.recalls, "calls are handed to a seat that is being taken back"
        self.world.on_hand(calls)
        worker.items += [(seat, call.id, self.world.stories[call.id]) for call in calls]

    def recall(self, seat: int) -> None:
        worker = self.by_seat[seat]
        worker.closed = max(worker.closed, seat)
        worker.heard.append(("recall", seat))
        self.recalls[seat] = self.world.now + PATIENCE

    def promote(self, seat: int, call_id: int) -> None:
        worker = self.by_seat.pop(seat)
        assert worker.closed >= seat, "a call is made ordinary before others behind it are taken back"
        worker.seat, worker.call = 0, call_id

    def cancel(self, call_id: int, *, force: bool) -> None:
        waiting = next((item for item in self.waiting if item[0] == call_id), None)
        worker = next((worker for worker in self.workers if worker.call == call_id), None)
        if waiting is not None:
            self.waiting.remove(waiting)
            self.host.stopped(call_id, Verdict.REVOKED)
        elif worker is None:
            self.host.stopped(call_id, Verdict.LATE)
        elif force:
            self.kill(worker)
            self.host.stopped(call_id, Verdict.DELIVERED)
        else:
            worker.heard.append(("interrupt", call_id))

    def reply(self, request_id: object, message: bytes) -> None:
        body = request_id
        assert isinstance(body, Body)
        status, answer = pickle.loads(message)
        body.asking = False
        if status == "interrupted":
            body.interrupted, body.ends = True, self.world.now
        elif status == "ok" and isinstance(answer, int):
            self.world.on_child(body.story, answer)

    def lend(self, call_id: int, lent: bool) -> None:
        """A body waits, or goes on."""
        body = next((w.body for w in self.workers if w.body is not None and w.body.call == call_id), None)
        if body is not None:
            assert body.lent is not lent
            body.lent = lent
        if not lent:
            self.world.on_resume(call_id)

    # What workers do

    def start(self, worker: Worker) -> None:
        """A worker comes up, or does not."""
        if self.waiting and self.refusals < _REFUSALS and self.world.random.random() < 0.05:
            self.refusals += 1
            self.host.finished(self.waiting.popleft()[0], BROKEN)
            self.workers.remove(worker)
            self.workers += [Worker()] * bool(self.waiting)
            return
        worker.ready = True
        self._free(worker)

    def work(self, worker: Worker) -> None:
        """The main thread of a worker gets a little further."""
        body = worker.body
        if body is not None:
            if body.ends <= self.world.now and (body.interrupted or not body.asking):
                self._end(worker, body)
        elif worker.items:
            seat, call_id, story = worker.items.popleft()
            if not seat or worker.closed < seat:
                worker.body = body = Body(call_id, seat, story, self.world.now + story.seconds)
                self.world.on_start(body)

    def _end(self, worker: Worker, body: Body) -> None:
        worker.body = None
        data = CANCELLED if body.interrupted else ERROR if body.story.fails else body.story.value
        worker.ends.append((body.call, data))

    def ask(self, worker: Worker, message: tuple[Any, ...]) -> None:
        """The body asks the executor for something."""
        body = worker.body
        assert body is not None
        if body.seat:
            worker.closed = max(worker.closed, body.seat)
            worker.line.append(("kept", body.seat, body.call))
        body.asking = True
        worker.line.append(("request", body, pickle.dumps((*message, None))))

    def hear(self, worker: Worker) -> None:
        """The listener of a worker deals with what the pool has sent."""
        kind, number = worker.heard.popleft()
        body = worker.body
        if kind == "recall":
            running = body.call if body is not None and body.seat else 0
            worker.line.append(("kept", number, running))
        elif body is not None and body.call == number:
            body.interrupted, body.ends = True, self.world.now
            worker.line.append(("stopped", number, Verdict.DELIVERED))
        else:
            waits = any(item[1] == number for item in worker.items)
            worker.items = deque(item for item in worker.items if item[1] != number)
            worker.ends += [(number, CANCELLED)] * waits
            worker.line.append(("stopped", number, Verdict.DELIVERED if waits else Verdict.LATE))

    def kill(self, worker: Worker) -> None:
        """A worker dies; the pool has not noticed it yet."""
        worker.dead = True
        if worker.body is not None:
            worker.body.story.killed = True

    # What the pool notices

    def take_ends(self, worker: Worker, count: int) -> None:
        """Take the next ends that a worker has reported."""
        for _ in range(min(count, len(worker.ends))):
            call_id, data = worker.ends.popleft()
            if worker.call == call_id:
                self._free(worker)
                self.host.finished(call_id, Outcome.of(Stored(data)))
            elif self.world.random.random() < 0.9:
                self.listener.finished(worker.seat, call_id, data)
            else:
                self.listener.finished(worker.seat, call_id, Outcome.of(Stored(data)))

    def take_line(self, worker: Worker) -> None:
        """Take what a worker has said next, and all ends first."""
        self.take_ends(worker, len(worker.ends))
        kind, *fields = worker.line.popleft()
        if kind == "kept":
            self.recalls.pop(fields[0], None)
            self.listener.kept(*fields)
        elif kind == "stopped":
            self.host.stopped(*fields)
        else:
            body, message = fields
            self.host.request(body, body.call, Stored(message))

    def lose_patience(self) -> None:
        """Do without the answers of workers that keep the pool waiting."""
        for seat in [seat for seat, limit in self.recalls.items() if limit <= self.world.now]:
            del self.recalls[seat]
            worker = self.by_seat.get(seat)
            if worker is not None:
                running = worker.body.call if worker.body is not None else 0
                self.take_ends(worker, len(worker.ends))
                self.listener.kept(seat, running)

    def bury(self, worker: Worker) -> None:
        """Notice that a worker is dead."""
        self.take_ends(worker, len(worker.ends))
        while worker.line:
            self.take_line(worker)
        self.workers.remove(worker)
        if worker in self.idle:
            self.idle.remove(worker)
        running = worker.body.call if worker.body is not None else None
        if worker.seat:
            self.listener.vacated(worker.seat, running, Death("host"))
            self.by_seat.pop(worker.seat, None)
            self.recalls.pop(worker.seat, None)
        elif worker.call is not None:
            begun = running is not None
            self.refusals += not begun
            self.host.lost(worker.call, Death("host", started=begun))
        elif not worker.ready:
            self.workers += [Worker()] * bool(self.waiting)


class ImaginaryBackend(Backend):
    """Lets the core reach an imaginary pool.

    Args:
        pool: the pool.
        cpus: how many it may use.
    """

    def __init__(self, pool: ImaginaryPool, cpus: int) -> None:
        super().__init__(None)
        self._pool = pool
        self._node = Node("node", "host", Resources(cpus, 1), cpus * 2 + 2)
        self.seats = pool

    def open(self, host: Host) -> EngineInfo:
        return EngineInfo("imaginary")

    def close(self, *, kill: bool) -> None:
        return

    def nodes(self) -> Sequence[Node]:
        return (self._node,)

    def submit(self, call: Call) -> None:
        self._pool.submit(call)

    def cancel(self, call_id: int, *, force: bool) -> None:
        self._pool.cancel(call_id, force=force)

    def reply(self, request_id: object, message: bytes, values: Sequence[Value]) -> None:
        self._pool.reply(request_id, message)

    def blocked(self, call_id: int) -> None:
        self._pool.lend(call_id, True)

    def resumed(self, call_id: int) -> None:
        self._pool.lend(call_id, False)

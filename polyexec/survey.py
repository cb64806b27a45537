"""Looking at all that the loop knows, for ``Executor.dump``. A part of the runtime: everything here runs in the loop.

It only reads, and takes a bounded time: all tasks are counted, and a bounded number of them is described.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import attrs

from polyexec.actor_calls import Actor
from polyexec.dump import LIMIT, ActorDump, NodeDump, ReservationDump, StreamDump, TaskDump, label, node_name, number
from polyexec.express import Seat
from polyexec.inbox import Inbox
from polyexec.ledger import SLOT, UNIT, Need
from polyexec.node_state import BundleState, NodeState
from polyexec.placement import Placement
from polyexec.records import Running, State, Stop, Task
from polyexec.reservations import Gang
from polyexec.session import Entry

if TYPE_CHECKING:
    from polyexec.runtime import Runtime

_NAMED = 4
"""Holders, or values, that are named in one sentence."""

_SINGLE = (1 << 20) - 1
_SLOT_NEED = {SLOT: 1, "cpus": UNIT}
_WHY_STOPPED = {Stop.CANCEL: "its end: it was cancelled", Stop.TIMEOUT: "its end: its time limit is over"}


@attrs.frozen
class Picture:
    """What the loop knows.

    Attributes:
        counts: number of tasks by state.
        tasks: some of them.
        actors: all.
        streams: all.
        reservations: all.
        nodes: all.
        calls: the tasks that run in a call, or on a seat: the one that it is, and for an actor those of its methods.
        names: what those tasks are called, in words.
    """

    counts: Mapping[str, int]
    tasks: tuple[TaskDump, ...]
    actors: tuple[ActorDump, ...]
    streams: tuple[StreamDump, ...]
    reservations: tuple[ReservationDump, ...]
    nodes: tuple[NodeDump, ...]
    calls: Mapping[int, tuple[int, ...]]
    names: Mapping[int, str]


def picture_of(runtime: Runtime) -> Picture:
    """Look at everything once."""
    return _Survey(runtime).picture()


class _Survey:
    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._scheduler = runtime.scheduler
        self._now = time.monotonic()
        self._streams = [inbox for inbox in runtime.streams.all() if inbox.end.tag is None or inbox.unread]
        self._rooms = {inbox.room: inbox for inbox in self._streams if inbox.room is not None}
        self._takers = {taker: inbox for inbox in self._streams for taker in inbox.takers}
        self._seats: dict[int, Seat] = {} if runtime.plain is None else runtime.plain.express.seats

    def picture(self) -> Picture:
        """Put everything together."""
        counts, tasks = self._tasks()
        return Picture(
            counts,
            tuple(tasks),
            tuple(self._actor(actor) for actor in self._scheduler.actors.actors.values() if actor.ending is None),
            tuple(map(self._stream, self._streams)),
            tuple(self._reservations()),
            tuple(self._nodes()),
            *self._calls(),
        )

    def _calls(self) -> tuple[dict[int, tuple[int, ...]], dict[int, str]]:
        calls: dict[int, tuple[int, ...]] = {}
        names: dict[int, str] = {}
        for call in self._scheduler.running.values():
            seat = self._seats.get(call.id)
            if seat is not None:
                first = next(iter(seat.calls.values()), None)
                if first is not None:
                    calls[call.id] = (first.id,)
                    names[first.id] = label(first.id, first.entry.name)
                continue
            names[call.task.id] = label(call.task.id, call.task.name)
            if call.host is None:
                calls[call.id] = (call.task.id, *calls.get(call.id, ()))
            elif self._scheduler.actors.is_executing(call):
                calls[call.host] = (*calls.get(call.host, ()), call.task.id)
        return calls, names

    # Tasks

    def _tasks(self) -> tuple[Counter[str], list[TaskDump]]:
        counts: Counter[str] = Counter()
        found: list[TaskDump] = []
        for task in self._scheduler.tasks.values():
            if task.is_seat or task.gang is not None:
                continue
            call = self._scheduler.running.get(task.call) if task.call is not None else None
            state = self._state(task, call)
            counts[state] += 1
            if counts[state] <= LIMIT:
                found.append(self._describe(task, call, state))
        self._add_plain(counts, found)
        return counts, sorted(found, key=lambda task: task.id)

    def _state(self, task: Task, call: Running | None) -> str:
        if call is None:
            return task.state.value
        if call.stop is not Stop.NO:
            return "stopping"
        if call.id in self._scheduler.waits.blocked:
            return "paused" if any(value in self._rooms for value in self._missing(call)) else "blocked"
        if self._scheduler.actors.serves(task):
            return "serving"
        if task.actor is not None and not self._scheduler.actors.is_executing(call):
            return "ready"
        return "running"

    def _describe(self, task: Task, call: Running | None, state: str) -> TaskDump:
        node = None if call is None else self._scheduler.ledger.node_of(call.grant.node)
        return TaskDump(
            id=task.id,
            name=task.name,
            state=state,
            attempt=task.attempts,
            seconds=max(0.0, self._now - task.since) if task.since else None,
            waits_for=tuple(self._reasons(task, call)),
            node=node,
            parent=task.parent,
        )

    def _reasons(self, task: Task, call: Running | None) -> Iterable[str]:
        if call is not None:
            return self._reasons_of_call(task, call)
        if task.state is State.WAITING:
            missing = dict.fromkeys(value for value in task.dependencies if value not in self._scheduler.values)
            return self._some([self._value(value) for value in missing])
        if task.state is State.RESTING:
            return ["the end of the pause before its next attempt, or the answer of its retry hook"]
        if task.actor is not None:
            return [self._turn(task)]
        return self._lacking(task.need, task.placement)

    def _reasons_of_call(self, task: Task, call: Running) -> Iterable[str]:
        if call.stop is not Stop.NO:
            yield _WHY_STOPPED[call.stop]
        if call.id in self._scheduler.waits.blocked:
            missing = self._missing(call)
            yield from self._some([self._value(value) for value in missing])
            if not missing:
                yield from self._lacking_to_go_on(call)
        elif task.actor is not None and not self._scheduler.actors.is_executing(call):
            yield self._turn(task)

    def _missing(self, call: Running) -> list[int]:
        waits = self._scheduler.waits
        return sorted({value for wait in call.waits for value in waits[wait].missing})

    @staticmethod
    def _some(words: list[str]) -> list[str]:
        more = [f"and {len(words) - _NAMED} more"] if len(words) > _NAMED else []
        return words[:_NAMED] + more

    def _value(self, value: int) -> str:
        """Say what a value is that somebody waits for."""
        if value in self._rooms:
            inbox = self._rooms[value]
            return f"its reader, {self._reader(inbox)}, to take some of the {len(inbox.unread)} items that are unread"
        if value in self._takers:
            return f"the next item of stream {label(self._takers[value].end.id, self._takers[value].end.name)}"
        task = self._scheduler.tasks.get(value & ~_SINGLE)
        entry = self._runtime.objects.entries.get(value)
        if task is not None and task.gang is not None:
            return f"reservation {number(task.id)}"
        if task is not None:
            call = self._scheduler.running.get(task.call) if task.call is not None else None
            return f"{label(value, task.name)} ({self._state(task, call)})"
        if entry is None:
            return f"{number(value)}, of which nothing is known any more"
        if entry.plain is not None:
            return f"{label(value, entry.name)} ({'running' if entry.plain.seat else 'ready'})"
        promise = "a promise that nobody has kept yet" if entry.promised else "not a task"
        return f"{label(value, entry.name)} ({promise})"

    def _turn(self, method: Task) -> str:
        """Say why a call of a method has not begun."""
        actor = self._scheduler.actors.actor_of(method)
        name = label(actor.task.id, actor.task.name)
        if actor.call is None:
            return f"actor {name} to start"
        before = sum(1 for _ in self._scheduler.actors.line_of(method)) if method.call is None else 0
        runs = ", ".join(self._some([label(call.task.id, call.task.name) for call in self._executing(actor)]))
        behind = f", behind {before} calls of the same caller" if before else ""
        return f"its turn at actor {name}{behind}, which runs {runs or 'nothing'}"

    # Plain calls

    def _add_plain(self, counts: Counter[str], found: list[TaskDump]) -> None:
        plain = self._runtime.plain
        if plain is None:
            return
        for seat in self._seats.values():
            for place, call in enumerate(seat.calls.values()):
                state = "ready" if place else "running"
                counts[state] += 1
                if counts[state] <= LIMIT:
                    found.append(self._seated(seat, place, call.entry, state))
        # Others may add to it meanwhile.
        pending = tuple(plain.express.pending)
        waiting = [call.entry for call in pending if not call.dropped]
        described = list(itertools.islice(waiting, max(0, LIMIT - counts["ready"])))
        reasons = tuple(self._lacking(_SLOT_NEED, None)) if described else ()
        counts["ready"] += len(waiting)
        found += [TaskDump(id=one.id, name=one.name, state="ready", waits_for=reasons) for one in described]
        if not counts["ready"]:
            del counts["ready"]

    def _seated(self, seat: Seat, place: int, entry: Entry, state: str) -> TaskDump:
        if place:
            first = next(iter(seat.calls.values()))
            reasons: tuple[str, ...] = (f"the worker of {label(first.id, first.entry.name)}, to which it was handed",)
        else:
            reasons = () if seat.pid else ("its worker to start",)
        since = seat.since or seat.handed
        seconds = max(0.0, self._now - since) if since and not place else None
        return TaskDump(
            id=entry.id,
            name=entry.name,
            state=state,
            attempt=0 if place else 1,
            seconds=seconds,
            waits_for=reasons,
            node=seat.node,
            pid=None if place else seat.pid or None,
        )

    # Resources

    def _lacking(self, need: Need, placement: Placement | None) -> list[str]:
        """Say what is missing for a need where it is most likely met."""
        ledger = self._scheduler.ledger
        states = [state for state in ledger.candidates(placement, need) if state.node.alive]
        able = [state for state in states if state.could_fit(need)] or states
        if not able:
            where = "" if placement is None else f" ({placement})"
            return [f"a node on which it may run{where}"]
        best = min(able, key=lambda state: state.missing(need))
        short = [name for name, amount in need.items() if best.left(name) < amount]
        if not short and "gpus" in need and not best.fits(need, {}):
            short = ["gpus"]
        return [self._short(best, name, need[name]) for name in short if name != SLOT or len(short) == 1] or [
            "its turn: what is left is kept for others that came before it, or begin in this moment"
        ]

    def _lacking_to_go_on(self, call: Running) -> list[str]:
        state = self._scheduler.ledger.state_of(call.grant.node)
        short = [name for name, amount in call.lacking.items() if state.left(name) < amount]
        return [f"{self._short(state, name, call.lacking[name])}; it goes on then" for name in short]

    def _short(self, state: NodeState, name: str, amount: int) -> str:
        bundle = f"bundle {state.id.partition('#')[0]} on " if isinstance(state, BundleState) else ""
        have = f"{_part(state, name)} left"
        holders = self._some([who for who, need in self._holders(state.id) if need.get(name)])
        held = f"; held by {', '.join(holders)}" if holders else ""
        return f"{_amount(name, amount)} on {bundle}{node_name(state.node.id)}: {have}{held}"

    def _holders(self, node_id: str) -> Iterator[tuple[str, Need]]:
        """Give who holds something on a node, or in a bundle."""
        for call in self._scheduler.running.values():
            if call.grant.node == node_id and any(call.grant.need.values()):
                yield self._holder(call), call.grant.need
        for reservation, held in self._scheduler.reservations.held.items():
            for index, place in enumerate(held.places):
                if place.node == node_id:
                    yield f"reservation {number(reservation)}, bundle {index}", place.need

    def _holder(self, call: Running) -> str:
        if not call.task.is_seat:
            return label(call.task.id, call.task.name)
        seat = self._seats.get(call.id)
        first = next(iter(seat.calls.values()), None) if seat is not None else None
        return "a worker that is ready for calls" if first is None else label(first.id, first.entry.name)

    def _nodes(self) -> Iterator[NodeDump]:
        for state in self._scheduler.ledger.all_nodes():
            names = [name for name in state.total if name != SLOT]
            left = [_part(state, name) for name in names]
            holders = [(who, _amounts(need)) for who, need in self._holders(state.id)]
            lines = tuple(f"{who} holds {held}" for who, held in holders if held)
            node, nothing = state.node, ("nothing",)
            yield NodeDump(id=state.id, host=node.host, alive=node.alive, left=tuple(left) or nothing, holders=lines)

    def _reservations(self) -> Iterator[ReservationDump]:
        for reservation, held in self._scheduler.reservations.held.items():
            bundles = [f"{_amounts(place.need)} on {node_name(place.node or 'no node yet')}" for place in held.places]
            yield ReservationDump(id=reservation, bundles=tuple(bundles), owner=self._owner(held.gang), held=True)
        for reservation, task in self._scheduler.reservations.waiting.items():
            assert task.gang is not None
            needs = [_amounts(need) for need in task.gang.shape.needs.values()]
            yield ReservationDump(id=reservation, bundles=tuple(needs), owner=self._owner(task.gang), held=False)

    def _owner(self, gang: Gang) -> str:
        call = self._scheduler.running.get(gang.owner) if gang.owner is not None else None
        return "the driver" if call is None else label(call.task.id, call.task.name)

    # Actors and streams

    def _executing(self, actor: Actor) -> list[Running]:
        return [] if actor.call is None else self._scheduler.actors.executing(actor)

    def _actor(self, actor: Actor) -> ActorDump:
        running = tuple(label(call.task.id, call.task.name) for call in self._executing(actor))
        return ActorDump(
            id=actor.task.id,
            name=actor.task.name,
            state="starting" if actor.call is None else "leaving" if actor.leaving else "serving",
            running=running,
            queued=max(0, actor.open - len(running)),
            node=None if actor.call is None else self._scheduler.ledger.node_of(actor.call.grant.node),
        )

    def _stream(self, inbox: Inbox) -> StreamDump:
        return StreamDump(
            id=inbox.end.id,
            name=inbox.end.name,
            unread=len(inbox.unread),
            buffer=inbox.buffer,
            paused=inbox.room is not None,
            reader=self._reader(inbox),
        )

    def _reader(self, inbox: Inbox) -> str:
        if inbox.reader is None:
            return "the driver"
        task = self._scheduler.tasks.get(inbox.reader)
        return f"{number(inbox.reader)}, which has ended" if task is None else label(task.id, task.name)


def _part(state: NodeState, name: str) -> str:
    figure = _figure(name, max(0, state.left(name))).partition(" ")[0]
    return f"{figure} of {_amount(name, state.has(name))}"


def _amount(name: str, amount: int) -> str:
    figure, what = _figure(name, amount), name.removeprefix("custom ")
    if name in ("cpus", "gpus", SLOT):
        what = "worker" if name == SLOT else name[:-1]
        what += "" if figure == "1" else "s"
    return f"{figure} {what}"


def _figure(name: str, amount: int) -> str:
    if name == "memory":
        return f"{amount / 2**30:.3g} GiB"
    return f"{amount if name == SLOT else amount / UNIT:g}"


def _amounts(need: Need) -> str:
    return ", ".join(_amount(name, amount) for name, amount in need.items() if amount and name != SLOT)

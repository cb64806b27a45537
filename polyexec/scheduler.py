"""The scheduler: events in, actions out. No input or output, no thread, no clock of its own.

Every public method is an event; what is to be done about it is appended to ``actions``, which the runtime carries out
in order. One thread at a time may use a scheduler. Values are known here by id and by whether they are good, never by
content.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from polyexec import deadlock
from polyexec.actor_calls import ActorCalls
from polyexec.estimates import Estimates
from polyexec.ledger import SLOT, UNIT, Grant, Ledger
from polyexec.placement import Placement
from polyexec.ready import ReadyQueue, Share
from polyexec.records import (
    Action,
    Answer,
    Cancelled,
    Consult,
    DependencyFailed,
    Died,
    Displaced,
    Drop,
    Ended,
    Ending,
    Failed,
    Halt,
    NodeGone,
    Running,
    Settle,
    Start,
    State,
    Stop,
    Task,
    TimedOut,
    Wait,
)
from polyexec.reservations import Reservations
from polyexec.spi import Death, Verdict
from polyexec.stored import Stored, Tag
from polyexec.timers import Timers
from polyexec.waits import Waits

PATIENCE = 1.0
"""Seconds that a cancel waits for the backend's verdict before it promises that the call will end as cancelled."""

FREE_RESTARTS = 3
"""How often a call is handed out again because its worker died before the body had started, or would not start."""

BACKOFF = 0.1
BACKOFF_LIMIT = 10.0
"""Seconds before the first new attempt, doubled for each further one, and their limit."""


class Observer(Protocol):
    """Who is told what the actions do not say."""

    def ready(self, task: Task) -> None:
        """Learn that a task waits for its turn."""

    def stopped(self, task: Task, ending: Ending) -> None:
        """Learn that an attempt has ended and that there may be another."""

    def retried(self, task: Task) -> None:
        """Learn that there will be."""


class Scheduler:
    """Decides what runs when, where and how often.

    Args:
        clock: gives seconds; never goes back.
        random: gives numbers from 0 to 1, to spread new attempts.
        queue_limit: how many calls may be handed over before there is room.

    Attributes:
        keepers: gives the calls that refer to a value, None if others do, or if that is not known.
    """

    def __init__(self, clock: Callable[[], float], random: Callable[[], float], *, queue_limit: int = 0) -> None:
        self.actions: list[Action] = []
        self.ledger = Ledger()
        self.timers = Timers(clock)
        self.tasks: dict[int, Task] = {}
        self.values: dict[int, Tag] = {}
        self.running: dict[int, Running] = {}
        self.ready = ReadyQueue()
        self.waits = Waits(self)
        self.reservations = Reservations(self)
        self.actors = ActorCalls(self)
        self.underway: set[int] = set()
        self.seats_waiting: dict[int, Task] = {}
        self.observer: Observer | None = None
        self.keepers: Callable[[int], Collection[int] | None] = _anybody
        self._random = random
        self._estimates = Estimates(queue_limit)
        self._dependents: dict[int, list[Task]] = {}
        self._queued: deque[Running] = deque()
        self._arriving: deque[tuple[int, Tag]] = deque()
        self._special_count = 0
        # Odd, so that no call has the id of a value, which plain calls have.
        self._numbers = itertools.count(1, 2)
        self._places = itertools.count(1)

    def submit(self, task: Task) -> None:
        """Take a new task."""
        self.tasks[task.id] = task
        task.since = self.timers.now()
        parent = self.tasks.get(task.parent) if task.parent is not None else None
        self._take(task)
        if parent is not None and task.state is not State.DONE:
            parent.children.add(task.id)
            if parent.call is not None and self.running[parent.call].barren:
                # It was under way when its parent was cancelled, or the parent does not stop to submit.
                self.cancel(task.id, force=False, recursive=True, token=None)

    def _take(self, task: Task) -> None:
        if task.width:
            self.actors.add(task)
        if task.actor is not None and not self.actors.take(task):
            return
        for value in task.dependencies:
            tag = self.values.get(value)
            if tag is None:
                self._dependents.setdefault(value, []).append(task)
                task.missing += 1
            elif tag is not Tag.VALUE:
                self._dependency_failed(task, value, tag)
                return
        if not task.missing:
            self._make_ready(task)

    def arrive(self, value: int, tag: Tag) -> None:
        """Learn that a value is there."""
        self._arriving.append((value, tag))
        if len(self._arriving) > 1:
            # Of a chain of failures each link arrives while the one before it does: no recursion, however long it is.
            return
        while self._arriving:
            self._arrive(*self._arriving[0])
            self._arriving.popleft()

    def _arrive(self, value: int, tag: Tag) -> None:
        self.values[value] = tag
        self.waits.arrive(value)
        for task in self._dependents.pop(value, ()):
            if task.state is not State.WAITING:
                continue
            task.missing -= 1
            if tag is not Tag.VALUE:
                self._dependency_failed(task, value, tag)
            elif not task.missing:
                self._make_ready(task)

    # Seats, and plain calls that become tasks

    def ask_for_seat(self, place: int) -> None:
        """Start a call without a body, as if it had been submitted with a plain call.

        Args:
            place: id of the plain call.
        """
        # Between the ids of two calls there is room for the values of one.
        task = Task(place + next(self._places) % _PLACES + 1, "plain calls", _PLAIN, is_seat=True)
        self.tasks[task.id] = task
        self._make_ready(task)

    def withdraw_seat(self) -> None:
        """Forget a seat that was asked for last and has not been granted."""
        task_id, _ = self.seats_waiting.popitem()
        self.ready.discard(task_id)
        del self.tasks[task_id]

    def leave_seat(self, call_id: int) -> None:
        """Learn that a seat is not needed any more."""
        call = self._end_call(call_id)
        if call is not None:
            del self.tasks[call.task.id]

    def promote(self, seat_id: int, task: Task, call_id: int) -> None:
        """Learn that a plain call, which runs, is an ordinary task from now on; it takes over the lease of its seat."""
        seat = self.running.pop(seat_id)
        del self.tasks[seat.task.id]
        task.state, task.attempts, task.call, task.since = State.RUNNING, 1, call_id, self.timers.now()
        self.tasks[task.id] = task
        self.running[call_id] = Running(call_id, task, seat.grant)
        self.underway.discard(task.id)

    def barrier(self) -> float:
        """Give the id from which on plain calls must wait for ordinary tasks."""
        if not (self.ready or self.waits.blocked):
            return _NO_BARRIER
        return 0 if self.waits.is_resuming else self.ready.barrier(self.ledger)

    @property
    def wants_cpus(self) -> bool:
        """Whether somebody could use the cpus of seats on which nothing runs, or is misled by them."""
        return len(self.ready) > len(self.seats_waiting) or bool(self.waits.blocked)

    def forget(self, value: int) -> None:
        """Learn that nobody refers to a value any more."""
        self.values.pop(value, None)
        self.actors.forget(value)

    def wait(self, wait: Wait, timeout: float | None) -> None:
        """Learn that a running call waits until some values are there."""
        present = sum(1 for value in wait.missing if value in self.values)
        wait.missing = {value for value in wait.missing if value not in self.values}
        wait.needed -= present
        self.waits.add(wait, timeout)

    def schedule(self) -> None:
        """Start whatever there is room for; to be called after each batch of events."""
        if not (self.ready or self.waits.blocked or self._queued):
            return
        self.waits.resume()
        kept = self.waits.kept()
        self._promote(kept)
        while not self._queued:
            reserved = {node: dict(need) for node, need in kept.items()}
            keep_back = bool(kept) or not self._all_wait()
            found = self.ready.pop_fitting(self.ledger, reserved, self.waits.lent, keep_back=keep_back)
            if found is None:
                break
            self._begin(*found)
        if not kept:
            self._hand_ahead()
        deadlock.resolve(self)
        self.waits.resume()

    def _begin(self, task_id: int, found: Grant | tuple[Share, ...]) -> None:
        if isinstance(found, Grant):
            self._start(self.tasks[task_id], found, queued=False)
        else:
            self.reservations.take(task_id, found)

    def _all_wait(self) -> bool:
        # Then nothing may be kept back for a task that needs what waiting calls hold: they may wait for the others.
        return bool(self.waits.blocked) and self.all_blocked()

    def all_blocked(self) -> bool:
        """Say whether of all that runs nothing goes on by itself."""
        return len(self.running) - self.actors.parked() == len(self.waits.blocked)

    def _promote(self, kept: dict[str, dict[str, int]]) -> None:
        while self._queued:
            call = self._queued[0]
            if call.id in self.waits.blocked:
                # It has begun ahead of its turn and waits already; it takes what it needs when it goes on.
                call.queued = False
            elif call.queued and call.id in self.running:
                grant = self.ledger.place(call.task.need, kept)
                if grant is None:
                    return
                call.grant, call.queued = grant, False
            self._queued.popleft()

    def _hand_ahead(self) -> None:
        while self.running and not self._special_count and not self.waits.blocked:
            head = self.ready.head()
            # Bundles that have lost their node are no task.
            task = self.tasks.get(head[0]) if head is not None else None
            if task is None or not _is_plain(task) or not self._estimates.allows(task.function, len(self._queued)):
                return
            self.ready.pop(task.id)
            node = next(iter(self.running.values())).grant.node
            self._queued.append(self._start(task, Grant(node, {}), queued=True))

    def _start(self, task: Task, grant: Grant, *, queued: bool) -> Running:
        task.state = State.RUNNING
        task.since = self.timers.now()
        task.attempts += 1
        self.seats_waiting.pop(task.id, None)
        call = Running(next(self._numbers), task, grant, queued)
        task.call = call.id
        self.running[call.id] = call
        self._special_count += _is_special(task)
        self.actions.append(Start(call.id, task.id, task.attempts, grant, queued, task.is_seat))
        return call

    def _make_ready(self, task: Task) -> None:
        task.state = State.READY
        task.since = self.timers.now()
        if task.is_seat:
            self.seats_waiting[task.id] = task
        elif self.observer is not None:
            self.observer.ready(task)
        if task.actor is not None:
            self.actors.make_ready(task)
        elif task.gang is not None:
            self.reservations.ask(task, task.gang)
        elif task.placement is not None and (ending := self._lost_place(task, task.placement)):
            self.settle(task, ending, Tag.ERROR)
        else:
            self.ready.push(task.id, task.need, task.priority, is_seat=task.is_seat, placement=task.placement)

    def _lost_place(self, task: Task, placement: Placement) -> Ending | None:
        """Say how a task ends that will never find the place that it must have, None if it may find it."""
        if placement.reservation is not None and placement.reservation not in self.reservations.held:
            return Displaced()
        node = placement.node
        is_hard = node is not None and not placement.soft and not task.patient
        return NodeGone(node) if node is not None and is_hard and not self.ledger.is_alive(node) else None

    def nodes_changed(self) -> None:
        """Learn that the ledger has other nodes."""
        self.reservations.nodes_changed()
        for task in tuple(self.tasks.values()):
            if task.placement is not None and task.state is State.READY:
                ending = self._lost_place(task, task.placement)
                if ending is not None:
                    self.settle(task, ending, Tag.ERROR)

    def _dependency_failed(self, task: Task, value: int, tag: Tag) -> None:
        self.settle(task, DependencyFailed(value), Tag.CANCELLED if tag is Tag.CANCELLED else Tag.ERROR)

    def settle(self, task: Task, ending: Ending, tag: Tag) -> None:
        """Give a task its ending."""
        self.ready.discard(task.id)
        if task.gang is not None:
            self.reservations.waiting.pop(task.id, None)
        task.state = State.DONE
        del self.tasks[task.id]
        parent = self.tasks.get(task.parent) if task.parent is not None else None
        if parent is not None:
            parent.children.discard(task.id)
        self.actions.append(Settle(task.id, ending, tag, task.attempts))
        for value in (*range(task.id, task.id + task.values), *task.gives):
            self.arrive(value, tag)
        if task.actor is not None:
            self.actors.settled(task)
        elif task.width:
            self.actors.end(task, ending, tag)

    # How calls go on and end

    def started(self, call_id: int) -> None:
        """Learn that the body of a call has begun: its time runs."""
        call = self.running.get(call_id)
        if call is not None and call.task.timeout is not None and call.limit is None:
            call.limit = self.timers.after(call.task.timeout, lambda: self._expire(call))

    def _expire(self, call: Running) -> None:
        if call.stop is Stop.NO:
            call.stop, call.forced, call.barren = Stop.TIMEOUT, True, True
            self._halt_by_force(call)
            for child in tuple(call.task.children):
                self.cancel(child, force=True, recursive=True, token=None)

    def _halt(self, call: Running, force: bool) -> None:
        call.halts += 1
        self.actions.append(Halt(call.id, force))

    def _halt_by_force(self, call: Running) -> None:
        self._halt(call, True)
        # Where nothing can be killed, the body sees the exception when it comes back from its wait.
        self.waits.interrupt(call)

    def finished(self, call_id: int, tag: Tag, *, retryable: bool = False, duration: float = 0.0) -> None:
        """Learn that a call has ended with an outcome."""
        call = self._end_call(call_id)
        if call is None:
            return
        self._estimates.note(call.task.function, duration)
        self.actors.lose(call, Ended(call_id))
        if tag is Tag.CANCELLED or call.promised:
            self._stopped_for_good(call)
            return
        self._answer(call, False)
        if tag is Tag.ERROR and retryable and call.stop is not Stop.CANCEL:
            self._retry_or_settle(call.task, Ended(call_id))
        else:
            self.settle(call.task, Ended(call_id), tag)

    def refused(self, call_id: int) -> bool:
        """Learn that a worker would not start; the call is handed out again.

        Returns:
            False if that happened too often.
        """
        call = self._end_call(call_id)
        if call is None:
            return True
        call.task.refusals += 1
        if call.task.is_seat and call.task.refusals >= FREE_RESTARTS:
            del self.tasks[call.task.id]
            return False
        if call.task.refusals >= FREE_RESTARTS and call.stop is not Stop.CANCEL:
            call.task.attempts -= 1
            self.settle(call.task, Ended(call_id), Tag.ERROR)
            return False
        self._again(call)
        return True

    def missing(self, call_id: int, values: Sequence[int]) -> None:
        """Learn that a call did not run, because values are missing; they will arrive again.

        Args:
            call_id: the call.
            values: what its task must wait for; if there are none, it is handed out again, a bounded number of times.
        """
        call = self._end_call(call_id)
        if call is None:
            return
        task = call.task
        for value in values:
            self.values.pop(value, None)
        task.refusals += not values
        if call.stop is Stop.CANCEL or call.promised:
            task.attempts -= 1
            self._stopped_for_good(call)
        elif task.refusals >= FREE_RESTARTS:
            self.settle(task, Died(Death("", cause="values that it needs cannot be brought", started=False)), Tag.ERROR)
        elif values:
            task.attempts -= 1
            task.state, task.missing, task.since = State.WAITING, len(values), self.timers.now()
            for value in values:
                self._dependents.setdefault(value, []).append(task)
        else:
            self._again(call)

    def lost(self, call_id: int, death: Death) -> None:
        """Learn that the worker of a call has died."""
        call = self._end_call(call_id)
        if call is None:
            return
        self.actors.lose(call, Died(death))
        if call.promised or call.answers or call.stop is Stop.TIMEOUT:
            call.task.attempts -= not death.started
            self._stopped_for_good(call)
        elif not death.started and call.task.refusals < FREE_RESTARTS:
            call.task.refusals += 1
            self._again(call)
        elif call.task.retry_lost and call.stop is Stop.NO:
            self._retry_or_settle(call.task, Died(death))
        else:
            self.settle(call.task, Died(death), Tag.ERROR)

    def begin_method(self, task: Task, grant: Grant, host: int) -> Running:
        """Note that a call of a method is handed to the instance of its actor."""
        task.state, task.attempts, task.since = State.RUNNING, 1, self.timers.now()
        call = Running(next(self._numbers), task, grant, host=host)
        task.call = call.id
        self.running[call.id] = call
        return call

    def lose_method(self, call: Running, ending: Ending) -> None:
        """Learn that a call of a method has ended with the instance of its actor."""
        self._end_call(call.id)
        if call.promised or call.answers or call.stop is Stop.TIMEOUT:
            self._stopped_for_good(call)
        else:
            self.settle(call.task, ending, Tag.ERROR)

    def stopped(self, call_id: int, verdict: Verdict) -> None:
        """Learn what became of an attempt to stop a call."""
        call = self.running.get(call_id)
        if call is None:
            return
        if verdict is Verdict.REVOKED:
            self._end_call(call_id)
            call.task.attempts -= 1
            self._stopped_for_good(call)
        else:
            call.halts -= 1
            call.promised = call.promised or verdict is Verdict.DELIVERED
            # Too late for an exception may still be in time for being killed.
            if call.promised or not call.halts:
                self._answer(call, call.promised)

    def _end_call(self, call_id: int) -> Running | None:
        call = self.running.pop(call_id, None)
        if call is None:
            return None
        self.waits.abandon(call)
        if call.host is not None:
            self.actors.ended(call)
        else:
            if call.task.width:
                self.actors.detach(call)
            self._special_count -= _is_special(call.task)
        self.ledger.give_back(call.grant)
        if call.limit is not None:
            self.timers.cancel(call.limit)
        if self.reservations.held or self.reservations.waiting:
            self.reservations.end_owner(call_id)
        call.task.call = None
        self.actions.append(Drop(call_id))
        return call

    def _stopped_for_good(self, call: Running) -> None:
        self._answer(call, True)
        ending = TimedOut(call.task.timeout or 0.0)
        gone = self.actors.death_of(call) if call.host is not None else None
        if gone is not None:
            self.settle(call.task, gone, Tag.ERROR)
        elif call.stop is not Stop.TIMEOUT:
            self.settle(call.task, Cancelled(), Tag.CANCELLED)
        elif call.task.retry_timeout:
            self._retry_or_settle(call.task, ending)
        else:
            self.settle(call.task, ending, Tag.ERROR)

    def _answer(self, call: Running, value: bool) -> None:
        self.actions += [Answer(token, value) for token in call.answers]
        call.answers = []

    # Cancelling

    def cancel(self, task_id: int, *, force: bool, recursive: bool, token: object, running: bool = True) -> None:
        """Stop a task; ``Answer`` says whether that worked."""
        task = self.tasks.get(task_id)
        if task is None or (task.call is not None and not running):
            self.actions.append(Answer(token, False))
            return
        children = tuple(task.children) if recursive else ()
        if task.call is None:
            self.settle(task, Cancelled(), Tag.CANCELLED)
            self.actions.append(Answer(token, True))
        elif not force and self.actors.serves(task):
            # Its calls are cancelled, or not, each for itself.
            self.actors.leave(task.id)
            self.actions.append(Answer(token, True))
        else:
            call = self.running[task.call]
            call.barren = call.barren or recursive
            self._cancel_call(call, force, token)
        for child in children:
            self.cancel(child, force=force, recursive=True, token=None)

    def _cancel_call(self, call: Running, force: bool, token: object) -> None:
        first = call.stop is not Stop.CANCEL
        call.stop = Stop.CANCEL
        if call.promised and not (force and not call.forced):
            self.actions.append(Answer(token, True))
            return
        call.answers.append(token)
        if force and not call.forced:
            call.forced = True
            self._halt_by_force(call)
        elif first and not call.forced:
            if self.waits.interrupt(call):
                call.promised = True
                self._answer(call, True)
                return
            self._halt(call, False)
        self.timers.after(PATIENCE, lambda: self._promise(call))

    def _promise(self, call: Running) -> None:
        if call.id in self.running and call.answers:
            call.promised = True
            self._answer(call, True)

    def fail_all(self, error: Stored) -> None:
        """Settle everything with an error, because the backend is lost or broken."""
        self.reservations.abandon()
        for call_id in tuple(self.running):
            call = self._end_call(call_id)
            if call is not None:
                self._answer(call, False)
        for task in tuple(self.tasks.values()):
            if task.is_seat:
                self.ready.discard(task.id)
                del self.tasks[task.id]
            elif task.state is not State.DONE:
                self.settle(task, Failed(error), Tag.ERROR)
        self.seats_waiting.clear()

    # New attempts

    def _again(self, call: Running) -> None:
        call.task.attempts -= 1
        if call.stop is Stop.CANCEL:
            self.settle(call.task, Cancelled(), Tag.CANCELLED)
            self._answer(call, True)
        else:
            self._make_ready(call.task)

    def _retry_or_settle(self, task: Task, ending: Ending) -> None:
        if task.attempts > task.retries or (task.placement and self._lost_place(task, task.placement)):
            self.settle(task, ending, Tag.ERROR)
            return
        if self.observer is not None:
            self.observer.stopped(task, ending)
        task.state = State.RESTING
        task.since = self.timers.now()
        if task.consult:
            self.actions.append(Consult(task.id, ending))
        else:
            self.decided(task.id, None)

    def decided(self, task_id: int, refusal: Ending | None) -> None:
        """Learn that a task shall run again, or with which ending it shall not."""
        task = self.tasks.get(task_id)
        if task is None or task.state is not State.RESTING:
            return
        if refusal is not None:
            self.settle(task, refusal, Tag.ERROR)
            return
        if self.observer is not None:
            self.observer.retried(task)
        pause = min(BACKOFF * 2 ** (task.attempts - 1), BACKOFF_LIMIT)
        self.timers.after(pause * (0.5 + self._random() / 2), lambda: self._wake(task))

    def _wake(self, task: Task) -> None:
        if task.state is State.RESTING:
            self._make_ready(task)


def _is_plain(task: Task) -> bool:
    return task.timeout is None and task.need == _PLAIN and task.placement is None


def _is_special(task: Task) -> bool:
    # An actor without cpus takes nothing from those who run in their turn.
    return not _is_plain(task) and not (task.width and "cpus" not in task.need)


def _anybody(value: int) -> None:
    """Say nothing of who refers to a value."""


_PLAIN = {SLOT: 1, "cpus": UNIT}
_NO_BARRIER = float("inf")
_PLACES = (1 << 20) - 2

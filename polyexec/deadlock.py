"""Finding waits that can never end.

A trial calculation, as in the banker's algorithm (E. W. Dijkstra, EWD 623): assume that every call that can go on
will end and give back what it holds, start what fits then, answer what can be answered, and so on. Blocked calls that
are left over wait for each other, or for what they themselves hold.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import attrs

from polyexec.actor_calls import Actor
from polyexec.ledger import LENT, Ledger
from polyexec.placement import Placement
from polyexec.records import Running, State, Stop, Task, Wait, Wake

if TYPE_CHECKING:
    from polyexec.scheduler import Scheduler


def resolve(scheduler: Scheduler) -> None:
    """End with an error one wait of each group that can never end by itself."""
    blocked = scheduler.waits.blocked
    if not blocked or not _worth_looking(scheduler):
        return
    stuck = list(scheduler.waits.stuck())
    if not stuck:
        return
    trial = _Trial(scheduler)
    trial.run()
    hopeless = [
        (call, waits)
        for call, waits in stuck
        if call.id not in trial.ending_calls and not all(trial.answers(wait.id) for wait in waits)
    ]
    if hopeless:
        _, waits = _victim(scheduler, hopeless)
        for wait in waits:
            if not trial.answers(wait.id):
                scheduler.waits.end(wait, Wake.DEADLOCK)


def _worth_looking(scheduler: Scheduler) -> bool:
    blocked = scheduler.waits.blocked
    owners = {held.owner for held in scheduler.reservations.held.values()}
    return (
        scheduler.all_blocked()
        or any(
            call.id in owners or any(name not in LENT and not call.keeps for name in call.grant.need)
            for call in blocked.values()
        )
        or scheduler.actors.has_jam()
    )


def _victim(scheduler: Scheduler, hopeless: list[tuple[Running, Collection[Wait]]]) -> tuple[Running, Collection[Wait]]:
    """Prefer a call that waits for a task that cannot start; else the one that started last."""

    def waits_for_unstarted(item: tuple[Running, Collection[Wait]]) -> bool:
        missing = {value for wait in item[1] for value in wait.missing}
        return any(task.id in missing and task.state is State.READY for task in scheduler.tasks.values())

    first = next((item for item in hopeless if waits_for_unstarted(item)), None)
    return first or max(hopeless, key=lambda item: item[0].id)


@attrs.define(eq=False)
class _Trial:
    scheduler: Scheduler
    ending_calls: set[int] = attrs.field(factory=set)
    coming: set[int] = attrs.field(factory=set)
    closed: set[int] = attrs.field(factory=set)
    ledger: Ledger = attrs.field(init=False)

    def run(self) -> None:
        self.ledger = self.scheduler.ledger.copy()
        for reservation, held in self.scheduler.reservations.held.items():
            if held.owner is None:
                # The driver may close it, so that others find room; what waits in it is still to find room there.
                self.ledger.count_twice(reservation)
        for call in self.scheduler.running.values():
            if not self.scheduler.actors.is_parked(call) and self._ends_by_itself(call):
                self._end(call)
        waiting = dict(self.scheduler.tasks)
        progress = True
        while progress:
            progress = self._serve_what_can() or self._start_what_can(waiting) or self._answer_what_can()

    def _serve_what_can(self) -> bool:
        """Let instances run what was handed to them, and end if that will end."""
        found = []
        blocked = self.scheduler.waits.blocked
        for actor in self.scheduler.actors.serving():
            left = [call for call in actor.handed.values() if call.id not in self.ending_calls]
            if not self._is_held(actor):
                executing = self.scheduler.actors.executing(actor)
                found += [call for call in left[: actor.width] if call not in executing and call.id not in blocked]
            if not left and actor.call is not None and actor.call.id not in self.ending_calls and self._may_go(actor):
                found.append(actor.call)
        for call in found:
            self._end(call)
        return bool(found)

    def _may_go(self, actor: Actor) -> bool:
        """Say whether the handles of an actor may go: those that calls have go when these end."""
        keepers = self.scheduler.keepers(actor.task.id)
        return actor.leaving or keepers is None or self.ending_calls.issuperset(keepers)

    def _is_held(self, actor: Actor) -> bool:
        """Say whether a call keeps the others of its actor from going on, since one thread runs them all."""
        holders = self.scheduler.actors.holders(actor)
        return any(call.id not in self.ending_calls for call in holders)

    def _goes_on(self, call: Running) -> bool:
        actors = self.scheduler.actors
        return call.host is None or actors.is_executing(call) or not self._is_held(actors.actor_of(call.task))

    def _ends_by_itself(self, call: Running) -> bool:
        if call.id not in self.scheduler.waits.blocked or call.stop is not Stop.NO:
            return True
        return any(self.scheduler.waits[wait_id].limit for wait_id in call.waits)

    def _end(self, call: Running) -> None:
        self.ending_calls.add(call.id)
        self._make(call.task)
        self.ledger.give_back(call.grant)
        for reservation, held in self.scheduler.reservations.held.items():
            if held.owner == call.id:
                self.closed.add(reservation)
                for index, place in enumerate(held.places):
                    if place.node is not None:
                        self.ledger.dissolve(reservation, index)

    def _make(self, task: Task) -> None:
        self.coming.update(range(task.id, task.id + task.values))
        self.coming.update(task.gives)

    def _start_what_can(self, waiting: dict[int, Task]) -> bool:
        before = len(waiting)
        for task in tuple(waiting.values()):
            if task.state is not State.RUNNING and self._has_values(task) and self._can_start(task):
                self._make(task)
                del waiting[task.id]
        return len(waiting) < before

    def _has_values(self, task: Task) -> bool:
        return all(self._will_be_there(value) for value in task.dependencies)

    def _will_be_there(self, value: int) -> bool:
        return value in self.scheduler.values or value in self.coming or value in self.scheduler.underway

    def _can_start(self, task: Task) -> bool:
        return self._fits(task) if task.actor is None else self._can_be_served(task)

    def _can_be_served(self, method: Task) -> bool:
        actor = self.scheduler.actors.actor_of(method)
        before = self.scheduler.actors.line_of(method)
        return self._takes_calls(actor) and all(
            task.id in self.coming for task in before if task.state is not State.DONE
        )

    def _takes_calls(self, actor: Actor) -> bool:
        if self._is_held(actor):
            return False
        if actor.call is not None:
            return sum(1 for call in actor.handed.values() if call.id not in self.ending_calls) < actor.width
        return actor.task.id in self.coming

    def _fits(self, task: Task) -> bool:
        # A call that is blocked for good still has lent its cpus and slot, so that the ledger is right.
        if task.patient or (task.placement is not None and self._is_open(task.placement)):
            return True
        if task.gang is not None:
            return task.gang.shape.has_room(self.ledger, {})
        # What lives on gets nothing of that.
        kept = self.scheduler.waits.lent(self.ending_calls) if task.width else {}
        return self.ledger.has_room(task.need, task.placement, kept)

    def _is_open(self, placement: Placement) -> bool:
        """Say whether a reservation would be closed, which ends what waits for it, or waits itself for new nodes."""
        held = self.scheduler.reservations.held.get(placement.reservation or 0)
        if held is None:
            return False
        return placement.reservation in self.closed or any(place.node is None for place in held.places)

    def _answer_what_can(self) -> bool:
        found = [
            call
            for call in self.scheduler.waits.blocked.values()
            if call.id not in self.ending_calls
            and all(self.answers(wait_id) for wait_id in call.waits)
            and self._goes_on(call)
        ]
        for call in found:
            self._end(call)
        return bool(found)

    def answers(self, wait_id: int) -> bool:
        """Say whether enough of what a wait misses would come."""
        wait = self.scheduler.waits[wait_id]
        underway = self.scheduler.underway
        return sum(1 for value in wait.missing if value in self.coming or value in underway) >= wait.needed

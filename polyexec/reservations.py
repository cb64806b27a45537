"""Reservations: who waits for bundles, who has them, and what becomes of them. A part of the scheduler.

Under the same rules: events in, actions out, one thread. A reservation that waits is a task without a body, so that
waiting for it, its timeout and its cancellation are those of any task; it stands in the ready order and takes all its
bundles or none. Bundles whose node is lost wait in the ready order for new places, at the place of their reservation.

``places`` is replaced as a whole, so that any thread may read it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING

import attrs

from polyexec.gangs import Shape
from polyexec.ledger import Need
from polyexec.ready import Share
from polyexec.records import Cancelled, Displaced, Granted, State, Task
from polyexec.stored import Tag

if TYPE_CHECKING:
    from polyexec.scheduler import Scheduler


@attrs.frozen(eq=False)
class Gang:
    """Bundles that wait to be taken together.

    Attributes:
        shape: what they need.
        priority: a higher one is taken first.
        owner: the call that asks, None if the driver does.
    """

    shape: Shape
    priority: float = 0
    owner: int | None = None


@attrs.frozen
class Place:
    """Where a bundle is.

    Attributes:
        need: what it has.
        node: id of its node; None while it waits for a new one.
    """

    need: Need
    node: str | None = None


@attrs.define(eq=False)
class Held:
    """A reservation that has, or had, its bundles.

    Attributes:
        gang: what was asked for.
        places: of its bundles.
    """

    gang: Gang
    places: list[Place]

    @property
    def owner(self) -> int | None:
        """The call that has made it, None if the driver has."""
        return self.gang.owner


class Reservations:
    """Keeps the reservations of an executor.

    Args:
        scheduler: what it is a part of.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.held: dict[int, Held] = {}
        self.waiting: dict[int, Task] = {}
        self.places: Mapping[int, tuple[Place, ...]] = {}
        self._displaced: dict[int, Gang] = {}
        self._numbers = itertools.count(1)

    def ask(self, task: Task, gang: Gang) -> None:
        """Let a task that stands for a reservation wait for the bundles."""
        self.waiting[task.id] = task
        self._scheduler.ready.push_want(task.id, gang.shape, gang.priority)

    def take(self, reservation: int, shares: tuple[Share, ...]) -> None:
        """Learn that the bundles of a reservation were taken: all, or those that were displaced."""
        task = self.waiting.get(reservation)
        if task is not None and task.gang is not None:
            needs = task.gang.shape.needs
            self.held[reservation] = Held(task.gang, [Place(needs[index]) for index in range(len(needs))])
        held = self.held[reservation]
        for index, share in shares:
            self._scheduler.ledger.open_bundle(
                f"{reservation}/{index}#{next(self._numbers)}", reservation, index, share
            )
            held.places[index] = Place(share.need, share.node)
        self._displaced.pop(reservation, None)
        self._publish()
        if task is not None:
            self._scheduler.settle(task, Granted(), Tag.VALUE)
            self._scheduler.waits.resume()

    def close(self, reservation: int) -> None:
        """Give back what a reservation holds; what runs in it keeps its part until it ends. Harmless when repeated."""
        task = self.waiting.get(reservation)
        if task is not None:
            self._scheduler.settle(task, Cancelled(), Tag.CANCELLED)
        held = self.held.pop(reservation, None)
        if held is None:
            return
        self._give_back(reservation, held)
        self._displaced.pop(reservation, None)
        self._publish()
        for waiting in tuple(self._scheduler.tasks.values()):
            if _is_in(waiting, reservation) and waiting.call is None and waiting.state is not State.DONE:
                self._scheduler.settle(waiting, Displaced(), Tag.ERROR)

    def _give_back(self, reservation: int, held: Held) -> None:
        self._scheduler.ready.discard(reservation)
        for index, place in enumerate(held.places):
            if place.node is not None:
                self._dissolve(reservation, index)

    def end_owner(self, call_id: int) -> None:
        """Close what a call that has ended has reserved, or still asks for."""
        gangs = {task.id: task.gang for task in self.waiting.values()} | {
            key: held.gang for key, held in self.held.items()
        }
        for reservation, gang in gangs.items():
            if gang is not None and gang.owner == call_id:
                self.close(reservation)

    def abandon(self) -> None:
        """Give everything back, because all tasks are about to be settled."""
        for reservation, held in self.held.items():
            self._give_back(reservation, held)
        for gangs in (self.held, self.waiting, self._displaced):
            gangs.clear()
        self._publish()

    def close_unused(self) -> None:
        """Close the reservations in which nothing runs or waits."""
        used = {task.placement.reservation for task in self._scheduler.tasks.values() if task.placement is not None}
        for reservation in self.held.keys() - used:
            self.close(reservation)

    def stop_waiting(self) -> None:
        """Cancel what the driver waits for: it is about to close the executor."""
        for task in tuple(self.waiting.values()):
            if task.parent is None:
                self._scheduler.settle(task, Cancelled("the executor is being closed"), Tag.CANCELLED)

    def nodes_changed(self) -> None:
        """Let bundles whose node is lost wait for a new one."""
        for reservation, held in self.held.items():
            lost = [index for index, place in enumerate(held.places) if self._is_lost(place)]
            for index in lost:
                self._dissolve(reservation, index)
                held.places[index] = Place(held.places[index].need)
            if lost:
                self._displace(reservation, held)
        self._publish()

    def _is_lost(self, place: Place) -> bool:
        return place.node is not None and not self._scheduler.ledger.is_alive(place.node)

    def _displace(self, reservation: int, held: Held) -> None:
        siblings = tuple(place.node for place in held.places if place.node is not None)
        needs = {index: place.need for index, place in enumerate(held.places) if place.node is None}
        shape = attrs.evolve(held.gang.shape, needs=needs, siblings=siblings)
        self._scheduler.ready.discard(reservation)
        gang = self._displaced[reservation] = Gang(shape, held.gang.priority)
        self._scheduler.ready.push_want(reservation, gang.shape, gang.priority)

    def _dissolve(self, reservation: int, index: int) -> None:
        bundle, node = self._scheduler.ledger.dissolve(reservation, index)
        for call in self._scheduler.running.values():
            if call.grant.node == bundle:
                call.grant = attrs.evolve(call.grant, node=node)
        self._scheduler.ledger.forget(bundle)

    def _publish(self) -> None:
        self.places = {reservation: tuple(held.places) for reservation, held in self.held.items()}


def _is_in(task: Task, reservation: int) -> bool:
    return task.placement is not None and task.placement.reservation == reservation

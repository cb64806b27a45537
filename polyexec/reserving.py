"""Reservations, as the driver and tasks ask for them. A part of the runtime: all of it runs in the loop thread."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from polyexec import outcome
from polyexec.errors import ExecutorClosed
from polyexec.feasibility import check_gang, shape_of
from polyexec.options import Resources
from polyexec.placement import Placement
from polyexec.records import Running, State, Task
from polyexec.reservations import Gang
from polyexec.session import Entry
from polyexec.spi import Value
from polyexec.stored import Stored
from polyexec.tasks import TaskData
from polyexec.wire import GangSpec, TaskSpec

if TYPE_CHECKING:
    from polyexec.runtime import Runtime

NAME = "reserve"


class Reserving:
    """Takes reservations.

    Args:
        runtime: what it is a part of.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        runtime.requests.serve("reserve", self._on_reserve)
        runtime.requests.serve("unreserve", self._on_unreserve)
        runtime.requests.serve("reserved", self._on_reserved)

    def take(self, entry: Entry, spec: GangSpec, owner: Running | None) -> None:
        """Let a reservation wait for its bundles; if there is room it has them when this returns.

        Args:
            entry: is settled when it has them.
            spec: what is asked for.
            owner: the call that asks, None if the driver does.
        """
        runtime = self._runtime
        runtime.objects.settle_notes()
        failure = runtime.failure
        if failure is None and owner is None and runtime.closing:
            failure = outcome.encode_error(ExecutorClosed("the executor is closed; connect again to reserve more"))
        if failure is not None:
            runtime.settle_all([entry], failure)
            return
        data = TaskData(_as_task(spec), Stored(b""), None, [entry])
        gang = Gang(shape_of(spec), spec.priority, None if owner is None else owner.id)
        parent = None if owner is None else owner.task.id
        runtime.take_task(
            Task(entry.id, NAME, {}, parent=parent, priority=spec.priority, patient=spec.patient, gang=gang), data
        )
        if runtime.plain is not None:
            runtime.plain.free_idle()
        runtime.schedule()

    def close(self, reservation: int) -> None:
        """Give back what a reservation holds, or end its waiting."""
        self._runtime.scheduler.reservations.close(reservation)
        self._runtime.schedule()

    def nodes_of(self, reservation: int) -> tuple[str | None, ...] | None:
        """Give the node of each bundle, None for those that wait for one; None if the reservation is closed."""
        places = self._runtime.scheduler.reservations.places.get(reservation)
        return None if places is None else tuple(place.node for place in places)

    def place_again(self, placement: Placement | None) -> Placement | None:
        """Give where a task runs that makes a lost value again: anywhere if its reservation has been closed since."""
        if placement is None or placement.reservation in (None, *self._runtime.scheduler.reservations.held):
            return placement
        return attrs.evolve(placement, reservation=None, index=None)

    def close_unused(self) -> None:
        """While the executor is closing: if nothing goes on by itself, close the reservations that nobody uses.

        Who has made them cannot use them any more, and what waits may wait for what they hold.
        """
        runtime = self._runtime
        reservations, scheduler = runtime.scheduler.reservations, runtime.scheduler
        if not reservations.held or (runtime.plain is not None and runtime.plain.has_begun):
            return
        goes_on = any(
            not (call.task.is_seat or call.id in scheduler.waits.blocked or scheduler.actors.is_parked(call))
            for call in scheduler.running.values()
        )
        rests = any(task.state is State.RESTING for task in scheduler.tasks.values())
        if not goes_on and not rests:
            reservations.close_unused()
            runtime.schedule()

    def _on_reserve(self, request_id: object, call_id: int, main: bool, value: Value, spec: GangSpec) -> None:
        check_gang(spec, self._runtime.capacity)
        entry = self._runtime.requests.new_entry(call_id, NAME)
        self.take(entry, spec, self._runtime.scheduler.running[call_id])
        self._runtime.requests.reply(request_id, "ok", entry.id)

    def _on_unreserve(self, request_id: object, call_id: int, main: bool, value: Value, reservation: int) -> None:
        self.close(reservation)
        self._runtime.requests.reply(request_id, "ok", None)

    def _on_reserved(self, request_id: object, call_id: int, main: bool, value: Value, reservation: int) -> None:
        self._runtime.requests.reply(request_id, "ok", self.nodes_of(reservation))


def _as_task(spec: GangSpec) -> TaskSpec:
    return TaskSpec(NAME, "", Resources(), (), (), 1, spec.priority, 0, None, False, None, None, {}, spec.patient)

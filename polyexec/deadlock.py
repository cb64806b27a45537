"""Finding waits that can never end.

A trial calculation, as in the banker's algorithm (E. W. Dijkstra, EWD 623): assume that every call that can go on
will end and give back what it holds, start what fits then, answer what can be answered, and so on. Blocked calls that
are left over wait for each other, or for what they themselves hold.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import attrs

from polyexec.ledger import LENT, Need
from polyexec.records import Running, State, Task, Wait, Wake

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
    hopeless = [(call, waits) for call, waits in stuck if call.id not in trial.ending_calls]
    if hopeless:
        _, waits = _victim(scheduler, hopeless)
        for wait in tuple(waits):
            scheduler.waits.end(wait, Wake.DEADLOCK)


def _worth_looking(scheduler: Scheduler) -> bool:
    blocked = scheduler.waits.blocked
    return len(blocked) == len(scheduler.running) or any(
        name not in LENT for call in blocked.values() for name in call.grant.need
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
    free: list[dict[str, int]] = attrs.field(factory=list)

    def run(self) -> None:
        self.free = self.scheduler.ledger.spare()
        for call in self.scheduler.running.values():
            if call.id not in self.scheduler.waits.blocked or any(self.scheduler.waits[w].limit for w in call.waits):
                self._end(call)
        waiting = dict(self.scheduler.tasks)
        progress = True
        while progress:
            progress = self._start_what_can(waiting) or self._answer_what_can()

    def _end(self, call: Running) -> None:
        self.ending_calls.add(call.id)
        self._make(call.task)
        node = self.scheduler.ledger.index_of(call.grant.node)
        if node >= 0:
            for name, amount in call.grant.need.items():
                self.free[node][name] += amount

    def _make(self, task: Task) -> None:
        self.coming.update(range(task.id, task.id + task.values))

    def _start_what_can(self, waiting: dict[int, Task]) -> bool:
        found = [
            task
            for task in waiting.values()
            if task.state is not State.RUNNING and self._has_values(task) and (task.patient or self._fits(task.need))
        ]
        for task in found:
            self._make(task)
            del waiting[task.id]
        return bool(found)

    def _has_values(self, task: Task) -> bool:
        return all(self._will_be_there(value) for value in task.dependencies)

    def _will_be_there(self, value: int) -> bool:
        return value in self.scheduler.values or value in self.coming

    def _fits(self, need: Need) -> bool:
        # A call that is blocked for good still has lent its cpus and slot, so that the spare amounts are right.
        return any(all(node.get(name, 0) >= amount for name, amount in need.items()) for node in self.free)

    def _answer_what_can(self) -> bool:
        found = [
            call
            for call in self.scheduler.waits.blocked.values()
            if call.id not in self.ending_calls and all(self._answered(wait_id) for wait_id in call.waits)
        ]
        for call in found:
            self._end(call)
        return bool(found)

    def _answered(self, wait_id: int) -> bool:
        wait = self.scheduler.waits[wait_id]
        return sum(1 for value in wait.missing if value in self.coming) >= wait.needed

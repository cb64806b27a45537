"""What must hold of a scheduler with actors, calculated anew and naively."""

from __future__ import annotations

import attrs

from polyexec.actor_calls import Actor
from polyexec.ledger import LENT
from polyexec.records import Running, State, Stop, Task, Wait
from polyexec.scheduler import Scheduler


def check_ledger(scheduler: Scheduler) -> None:
    """R1, R4: what is held and what is left make up the total; an actor and its calls hold together what it needs."""
    for state in scheduler.ledger._nodes.values():
        for name, amount in state.total.items():
            held = sum(call.grant.need.get(name, 0) for call in scheduler.running.values())
            assert held + state.available[name] == amount, f"{name}: {held} held, {state.available[name]} left"
            assert state.available[name] >= 0 or name in LENT, f"{name} is overdrawn"
    for actor in scheduler.actors.serving():
        assert actor.call is not None
        calls = [actor.call, *actor.handed.values()]
        waiting = any(call.id in scheduler.waits.blocked for call in actor.handed.values())
        for name, amount in actor.task.need.items():
            held = sum(call.grant.need.get(name, 0) for call in calls)
            assert held == amount or (waiting and actor.lends and name in LENT and held == 0)


def _executing(scheduler: Scheduler, call: Running) -> bool:
    if call.task.width:
        return scheduler.actors.actors[call.task.id].call is None
    return call.host is None or call in scheduler.actors.actor_of(call.task).begun()


def _is_stuck(scheduler: Scheduler, call: Running) -> bool:
    waits = [scheduler.waits[wait_id] for wait_id in call.waits]
    return call.stop is Stop.NO and bool(waits) and all(wait.limit is None for wait in waits)


def is_idle(scheduler: Scheduler) -> bool:
    """Say whether nothing but an answer to a wait could ever make a running call go on."""
    busy = [call for call in scheduler.running.values() if _executing(scheduler, call)]
    resting = any(task.state is State.RESTING for task in scheduler.tasks.values())
    # An actor that holds what is needed may end if somebody drops its handle.
    idle = [actor for actor in scheduler.actors.serving() if not actor.open and actor.task.need]
    wanted = any(task.state is State.READY and task.width for task in scheduler.tasks.values())
    outside = bool(idle and wanted) or any(
        value not in scheduler.tasks for task in scheduler.tasks.values() for value in _missing(scheduler, task)
    )
    return bool(busy) and not resting and not outside and all(_is_stuck(scheduler, call) for call in busy)


def _missing(scheduler: Scheduler, task: Task) -> list[int]:
    return [value for value in task.dependencies if value not in scheduler.values]


@attrs.define(eq=False)
class _Best:
    """What would happen if every call that can end ended."""

    scheduler: Scheduler
    done: set[int] = attrs.field(factory=set)

    def run(self) -> None:
        before = -1
        while before != len(self.done):
            before = len(self.done)
            for task in self.scheduler.tasks.values():
                if task.id not in self.done and self._can_end(task):
                    self.done.add(task.id)

    def there(self, value: int) -> bool:
        # What comes from outside comes.
        return value in self.scheduler.values or value in self.done or value not in self.scheduler.tasks

    def answers(self, wait: Wait) -> bool:
        return sum(self.there(value) for value in wait.missing) >= wait.needed

    def _can_end(self, task: Task) -> bool:
        if task.width:
            return self._can_leave(self.scheduler.actors.actors[task.id])
        actor = self.scheduler.actors.actor_of(task)
        if task.call is not None and self.scheduler.running[task.call] in actor.begun():
            return self._goes_on(self.scheduler.running[task.call])
        return self._gets_its_turn(task, actor)

    def _goes_on(self, call: Running) -> bool:
        return not _is_stuck(self.scheduler, call) or all(
            self.answers(self.scheduler.waits[wait_id]) for wait_id in call.waits
        )

    def _gets_its_turn(self, task: Task, actor: Actor) -> bool:
        if actor.call is None and not self._can_be_made(actor):
            return False
        stuck = sum(call.task.id not in self.done for call in actor.begun())
        before = [other for other in actor.lines.get(task.caller, ()) if other.place < task.place]
        ahead = all(other.id in self.done or other.state is State.DONE for other in before)
        return all(self.there(value) for value in task.dependencies) and ahead and stuck < actor.width

    def _can_leave(self, actor: Actor) -> bool:
        return self._can_be_made(actor) and all(call.task.id in self.done for call in actor.handed.values())

    def _can_be_made(self, actor: Actor) -> bool:
        if actor.task.call is not None:
            return True
        holders = [other for other in self.scheduler.actors.actors.values() if other.task.call is not None]
        left = {name: state.total[name] for state in self.scheduler.ledger._nodes.values() for name in state.total}
        for other in holders:
            if other.task.id not in self.done:
                for name in left:
                    left[name] -= other.task.need.get(name, 0)
        return all(left[name] >= amount for name, amount in actor.task.need.items())


def can_be_answered(scheduler: Scheduler, wait: Wait) -> bool:
    """N2: say whether what a wait needs can come, if all who can do their best."""
    best = _Best(scheduler)
    best.run()
    return best.answers(wait)

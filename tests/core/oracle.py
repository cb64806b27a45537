"""What must hold of a scheduler at any time, calculated anew and naively from its public records."""

from __future__ import annotations

import attrs

from polyexec.ledger import LENT, UNIT, Grant, Need
from polyexec.records import Running, State, Stop, Task, Wait
from polyexec.scheduler import Scheduler


def check_grants(scheduler: Scheduler) -> None:
    """R1, R6: a call holds exactly its need; while it is blocked, all but cpus and slot; while queued, nothing."""
    for call in scheduler.running.values():
        need = dict(call.task.need)
        if call.queued:
            need = {}
        elif call.id in scheduler.waits.blocked:
            need = {name: amount for name, amount in need.items() if name not in LENT}
        assert dict(call.grant.need) == need, f"call {call.id} holds {call.grant.need}, expected {need}"


def check_ledger(scheduler: Scheduler, *, overdrawn: bool) -> bool:
    """R1, R4: what is held and what is left make up the total, and nothing is given twice.

    Args:
        scheduler: to look at.
        overdrawn: interrupted calls went on without waiting for room, so that cpus may be short for now.

    Returns:
        Whether something is still overdrawn.
    """
    short = False
    for state in scheduler.ledger._nodes.values():
        node, left = state.node, state.available
        for name, amount in state.total.items():
            held = sum(grant.need.get(name, 0) for grant in _grants(scheduler, node.id))
            assert held + left[name] == amount, f"{name} on {node.id}: {held} held, {left[name]} left of {amount}"
            if left[name] < 0:
                assert overdrawn, f"{name} on {node.id} is overdrawn by {-left[name]}"
                assert name in LENT, f"{name} on {node.id} is overdrawn, though it is never lent"
                short = True
    return short


def check_gpus(scheduler: Scheduler) -> None:
    """R1, R5: no accelerator is given out more than once."""
    for name, state in scheduler.ledger._nodes.items():
        used: dict[int, int] = {}
        for grant in _grants(scheduler, name):
            assert sum(grant.gpus.values()) == grant.need.get("gpus", 0)
            for index, amount in grant.gpus.items():
                used[index] = used.get(index, 0) + amount
        assert all(amount <= UNIT for amount in used.values()), f"gpus of {name}: {used}"
        assert all(index < int(state.node.total.gpus) for index in used)


def _grants(scheduler: Scheduler, node: str) -> list[Grant]:
    return [call.grant for call in scheduler.running.values() if call.grant.node == node]


def is_idle(scheduler: Scheduler) -> bool:
    """Say whether nothing but an answer to a wait could ever make a running call go on."""
    calls = scheduler.running.values()
    resting = any(task.state is State.RESTING for task in scheduler.tasks.values())
    return bool(calls) and not resting and all(_is_stuck(scheduler, call) for call in calls)


def _is_stuck(scheduler: Scheduler, call: Running) -> bool:
    waits = [scheduler.waits[wait_id] for wait_id in call.waits]
    return call.stop is Stop.NO and bool(waits) and all(wait.limit is None for wait in waits)


@attrs.define(eq=False)
class _Best:
    """What would happen if every call that can end ended, and every task that fits ran."""

    scheduler: Scheduler
    ended: set[int] = attrs.field(factory=set)
    coming: set[int] = attrs.field(factory=set)

    def answers(self, wait: Wait) -> bool:
        there = self.coming | self.scheduler.values.keys()
        return len(wait.missing & there) >= wait.needed

    def run(self) -> None:
        before = -1
        while before != len(self.ended) + len(self.coming):
            before = len(self.ended) + len(self.coming)
            for call in self.scheduler.running.values():
                if call.id not in self.ended and self._can_end(call):
                    self.ended.add(call.id)
                    self._make(call.task)
            for task in self.scheduler.tasks.values():
                if task.state is not State.RUNNING and self._can_start(task):
                    self._make(task)

    def _make(self, task: Task) -> None:
        self.coming |= set(range(task.id, task.id + task.values))

    def _can_end(self, call: Running) -> bool:
        if not _is_stuck(self.scheduler, call):
            return True
        return all(self.answers(self.scheduler.waits[wait_id]) for wait_id in call.waits)

    def _can_start(self, task: Task) -> bool:
        there = self.coming | self.scheduler.values.keys()
        if not there.issuperset(task.dependencies):
            return False
        states = [state for state in self.scheduler.ledger._nodes.values() if state.node.alive]
        return any(self._fits(state.node.id, state.total, task.need) for state in states)

    def _fits(self, node: str, total: Need, need: Need) -> bool:
        held = [
            call.grant
            for call in self.scheduler.running.values()
            if call.grant.node == node and call.id not in self.ended
        ]
        for name, amount in need.items():
            if total.get(name, 0) - sum(grant.need.get(name, 0) for grant in held) < amount:
                return False
        free = [UNIT] * (total.get("gpus", 0) // UNIT)
        for grant in held:
            for index, amount in grant.gpus.items():
                free[index] -= amount
        wanted = need.get("gpus", 0)
        return free.count(UNIT) >= wanted // UNIT if wanted >= UNIT else max(free, default=0) >= wanted


def can_be_answered(scheduler: Scheduler, wait: Wait) -> bool:
    """N2: say whether what a wait needs can come, if all who can do their best."""
    best = _Best(scheduler)
    best.run()
    return best.answers(wait)

"""What must hold of a scheduler at any time, calculated anew and naively from its public records."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import attrs

from polyexec.ledger import LENT, SLOT, UNIT, Grant, Need
from polyexec.node_state import BundleState, NodeState
from polyexec.placement import Placement
from polyexec.records import Running, State, Stop, Task, Wait
from polyexec.reservations import Held
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
    for state in scheduler.ledger._states.values():
        left = state.available
        for name, amount in state.total.items():
            held = sum(grant.need.get(name, 0) for grant in _taken(scheduler, state, name))
            assert held + left[name] == amount, f"{name} on {state.id}: {held} held, {left[name]} left of {amount}"
            if name == "cpus" and not isinstance(state, BundleState):
                # Who goes on may use cpus that were reserved meanwhile, as long as they are idle.
                left = {**left, name: left[name] + sum(bundle.left(name) for bundle in state.bundles)}
            if left[name] < 0:
                assert overdrawn, f"{name} on {state.id} is overdrawn by {-left[name]}"
                assert name in LENT, f"{name} on {state.id} is overdrawn, though it is never lent"
                short = True
    return short


def check_bundles(scheduler: Scheduler) -> None:
    """R11: a reservation has all its bundles on living nodes, as its strategy says, or those that it lost wait."""
    states = scheduler.ledger._states
    assert {name for name in states if isinstance(states[name], BundleState)} == {
        bundle.id for bundles in scheduler.ledger._bundles.values() for bundle in bundles.values()
    }
    for reservation, held in scheduler.reservations.held.items():
        placed = {index: place.node for index, place in enumerate(held.places) if place.node is not None}
        bundles = scheduler.ledger._bundles.get(reservation, {})
        assert {index: bundle.real.id for index, bundle in bundles.items()} == placed
        assert all(bundle.total == held.places[index].need for index, bundle in bundles.items())
        strategy, nodes = held.gang.shape.strategy, list(placed.values())
        assert strategy != "strict_spread" or len(set(nodes)) == len(nodes)
        assert strategy != "strict_pack" or len(set(nodes)) <= 1


def _taken(scheduler: Scheduler, state: NodeState, name: str) -> list[Grant]:
    """Give what was taken from a node, or a bundle; a bundle's calls take their slots from the node."""
    bundles = [bundle for bundles in scheduler.ledger._bundles.values() for bundle in bundles.values()]
    mine = [bundle for bundle in bundles if bundle.real is state]
    taken = _grants(scheduler, state.id) + [bundle.share for bundle in mine]
    if name == SLOT:
        taken += [grant for bundle in mine for grant in _grants(scheduler, bundle.id)]
    return taken


def check_gpus(scheduler: Scheduler) -> None:
    """R1, R5: no accelerator is given out more than once."""
    for state in scheduler.ledger._states.values():
        used: dict[int, int] = {}
        for grant in _taken(scheduler, state, "gpus"):
            assert sum(grant.gpus.values()) == grant.need.get("gpus", 0)
            for index, amount in grant.gpus.items():
                used[index] = used.get(index, 0) + amount
        share = state.share.gpus if isinstance(state, BundleState) else None
        limits = dict.fromkeys(range(int(state.node.total.gpus)), UNIT) if share is None else share
        assert all(amount <= limits.get(index, 0) for index, amount in used.items()), f"gpus of {state.id}: {used}"


def _grants(scheduler: Scheduler, node: str) -> list[Grant]:
    return [call.grant for call in scheduler.running.values() if call.grant.node == node]


def is_idle(scheduler: Scheduler) -> bool:
    """Say whether nothing but an answer to a wait could ever make a running call go on."""
    calls = scheduler.running.values()
    resting = any(task.state is State.RESTING for task in scheduler.tasks.values())
    if any(held.owner is None or None in [place.node for place in held.places] for held in _held(scheduler)):
        # The driver may close what it holds, and a lost node may be replaced.
        return False
    return bool(calls) and not resting and all(_is_stuck(scheduler, call) for call in calls)


def _held(scheduler: Scheduler) -> list[Held]:
    return list(scheduler.reservations.held.values())


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
        if task.gang is not None:
            return self._gang_fits(task)
        if task.placement is not None and task.placement.reservation is not None:
            return self._fits_in_bundle(task, task.placement)
        nodes = [state for state in self._nodes() if task.placement is None or task.placement.allows(state.node)]
        wish = task.placement.node if task.placement is not None and task.placement.soft else None
        wished = [state for state in nodes if state.id == wish and state.could_fit(task.need)]
        return any(_has(*self._left(state), task.need) for state in wished or nodes)

    def _nodes(self) -> list[NodeState]:
        return [state for state in self.scheduler.ledger._nodes.values() if state.node.alive]

    def _fits_in_bundle(self, task: Task, placement: Placement) -> bool:
        held = self.scheduler.reservations.held[placement.reservation or 0]
        if held.owner in self.ended or any(place.node is None for place in held.places):
            return True
        bundles = self.scheduler.ledger._bundles[placement.reservation or 0]
        for index, bundle in bundles.items():
            if placement.index in (None, index) and placement.allows(bundle.node):
                left, free = self._left(bundle)
                left[SLOT] = self._left(bundle.real)[0][SLOT]
                if _has(left, free, task.need):
                    return True
        return False

    def _gang_fits(self, task: Task) -> bool:
        """Try all ways to assign the bundles."""
        assert task.gang is not None
        needs, strategy = task.gang.shape.needs, task.gang.shape.strategy
        ordered = sorted(needs.values(), key=lambda need: -need.get("gpus", 0))
        for chosen in itertools.product(self._nodes(), repeat=len(needs)):
            count = len({state.id for state in chosen})
            if (strategy == "strict_spread" and count < len(chosen)) or (strategy == "strict_pack" and count > 1):
                continue
            if self._all_fit(task, ordered, chosen):
                return True
        return False

    def _all_fit(self, task: Task, needs: Sequence[Need], nodes: Sequence[NodeState]) -> bool:
        lefts = {state.id: self._left(state) for state in nodes}
        return all(_take(*lefts[state.id], need) for need, state in zip(needs, nodes, strict=True))

    def _left(self, state: NodeState) -> tuple[dict[str, int], list[int]]:
        """Give what would be left of a node, or a bundle, and of each accelerator there."""
        held = [call.grant for call in self._going_on() if call.grant.node == state.id]
        for reservation, bundles in self.scheduler.ledger._bundles.items():
            owner = self.scheduler.reservations.held[reservation].owner
            for bundle in bundles.values():
                if bundle.real is not state:
                    continue
                inside = [call.grant for call in self._going_on() if call.grant.node == bundle.id]
                slots = [Grant("", {SLOT: grant.need.get(SLOT, 0)}) for grant in inside]
                # Who has made it may close it; what runs there keeps its part.
                held += inside if owner is None or owner in self.ended else [bundle.share, *slots]
        left = dict(state.total)
        free = [UNIT] * int(state.node.total.gpus)
        if isinstance(state, BundleState):
            free = [state.share.gpus.get(index, 0) for index in range(len(free))]
        for grant in held:
            for name, amount in grant.need.items():
                left[name] = left.get(name, 0) - amount
            for index, amount in grant.gpus.items():
                free[index] -= amount
        return left, free

    def _going_on(self) -> list[Running]:
        return [call for call in self.scheduler.running.values() if call.id not in self.ended]


def _has(left: dict[str, int], free: list[int], need: Need) -> bool:
    return _take(dict(left), list(free), need)


def _take(left: dict[str, int], free: list[int], need: Need) -> bool:
    """Take a need if it is there, whole accelerators from the first, parts from the fullest."""
    if any(left.get(name, 0) < amount for name, amount in need.items()):
        return False
    wanted = need.get("gpus", 0)
    whole = [index for index, amount in enumerate(free) if amount == UNIT][: wanted // UNIT]
    part = sorted((amount, index) for index, amount in enumerate(free) if amount >= wanted)
    if len(whole) < wanted // UNIT or (0 < wanted < UNIT and not part):
        return False
    for index in whole:
        free[index] -= UNIT
    if 0 < wanted < UNIT:
        free[part[0][1]] -= wanted
    for name, amount in need.items():
        left[name] = left.get(name, 0) - amount
    return True


def can_be_answered(scheduler: Scheduler, wait: Wait) -> bool:
    """N2: say whether what a wait needs can come, if all who can do their best."""
    best = _Best(scheduler)
    best.run()
    return best.answers(wait)

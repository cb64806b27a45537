"""Finding nodes for the bundles of a reservation, all at once.

The strategies mean what those of Ray's placement groups do
(https://docs.ray.io/en/latest/ray-core/scheduling/placement-group.html). Large bundles are placed first, each on the
first node where it fits, in an order that the strategy gives; where that leads nowhere other nodes are tried, for a
bounded number of steps. Equal states give equal answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import attrs

from polyexec.ledger import Ledger
from polyexec.node_state import LENT, Grant, Kept, Need, NodeState, add_needs
from polyexec.placement import Placement

STRATEGIES = ("pack", "spread", "strict_pack", "strict_spread")

_STEPS = 2000

_Assignment: TypeAlias = list[tuple[int, str]]
"""Bundles and the ids of their nodes, in the order in which they must be taken."""


@attrs.frozen(eq=False)
class Shape:
    """What the bundles of a reservation need, together.

    Attributes:
        needs: of each bundle that has no place, by its index.
        strategy: one of ``STRATEGIES``.
        siblings: ids of the nodes on which other bundles of the same reservation are.
        placement: what all nodes must be like, None for any.
    """

    needs: Mapping[int, Need]
    strategy: str
    siblings: tuple[str, ...] = ()
    placement: Placement | None = None

    def take(self, ledger: Ledger, kept: Kept) -> tuple[tuple[int, Grant], ...] | None:
        """Take all that is needed, or nothing.

        Args:
            ledger: where.
            kept: what must be left alone, by node.

        Returns:
            What each bundle has got, by its index; None if there is no room now.
        """
        found = self._find([state.copy() for state in ledger.nodes()], kept)
        if found is None:
            return None
        return tuple((index, ledger.take_on(node, self.needs[index])) for index, node in found)

    def has_room(self, ledger: Ledger, kept: Kept) -> bool:
        """Say whether there is room now."""
        return self._find([state.copy() for state in ledger.nodes()], kept) is not None

    def could_fit(self, empty: Sequence[NodeState]) -> bool:
        """Say whether there would be room on nodes on which nothing is held."""
        return self._find([state.copy() for state in empty], {}) is not None

    def earmark(self, ledger: Ledger, kept: dict[str, dict[str, int]]) -> None:
        """Keep what is waited for, on nodes that could meet the need as soon as the calls there have ended."""
        found = self._find(ledger.capacities(), {}, rooms=_rooms(ledger.nodes()))
        if found is None:
            return
        by_node: dict[str, list[Need]] = {}
        for index, node in found:
            by_node.setdefault(node, []).append(self.needs[index])
        states = {state.id: state for state in ledger.nodes()}
        sums = [(states[node], add_needs(needs)) for node, needs in by_node.items()]
        # Cpus of one node must not be given away while those of another are waited for, or there would be no end.
        firm = any(state.left(name) < need.get(name, 0) for state, need in sums for name in LENT)
        for state, need in sums:
            state.earmark(need, kept, firm=firm)

    def lacks_only_cpus(self, ledger: Ledger) -> bool:
        """Say whether there would be room at once if calls that hold nothing but a cpu ended."""
        others = {index: _without_cpus(need) for index, need in self.needs.items()}
        return (
            attrs.evolve(self, needs=others).has_room(ledger, {})
            and not self.has_room(ledger, {})
            and self.could_fit(ledger.capacities())
        )

    def _find(
        self, states: Sequence[NodeState], kept: Kept, rooms: Mapping[str, tuple[int, ...]] | None = None
    ) -> _Assignment | None:
        """Assign bundles to nodes, whose states are used up."""
        if not _could_suffice(states, add_needs(self.needs.values())):
            return None
        ordered = sorted(self.needs.items(), key=lambda item: _size(item[1]), reverse=True)
        rooms = _rooms(states) if rooms is None else rooms
        if self.placement is not None:
            states = [state for state in states if self.placement.allows(state.node)]
        for strategy in ("strict_pack", "pack") if self.strategy == "pack" else (self.strategy,):
            search = _Search(ordered, strategy, states, kept, rooms, Counter(self.siblings))
            if search.run():
                return search.result()
        return None


@attrs.define(eq=False)
class _Search:
    needs: Sequence[tuple[int, Need]]
    strategy: str
    states: Sequence[NodeState]
    kept: Kept
    rooms: Mapping[str, tuple[int, ...]]
    used: Counter[str]
    placed: list[tuple[NodeState, Grant]] = attrs.field(factory=list)

    def run(self) -> bool:
        """Find a node for each bundle; if there are none the states are as they were before."""
        choices = [self._choices()]
        for _ in range(_STEPS + len(self.needs) * len(self.states)):
            state = next(choices[-1], None)
            if state is None:
                choices.pop()
                if not choices:
                    return False
                self._take_back()
            elif state.fits(self.needs[len(self.placed)][1], self.kept):
                self._take(state)
                if len(self.placed) == len(self.needs):
                    return True
                choices.append(self._choices())
        while self.placed:
            self._take_back()
        return False

    def result(self) -> _Assignment:
        return [(index, grant.node) for (index, _), (_, grant) in zip(self.needs, self.placed, strict=True)]

    def _take(self, state: NodeState) -> None:
        self.placed.append((state, state.take(self.needs[len(self.placed)][1])))
        self.used[state.id] += 1

    def _take_back(self) -> None:
        state, grant = self.placed.pop()
        state.give_back(grant)
        self.used[state.id] -= 1

    def _choices(self) -> Iterator[NodeState]:
        """Give the nodes that the next bundle may be on, best first."""
        used, found = +self.used, self.states
        if self.strategy == "strict_spread":
            found = [state for state in found if state.id not in used]
        elif self.strategy == "strict_pack" and used:
            found = [state for state in found if state.id in used]
        return iter(sorted(found, key=lambda state: self._order(state, used), reverse=True))

    def _order(self, state: NodeState, used: Counter[str]) -> tuple[int, ...]:
        others = bool(used[state.id]) if self.strategy == "pack" else -used[state.id]
        return others, *self.rooms[state.id]


def _could_suffice(states: Sequence[NodeState], total: Need) -> bool:
    """Say whether there is enough in all: a gang that waits is looked at often, and this tells at once."""
    return all(sum(state.left(name) for state in states) >= amount for name, amount in total.items())


def _rooms(states: Sequence[NodeState]) -> dict[str, tuple[int, ...]]:
    return {state.id: (state.left("gpus"), state.left("cpus"), state.left("memory")) for state in states}


def _size(need: Need) -> tuple[int, ...]:
    return need.get("gpus", 0), need.get("cpus", 0), need.get("memory", 0), sum(need.values())


def _without_cpus(need: Need) -> Need:
    return {name: amount for name, amount in need.items() if name not in LENT}

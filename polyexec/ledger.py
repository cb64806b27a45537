"""Who holds what on which node. Pure bookkeeping in integers; owned by the scheduler, one thread at a time.

Bundles of reservations are nodes of their own here, which only the tasks of their reservation are placed on; what they
have was taken from a real node.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import attrs

from polyexec.node_state import (
    IDLE,
    LENT,
    SLOT,
    UNIT,
    BundleState,
    Grant,
    Kept,
    Need,
    NodeState,
    amounts_of,
    need_of,
)
from polyexec.options import Resources
from polyexec.placement import Placement, has_labels
from polyexec.spi import Node

__all__ = [
    "LENT",
    "SLOT",
    "UNIT",
    "Grant",
    "Ledger",
    "Need",
    "add_up",
    "add_up_needs",
    "amounts_of",
    "need_of",
    "resident_need",
]


_NONE: Kept = {}


def resident_need(request: Resources) -> dict[str, int]:
    """Turn the request of a body that lives on into units; it takes no slot, so that others can run beside it."""
    return {name: amount for name, amount in need_of(request).items() if name != SLOT}


def add_up_needs(*needs: Mapping[str, Need]) -> dict[str, dict[str, int]]:
    """Add what is needed on each node."""
    total: dict[str, dict[str, int]] = {}
    for need in needs:
        for node, amounts in need.items():
            here = total.setdefault(node, {})
            for name, amount in amounts.items():
                here[name] = here.get(name, 0) + amount
    return total


def add_up(amounts: Iterable[Resources]) -> Resources:
    """Add amounts."""
    total: dict[str, int] = {}
    for one in amounts:
        custom = {f"custom {name}": round(amount * UNIT) for name, amount in one.custom.items()}
        for name, amount in (need_of(one) | custom).items():
            total[name] = total.get(name, 0) + amount
    return amounts_of(total)


class Ledger:
    """Keeps, for each node, what is held and what is left."""

    def __init__(self) -> None:
        self._nodes: dict[str, NodeState] = {}
        self._bundles: dict[int, dict[int, BundleState]] = {}
        # Bundles and nodes, by the id in grants; that of a bundle that is gone stands for its node for a moment.
        self._states: dict[str, NodeState] = {}

    def update(self, nodes: Iterable[Node]) -> None:
        """Take over the nodes as they are now; what is held stays held."""
        nodes = list(nodes)
        for node in nodes:
            known = self._nodes.get(node.id)
            if known is None:
                self._nodes[node.id] = self._states[node.id] = NodeState.of_node(node)
            elif known.node != node:
                self._change(known, NodeState.of_node(node))
        for gone in self._nodes.keys() - {node.id for node in nodes}:
            self._nodes[gone].node = attrs.evolve(self._nodes[gone].node, alive=False)
        for bundle in self._all_bundles():
            bundle.node = bundle.real.node
            bundle.gpus += [0] * (len(bundle.real.gpus) - len(bundle.gpus))

    @staticmethod
    def _change(known: NodeState, fresh: NodeState) -> None:
        for name in fresh.total.keys() | known.total.keys():
            known.available[name] = known.left(name) + fresh.has(name) - known.has(name)
        known.gpus += [UNIT] * (len(fresh.gpus) - len(known.gpus))
        known.node, known.total = fresh.node, fresh.total

    def candidates(self, placement: Placement | None, need: Need) -> Sequence[NodeState]:
        """Give the nodes, or bundles, on which something may run that is placed so."""
        if placement is None:
            return list(self._nodes.values())
        found: Sequence[NodeState]
        if placement.reservation is None:
            found = list(self._nodes.values())
        else:
            bundles = self._bundles.get(placement.reservation, {})
            found = [bundle for index, bundle in bundles.items() if placement.index in (None, index)]
        if placement.labels:
            found = [state for state in found if has_labels(state.node.labels, placement.labels)]
        if placement.node is not None:
            wanted = [state for state in found if state.node.id == placement.node]
            if not placement.soft or any(state.could_fit(need) for state in wanted):
                return wanted
        return found

    def could_fit(self, need: Need, placement: Placement | None = None) -> bool:
        """Say whether some node would meet the need if nothing else were held."""
        return any(state.could_fit(need) for state in self.candidates(placement, need))

    def place(self, need: Need, kept: Kept, placement: Placement | None = None) -> Grant | None:
        """Take what is needed on the node with most room, or, to spread, with least calls.

        Args:
            need: the amounts.
            kept: for each node, what must be left alone.
            placement: where.

        Returns:
            The grant, or None if no node has room now.
        """
        states = self._nodes.values() if placement is None else self.candidates(placement, need)
        fitting = [state for state in states if state.node.alive and state.fits(need, kept)]
        if not fitting:
            return None
        if placement is not None and placement.spread:
            return min(fitting, key=_crowd).take(need)
        return max(fitting, key=_room).take(need)

    def can_go_on(self, node_id: str, lacking: Need) -> bool:
        """Say whether a call may have back what it has lent."""
        return self._states[node_id].can_go_on(lacking)

    def take_on(self, node_id: str, need: Need) -> Grant:
        """Take what is needed on a node, whether there is room or not."""
        return self._states[node_id].take(need)

    def give_back(self, grant: Grant) -> None:
        """End a grant."""
        self._states[grant.node].give_back(grant)

    def keep(self, node_id: str, lacking: Need, kept: dict[str, dict[str, int]]) -> None:
        """Let be left alone what a call is to have back."""
        state = self._states[node_id]
        for name, amount in lacking.items():
            here = kept.setdefault(state.keeper(name), {})
            here[name] = here.get(name, 0) + amount
        real = kept.setdefault(state.node.id, {})
        real[IDLE] = real.get(IDLE, 0) + lacking.get("cpus", 0)

    def gpu_ids(self, grant: Grant) -> tuple[str, ...]:
        """Give the accelerators of a grant as ``CUDA_VISIBLE_DEVICES`` calls them."""
        names = self._states[grant.node].node.gpu_ids
        return tuple(names[index] if index < len(names) else str(index) for index in sorted(grant.gpus))

    def node_of(self, node_id: str) -> str:
        """Give the id of the node on which a bundle is; that of a node is itself."""
        return self._states[node_id].node.id

    def is_alive(self, node_id: str) -> bool:
        """Say whether there is a node, or the node of a bundle."""
        state = self._states.get(node_id)
        return state is not None and state.node.alive

    def earmark(self, need: Need, kept: dict[str, dict[str, int]], placement: Placement | None = None) -> None:
        """Keep for a need that does not fit what it waits for, on the node that will most likely meet it.

        What only the end of a reservation could give is not waited for in this way: whoever holds the reservation may
        need what is kept.

        Args:
            need: what does not fit now.
            kept: changed in place.
            placement: where it may run.
        """
        states = self.candidates(placement, need)
        candidates = [state for state in states if state.could_fit(need, state.reserved())]
        if candidates:
            min(candidates, key=lambda state: state.missing(need)).earmark(need, kept)

    def copy(self) -> Ledger:
        """Give a ledger of its own for trial calculations."""
        twin = Ledger()
        twin._nodes = {node_id: state.copy() for node_id, state in self._nodes.items()}
        twin._states = dict(twin._nodes)
        for reservation, bundles in self._bundles.items():
            copies = {index: bundle.copy_on(twin._nodes[bundle.real.id]) for index, bundle in bundles.items()}
            twin._bundles[reservation] = copies
            twin._states |= {bundle.id: bundle for bundle in copies.values()}
        return twin

    def has_room(self, need: Need, placement: Placement | None = None, kept: Kept = _NONE) -> bool:
        """Say whether some node has room now, beside what is kept there."""
        return any(state.node.alive and state.fits(need, kept) for state in self.candidates(placement, need))

    def lacks_only_cpus(self, need: Need, placement: Placement | None = None) -> bool:
        """Say whether a need would be met at once if calls that hold nothing but a cpu ended."""
        if placement is not None and placement.reservation is not None:
            # What runs elsewhere takes nothing from a bundle.
            return False
        return any(state.lacks_only_cpus(need) for state in self.candidates(placement, need))

    def state_of(self, node_id: str) -> NodeState:
        """Give a node, or a bundle, to be looked at."""
        return self._states[node_id]

    def all_nodes(self) -> tuple[NodeState, ...]:
        """Give the nodes, those that are gone among them."""
        return tuple(self._nodes.values())

    def nodes(self) -> tuple[NodeState, ...]:
        """Give the living nodes."""
        return tuple(state for state in self._nodes.values() if state.node.alive)

    def snapshot(self) -> Iterator[tuple[Node, Resources]]:
        """Give each node and what is available there."""
        for state in self._nodes.values():
            names = state.total.keys()
            left = {name: max(0, state.available[name]) for name in names}
            yield state.node, amounts_of(left if state.node.alive else dict.fromkeys(names, 0))

    # Bundles

    def open_bundle(self, name: str, reservation: int, index: int, grant: Grant) -> None:
        """Make a bundle of what was taken from a node.

        Args:
            name: what grants call it.
            reservation: id of its reservation.
            index: its place there.
            grant: what was taken.
        """
        bundle = BundleState.of_share(name, self._nodes[grant.node], grant)
        self._bundles.setdefault(reservation, {})[index] = bundle
        self._states[name] = bundle

    def dissolve(self, reservation: int, index: int) -> tuple[str, str]:
        """Give what is left in a bundle back to its node, and let grants that name it mean the node from now on.

        Returns:
            The ids of the bundle and of its node; ``forget`` ends the first when no grant names it any more.
        """
        bundles = self._bundles[reservation]
        bundle = bundles.pop(index)
        if not bundles:
            del self._bundles[reservation]
        bundle.dissolve()
        self._states[bundle.id] = bundle.real
        return bundle.id, bundle.real.id

    def forget(self, name: str) -> None:
        """Forget the name of a bundle that is gone."""
        del self._states[name]

    def count_twice(self, reservation: int) -> None:
        """For a trial: count what is left in the bundles of a reservation as left on their nodes as well."""
        for bundle in self._bundles.get(reservation, {}).values():
            bundle.count_twice()

    def capacities(self) -> list[NodeState]:
        """Give the living nodes as they would be if nothing were held but what bundles have."""
        return [state.without_calls() for state in self.nodes()]

    def _all_bundles(self) -> Iterator[BundleState]:
        for bundles in self._bundles.values():
            yield from bundles.values()


def _room(state: NodeState) -> int:
    return state.available.get("cpus", 0)


def _crowd(state: NodeState) -> tuple[int, int]:
    """Tell on how many calls hold a slot, and of nodes with as many prefer the one with most cpus left."""
    return state.has(SLOT) - state.left(SLOT), -_room(state)

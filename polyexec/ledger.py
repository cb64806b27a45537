"""Who holds what on which node. Pure bookkeeping in integers; owned by the scheduler, one thread at a time.

Amounts other than memory count in ten-thousandths, so that fractions add up exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

import attrs

from polyexec.options import Resources
from polyexec.spi import Node

UNIT = 10_000
SLOT = "slot"
LENT = ("cpus", SLOT)
_UNLIMITED = 1 << 62
_NOTHING: Mapping[str, int] = {}

Need: TypeAlias = Mapping[str, int]


def need_of(request: Resources) -> dict[str, int]:
    """Turn a request into units; whatever runs takes a slot."""
    need = {SLOT: 1}
    need |= {"cpus": round(request.cpus * UNIT)} if request.cpus else {}
    need |= {"gpus": round(request.gpus * UNIT)} if request.gpus else {}
    need |= {"memory": request.memory} if request.memory else {}
    need |= {f"custom {name}": round(amount * UNIT) for name, amount in request.custom.items() if amount}
    return need


def amounts_of(need: Need) -> Resources:
    """Turn units back into amounts."""
    custom = {name[7:]: amount / UNIT for name, amount in need.items() if name.startswith("custom ")}
    return Resources(need.get("cpus", 0) / UNIT, need.get("gpus", 0) / UNIT, need.get("memory", 0), custom)


def add_up(amounts: Iterable[Resources]) -> Resources:
    """Add amounts."""
    total: dict[str, int] = {}
    for one in amounts:
        custom = {f"custom {name}": round(amount * UNIT) for name, amount in one.custom.items()}
        for name, amount in (need_of(one) | custom).items():
            total[name] = total.get(name, 0) + amount
    return amounts_of(total)


@attrs.frozen
class Grant:
    """What a call holds.

    Attributes:
        node: id of the node.
        need: what it holds there.
        gpus: units of each accelerator, by index.
    """

    node: str
    need: Need
    gpus: Mapping[int, int] = attrs.field(factory=dict)


@attrs.define(eq=False)
class _NodeState:
    node: Node
    total: dict[str, int]
    available: dict[str, int]
    gpus: list[int]

    def fits(self, need: Need, kept: Need) -> bool:
        available = self.available
        for name, amount in need.items():
            if available.get(name, 0) - kept.get(name, 0) < amount:
                return False
        return "gpus" not in need or self._choose_gpus(need["gpus"]) is not None

    def could_fit(self, need: Need) -> bool:
        return self.node.alive and all(self.total.get(name, 0) >= amount for name, amount in need.items())

    def _choose_gpus(self, amount: int) -> dict[int, int] | None:
        if amount < UNIT:
            shared = [index for index, free in enumerate(self.gpus) if free >= amount]
            # The fullest that still has room, so that whole ones stay whole.
            return {min(shared, key=lambda index: self.gpus[index]): amount} if shared else None
        whole = [index for index, free in enumerate(self.gpus) if free == UNIT][: amount // UNIT]
        return dict.fromkeys(whole, UNIT) if len(whole) == amount // UNIT else None

    def take(self, need: Need) -> Grant:
        gpus = self._choose_gpus(need["gpus"]) if "gpus" in need else None
        for index, amount in (gpus or {}).items():
            self.gpus[index] -= amount
        self._add(need, -1)
        return Grant(self.node.id, need, gpus or {})

    def give_back(self, grant: Grant) -> None:
        for index, amount in grant.gpus.items():
            self.gpus[index] += amount
        self._add(grant.need, 1)

    def lacks_only_cpus(self, need: Need) -> bool:
        if not self.could_fit(need):
            return False
        others = {name: amount for name, amount in need.items() if name not in LENT}
        return self.fits(others, _NOTHING) and not self.fits(need, _NOTHING)

    def copy(self) -> _NodeState:
        return _NodeState(self.node, self.total, dict(self.available), list(self.gpus))

    def _add(self, need: Need, sign: int) -> None:
        for name, amount in need.items():
            self.available[name] += sign * amount


class Ledger:
    """Keeps, for each node, what is held and what is left."""

    def __init__(self) -> None:
        self._nodes: dict[str, _NodeState] = {}

    def update(self, nodes: Iterable[Node]) -> None:
        """Take over the nodes as they are now; what is held stays held."""
        nodes = list(nodes)
        for node in nodes:
            known = self._nodes.get(node.id)
            total = need_of(node.total) | {SLOT: _UNLIMITED if node.slots is None else node.slots}
            if known is None:
                gpus = [UNIT] * int(node.total.gpus)
                self._nodes[node.id] = _NodeState(node, total, dict(total), gpus)
            elif known.node != node:
                self._change(known, node, total)
        for gone in self._nodes.keys() - {node.id for node in nodes}:
            self._nodes[gone].node = attrs.evolve(self._nodes[gone].node, alive=False)

    @staticmethod
    def _change(known: _NodeState, node: Node, total: dict[str, int]) -> None:
        for name in total.keys() | known.total.keys():
            grown = total.get(name, 0) - known.total.get(name, 0)
            known.available[name] = known.available.get(name, 0) + grown
        known.gpus += [UNIT] * (int(node.total.gpus) - len(known.gpus))
        known.node, known.total = node, total

    def could_fit(self, need: Need) -> bool:
        """Say whether some node would meet the need if nothing else were held."""
        return any(state.could_fit(need) for state in self._nodes.values())

    def place(self, need: Need, kept: Mapping[str, Need]) -> Grant | None:
        """Take what is needed on the node with most room.

        Args:
            need: the amounts.
            kept: for each node, what must be left alone.

        Returns:
            The grant, or None if no node has room now.
        """
        fitting = [
            state
            for state in self._nodes.values()
            if state.node.alive and state.fits(need, kept.get(state.node.id, _NOTHING))
        ]
        return max(fitting, key=lambda state: state.available.get("cpus", 0)).take(need) if fitting else None

    def fits_on(self, node_id: str, need: Need, kept: Need) -> bool:
        """Say whether a node has room now."""
        return self._nodes[node_id].fits(need, kept)

    def take_on(self, node_id: str, need: Need) -> Grant:
        """Take what is needed on a node, whether there is room or not."""
        return self._nodes[node_id].take(need)

    def give_back(self, grant: Grant) -> None:
        """End a grant."""
        self._nodes[grant.node].give_back(grant)

    def gpu_ids(self, grant: Grant) -> tuple[str, ...]:
        """Give the accelerators of a grant as ``CUDA_VISIBLE_DEVICES`` calls them."""
        names = self._nodes[grant.node].node.gpu_ids
        return tuple(names[index] if index < len(names) else str(index) for index in sorted(grant.gpus))

    def earmark(self, need: Need, kept: dict[str, dict[str, int]]) -> None:
        """Keep for a need that does not fit what it waits for, on the node that will most likely meet it.

        What is short is kept altogether, and so is the need's share of everything scarcer than cpus; cpus that are
        not short stay free for others until they are.

        Args:
            need: what does not fit now.
            kept: changed in place.
        """
        candidates = [state for state in self._nodes.values() if state.could_fit(need)]
        if not candidates:
            return
        best = min(candidates, key=lambda state: self._missing(state, need))
        here = kept.setdefault(best.node.id, {})
        for name, amount in need.items():
            if best.available[name] - here.get(name, 0) < amount:
                here[name] = _UNLIMITED
            elif name not in LENT:
                here[name] = here.get(name, 0) + amount

    @staticmethod
    def _missing(state: _NodeState, need: Need) -> float:
        return sum(max(0, amount - state.available[name]) / amount for name, amount in need.items() if amount)

    def copy(self) -> Ledger:
        """Give a ledger of its own for trial calculations."""
        twin = Ledger()
        twin._nodes = {node_id: state.copy() for node_id, state in self._nodes.items()}
        return twin

    def has_room(self, need: Need) -> bool:
        """Say whether some node has room now."""
        return any(state.node.alive and state.fits(need, _NOTHING) for state in self._nodes.values())

    def lacks_only_cpus(self, need: Need) -> bool:
        """Say whether a need would be met at once if calls that hold nothing but a cpu ended."""
        return any(state.lacks_only_cpus(need) for state in self._nodes.values())

    def totals(self) -> tuple[dict[str, int], ...]:
        """Give what each living node has."""
        return tuple(dict(state.total) for state in self._nodes.values() if state.node.alive)

    def snapshot(self) -> Iterator[tuple[Node, Resources]]:
        """Give each node and what is available there."""
        for state in self._nodes.values():
            names = state.total.keys()
            left = {name: max(0, state.available[name]) for name in names}
            yield state.node, amounts_of(left if state.node.alive else dict.fromkeys(names, 0))

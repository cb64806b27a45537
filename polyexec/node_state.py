"""What is held and what is left on one node, or in one reserved part of a node. Pure bookkeeping in integers.

Amounts other than memory count in ten-thousandths, so that fractions add up exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

import attrs

from polyexec.options import Resources
from polyexec.spi import Node

UNIT = 10_000
SLOT = "slot"
LENT = ("cpus", SLOT)
IDLE = "idle cpus"
"""Stands in what is kept for cpus that nobody uses, whoever has reserved them."""

UNLIMITED = 1 << 62
NOTHING: Mapping[str, int] = {}

Need: TypeAlias = Mapping[str, int]
Kept: TypeAlias = Mapping[str, Need]
"""What must be left alone, by node."""


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


def add_needs(needs: Iterable[Need]) -> dict[str, int]:
    """Add needs."""
    total: dict[str, int] = {}
    for need in needs:
        for name, amount in need.items():
            total[name] = total.get(name, 0) + amount
    return total


@attrs.frozen
class Grant:
    """What a call holds.

    Attributes:
        node: id of the node, or of the bundle.
        need: what it holds there.
        gpus: units of each accelerator, by the node's index.
    """

    node: str
    need: Need
    gpus: Mapping[int, int] = attrs.field(factory=dict)


@attrs.define(eq=False)
class NodeState:
    """A node.

    Attributes:
        id: what grants call it.
        node: as the backend knows it.
        total: what it has.
        available: what is left.
        gpus: what is left of each accelerator.
        bundles: parts of it that are reserved.
    """

    id: str
    node: Node
    total: dict[str, int]
    available: dict[str, int]
    gpus: list[int]
    bundles: list[BundleState] = attrs.field(factory=list, kw_only=True)

    @staticmethod
    def of_node(node: Node) -> NodeState:
        """Make the state of a node on which nothing is held."""
        total = need_of(node.total) | {SLOT: UNLIMITED if node.slots is None else node.slots}
        return NodeState(node.id, node, total, dict(total), [UNIT] * int(node.total.gpus))

    def left(self, name: str) -> int:
        """Give what is left of something."""
        return self.available.get(name, 0)

    def has(self, name: str) -> int:
        """Give what there is of something in all."""
        return self.total.get(name, 0)

    def fits(self, need: Need, kept: Kept) -> bool:
        """Say whether there is room now."""
        available, here = self.available, kept.get(self.id, NOTHING)
        for name, amount in need.items():
            if available.get(name, 0) - here.get(name, 0) < amount:
                return False
        return "gpus" not in need or self._choose_gpus(need["gpus"]) is not None

    def can_go_on(self, lacking: Need) -> bool:
        """Say whether a call that has lent some of its need may have it back.

        Cpus that are reserved and idle will do: what is lent may be reserved meanwhile, for longer than the call can
        wait.
        """
        return self.left(SLOT) >= lacking.get(SLOT, 0) and self.idle_cpus() >= lacking.get("cpus", 0)

    def idle_cpus(self) -> int:
        """Give the cpus that nobody uses, whoever has reserved them."""
        return self.left("cpus") + sum(bundle.left("cpus") for bundle in self.bundles)

    def reserved(self) -> Need:
        """Give what bundles have of it."""
        return add_needs(bundle.share.need for bundle in self.bundles) if self.bundles else NOTHING

    def could_fit(self, need: Need, taken: Need = NOTHING) -> bool:
        """Say whether there would be room if nothing were held but what is taken for long."""
        return self.node.alive and all(self.has(name) - taken.get(name, 0) >= amount for name, amount in need.items())

    def _choose_gpus(self, amount: int) -> dict[int, int] | None:
        if amount < UNIT:
            shared = [index for index, free in enumerate(self.gpus) if free >= amount]
            # The fullest that still has room, so that whole ones stay whole.
            return {min(shared, key=lambda index: self.gpus[index]): amount} if shared else None
        whole = [index for index, free in enumerate(self.gpus) if free == UNIT][: amount // UNIT]
        return dict.fromkeys(whole, UNIT) if len(whole) == amount // UNIT else None

    def take(self, need: Need) -> Grant:
        """Take what is needed, whether there is room or not, but for accelerators."""
        gpus = (self._choose_gpus(need["gpus"]) or {}) if "gpus" in need else {}
        self.add(need, gpus, -1)
        return Grant(self.id, need, gpus)

    def give_back(self, grant: Grant) -> None:
        """End a grant."""
        self.add(grant.need, grant.gpus, 1)

    def add(self, need: Need, gpus: Mapping[int, int], sign: int) -> None:
        """Change what is left."""
        for index, amount in gpus.items():
            self.gpus[index] += sign * amount
        for name, amount in need.items():
            self.available[name] = self.available.get(name, 0) + sign * amount

    def lacks_only_cpus(self, need: Need) -> bool:
        """Say whether there would be room at once if calls that hold nothing but a cpu ended."""
        if not self.could_fit(need, self.reserved()):
            return False
        others = {name: amount for name, amount in need.items() if name not in LENT}
        return self.fits(others, {}) and not self.fits(need, {})

    def missing(self, need: Need) -> float:
        """Measure how much of a need is not there."""
        return sum(max(0, amount - self.left(name)) / amount for name, amount in need.items() if amount)

    def earmark(self, need: Need, kept: dict[str, dict[str, int]], *, firm: bool = False) -> None:
        """Keep for a need that does not fit what it waits for.

        What is short is kept altogether, and so is the need's share of everything scarcer than cpus; cpus that are
        not short stay free for others until they are, unless ``firm``.
        """
        for name, amount in need.items():
            here = kept.setdefault(self.keeper(name), {})
            if self.left(name) - here.get(name, 0) < amount:
                here[name] = UNLIMITED
            elif firm or name not in LENT:
                here[name] = here.get(name, 0) + amount

    def keeper(self, name: str) -> str:
        """Give the id under which something here is kept."""
        return self.id

    def copy(self) -> NodeState:
        """Give a state of its own for trial calculations."""
        return NodeState(self.id, self.node, self.total, dict(self.available), list(self.gpus))

    def without_calls(self) -> NodeState:
        """Give the state as it would be if nothing were held but what bundles have."""
        found = NodeState(self.id, self.node, self.total, dict(self.total), [UNIT] * len(self.gpus))
        for bundle in self.bundles:
            found.add(bundle.share.need, bundle.share.gpus, -1)
        return found


@attrs.define(eq=False)
class BundleState(NodeState):
    """A part of a node that is reserved, as if it were a node; its calls take slots of the node itself.

    Attributes:
        real: the node.
        share: what was taken from it.
        twofold: for trial calculations: what is left here is counted as left on the node as well.
    """

    real: NodeState
    share: Grant
    twofold: bool = False

    def __attrs_post_init__(self) -> None:
        self.real.bundles.append(self)

    @staticmethod
    def of_share(name: str, real: NodeState, share: Grant) -> BundleState:
        """Make a bundle of what was taken from a node."""
        gpus = [share.gpus.get(index, 0) for index in range(len(real.gpus))]
        return BundleState(name, real.node, dict(share.need), dict(share.need), gpus, real, share)

    def left(self, name: str) -> int:
        """Give what is left here; slots are the node's."""
        return self.real.left(name) if name == SLOT else super().left(name)

    def has(self, name: str) -> int:
        """Give what there is here in all; slots are the node's."""
        return self.real.has(name) if name == SLOT else super().has(name)

    def fits(self, need: Need, kept: Kept) -> bool:
        """Say whether there is room here, and a slot on the node."""
        slots, others = _split(need)
        if not (super().fits(others, kept) and self.real.fits(slots, kept)):
            return False
        going_on = kept.get(self.real.id, NOTHING).get(IDLE, 0)
        return self.real.idle_cpus() - going_on >= need.get("cpus", 0)

    def can_go_on(self, lacking: Need) -> bool:
        """Say whether there is enough here, and nobody uses it who has it from the node."""
        return self.left("cpus") >= lacking.get("cpus", 0) and self.real.can_go_on(lacking)

    def add(self, need: Need, gpus: Mapping[int, int], sign: int) -> None:
        """Change what is left here, and the slots of the node."""
        slots, others = _split(need)
        super().add(others, gpus, sign)
        self.real.add(slots, {}, sign)
        if self.twofold:
            self.real.add(others, gpus, sign)

    def keeper(self, name: str) -> str:
        """Give the id under which something is kept; slots are the node's."""
        return self.real.id if name == SLOT else self.id

    def dissolve(self) -> None:
        """Give what is left here back to the node."""
        self.real.bundles.remove(self)
        if not self.twofold:
            self.real.add(self.available, dict(enumerate(self.gpus)), 1)

    def count_twice(self) -> None:
        """Count what is left here as left on the node as well."""
        if not self.twofold:
            self.twofold = True
            self.real.add(self.available, dict(enumerate(self.gpus)), 1)

    def copy_on(self, real: NodeState) -> BundleState:
        """Give a state of its own on the copy of its node."""
        copied = dict(self.available), list(self.gpus)
        return BundleState(self.id, self.node, self.total, *copied, real, self.share, self.twofold)


def _split(need: Need) -> tuple[dict[str, int], dict[str, int]]:
    slots = {SLOT: need[SLOT]} if SLOT in need else {}
    return slots, {name: amount for name, amount in need.items() if name != SLOT}

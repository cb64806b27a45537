from __future__ import annotations

import random

import pytest

from polyexec.gangs import STRATEGIES, Shape
from polyexec.ledger import SLOT, Grant, Ledger, Need, need_of
from polyexec.node_state import NodeState
from polyexec.options import Resources
from polyexec.placement import Placement
from polyexec.spi import Node


def make_ledger(*cpus: float, gpus: int = 0) -> Ledger:
    ledger = Ledger()
    ledger.update([Node(f"node{index}", "host", Resources(amount, gpus)) for index, amount in enumerate(cpus)])
    return ledger


def bundle(cpus: float = 0, gpus: float = 0) -> Need:
    return {name: amount for name, amount in need_of(Resources(cpus, gpus)).items() if name != SLOT}


def shape(strategy: str, *cpus: float) -> Shape:
    return Shape(dict(enumerate(map(bundle, cpus))), strategy)


def nodes_of(ledger: Ledger, wanted: Shape) -> list[str] | None:
    taken = wanted.take(ledger, {})
    return None if taken is None else [grant.node for _, grant in sorted(taken, key=lambda item: item[0])]


def left(ledger: Ledger) -> list[float]:
    return [resources.cpus for _, resources in ledger.snapshot()]


def test_pack_uses_as_few_nodes_as_there_is_room_on() -> None:
    """R11."""
    assert len(set(nodes_of(make_ledger(2, 4, 3), shape("pack", 1, 2, 1)) or ())) == 1
    assert sorted(set(nodes_of(make_ledger(2, 2, 2), shape("pack", 1, 1, 1)) or ())) == ["node0", "node1"]


def test_spread_uses_as_many_as_there_are() -> None:
    """R11."""
    found = nodes_of(make_ledger(4, 4, 4), shape("spread", 1, 1, 1, 1))
    assert found is not None
    assert sorted(found.count(node) for node in set(found)) == [1, 1, 2]
    assert nodes_of(make_ledger(4), shape("spread", 1, 1)) == ["node0", "node0"]


def test_strict_strategies_rather_take_nothing() -> None:
    """R11."""
    ledger = make_ledger(2, 2)
    assert nodes_of(ledger, shape("strict_pack", 1, 1, 1)) is None
    assert nodes_of(ledger, shape("strict_spread", 1, 1, 1)) is None
    assert left(ledger) == [2, 2]
    assert len(set(nodes_of(ledger, shape("strict_spread", 1, 1)) or ())) == 2
    assert len(set(nodes_of(make_ledger(1, 3), shape("strict_pack", 1, 2)) or ())) == 1


def test_other_nodes_are_tried_where_the_first_choice_leads_nowhere() -> None:
    """R11: first fit by size puts five and four on one node, and has no room for the last."""
    found = nodes_of(make_ledger(10, 10), shape("pack", 5, 4, 4, 3, 2, 2))
    assert found is not None
    assert sorted(found).count("node0") == 3


def test_a_search_without_hope_ends() -> None:
    """R11: bounded, and nothing is taken."""
    ledger = make_ledger(*[3] * 12)
    assert nodes_of(ledger, shape("pack", *[2] * 13)) is None
    assert left(ledger) == [3] * 12


def test_bundles_get_accelerators_of_their_own() -> None:
    """R11, R5."""
    ledger = make_ledger(4, 4, gpus=2)
    needs = {index: bundle(1, gpus) for index, gpus in enumerate([1, 0.5, 2, 0.5])}
    taken = Shape(needs, "pack").take(ledger, {})
    assert taken is not None
    used: dict[tuple[str, int], int] = {}
    for _, grant in taken:
        for index, amount in grant.gpus.items():
            used[grant.node, index] = used.get((grant.node, index), 0) + amount
    assert used == dict.fromkeys([(f"node{node}", gpu) for node in (0, 1) for gpu in (0, 1)], 10_000)


def test_labels_hold_for_all_bundles() -> None:
    """R11, R12."""
    ledger = Ledger()
    ledger.update([Node(zone, "host", Resources(2), labels={"zone": zone}) for zone in "ab"])
    wanted = Shape({0: bundle(1), 1: bundle(1)}, "spread", placement=Placement(labels=(("zone", "b"),)))
    assert nodes_of(ledger, wanted) == ["b", "b"]


def test_a_bundle_is_a_node_of_its_own() -> None:
    """R11: who belongs there is placed there alone; its calls take slots of the node."""
    ledger = Ledger()
    ledger.update([Node("node", "host", Resources(4, 2), slots=3, gpu_ids=("A", "B"))])
    inside = Placement(reservation=7)
    share = ledger.take_on("node", bundle(2, 1))
    ledger.open_bundle("bundle", 7, 0, share)
    need = need_of(Resources(1, 0.5))
    grants = [ledger.place(need, {}, inside) for _ in range(3)]
    assert [grant and grant.node for grant in grants] == ["bundle", "bundle", None]
    first = grants[0]
    assert first is not None
    assert ledger.gpu_ids(first) == ("A",)
    assert ledger.node_of("bundle") == "node"
    assert ledger.place(need_of(Resources(3)), {}) is None
    assert ledger.place(need_of(Resources(1)), {}) is not None
    assert ledger.place(need_of(Resources(0)), {}) is None, "the third slot is taken"


def test_what_runs_in_a_bundle_that_is_gone_keeps_its_part() -> None:
    """R11, R4."""
    ledger = make_ledger(4, gpus=1)
    ledger.open_bundle("bundle", 7, 0, ledger.take_on("node0", bundle(3, 1)))
    running = ledger.place(need_of(Resources(1, 1)), {}, Placement(reservation=7))
    assert running is not None
    assert ledger.dissolve(7, 0) == ("bundle", "node0")
    ledger.forget("bundle")
    assert left(ledger) == [3]
    ledger.give_back(Grant("node0", running.need, running.gpus))
    ((_, after),) = ledger.snapshot()
    assert after == Resources(4, 1)


def _fits_somehow(cpus: list[int], wanted: list[int], strategy: str, used: list[int]) -> bool:
    """Say, by trying everything, whether bundles fit."""
    if not wanted:
        return True
    for node, free in enumerate(cpus):
        barred = {"strict_spread": node in used, "strict_pack": used[:1] not in ([], [node])}.get(strategy, False)
        if free >= wanted[0] and not barred:
            rest = [amount - wanted[0] * (other == node) for other, amount in enumerate(cpus)]
            if _fits_somehow(rest, wanted[1:], strategy, [*used, node]):
                return True
    return False


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_random_gangs_are_placed_if_they_can_be(strategy: str) -> None:
    """R11: all or nothing, never more than there is, and all whenever there is a way."""
    chance = random.Random(strategy)
    for _ in range(400):
        cpus = [chance.randint(1, 6) for _ in range(chance.randint(1, 4))]
        wanted = [chance.randint(1, 4) for _ in range(chance.randint(1, 5))]
        ledger = make_ledger(*cpus)
        gang = shape(strategy, *wanted)
        found = nodes_of(ledger, gang)
        assert (found is not None) == _fits_somehow(cpus, wanted, strategy, [])
        assert gang.could_fit([NodeState.of_node(node) for node, _ in ledger.snapshot()]) == (found is not None)
        taken = [
            sum(size for size, node in zip(wanted, found or (), strict=False) if node == f"node{index}")
            for index in range(len(cpus))
        ]
        assert left(ledger) == [amount - held for amount, held in zip(cpus, taken, strict=True)]

from __future__ import annotations

from fractions import Fraction

import pytest

from polyexec.ledger import UNIT, Grant, Ledger, add_up, amounts_of, need_of
from polyexec.options import Resources
from polyexec.spi import Node


def make_ledger(*nodes: Resources, slots: int | None = None) -> Ledger:
    ledger = Ledger()
    ledger.update([Node(f"node{index}", "host", total, slots) for index, total in enumerate(nodes)])
    return ledger


def place(ledger: Ledger, **amounts: float) -> Grant | None:
    return ledger.place(need_of(Resources(**amounts)), {})  # type: ignore[arg-type]


def available(ledger: Ledger, index: int = 0) -> Resources:
    return list(ledger.snapshot())[index][1]


@pytest.mark.parametrize("parts", [3, 7, 10, 1000])
def test_fractions_add_up_exactly(parts: int) -> None:
    """R2: n tasks of 1/n cpu fit on one cpu, no more, and give all of it back."""
    ledger = make_ledger(Resources(1))
    share = int(Fraction(UNIT, parts)) / UNIT
    grants = []
    while (grant := place(ledger, cpus=share)) is not None:
        grants.append(grant)
    assert parts <= len(grants) <= parts + 1
    for grant in grants:
        ledger.give_back(grant)
    assert available(ledger) == Resources(1)


@pytest.mark.parametrize("amount", [0.1, 0.2, 0.3, 1 / 3, 2.7, 1e-4])
def test_amounts_survive_the_units(amount: float) -> None:
    """R2, R4."""
    request = Resources(amount, 0.25, 12345, {"license": amount})
    found = amounts_of(need_of(request))
    assert found.cpus == pytest.approx(amount, abs=1 / UNIT)
    assert (found.gpus, found.memory) == (0.25, 12345)
    assert amounts_of(need_of(found)) == found


def test_whole_gpus_are_disjoint() -> None:
    """R5."""
    ledger = make_ledger(Resources(8, 4))
    grants = [place(ledger, gpus=1), place(ledger, gpus=2), place(ledger, gpus=1)]
    indices = [index for grant in grants if grant is not None for index in grant.gpus]
    assert sorted(indices) == [0, 1, 2, 3]
    assert place(ledger, gpus=1) is None


def test_fractions_share_a_gpu_and_leave_others_whole() -> None:
    """R2, R5."""
    ledger = make_ledger(Resources(8, 2))
    shares = [place(ledger, gpus=0.25) for _ in range(4)]
    assert [dict(grant.gpus) for grant in shares if grant is not None] == [{0: UNIT // 4}] * 4
    whole = place(ledger, gpus=1)
    assert whole is not None
    assert dict(whole.gpus) == {1: UNIT}
    assert place(ledger, gpus=0.25) is None


def test_a_fraction_needs_room_on_one_gpu() -> None:
    """R1: two remainders do not make one share."""
    ledger = make_ledger(Resources(8, 2))
    assert place(ledger, gpus=0.75) is not None
    assert place(ledger, gpus=0.75) is not None
    assert place(ledger, gpus=0.5) is None
    assert place(ledger, gpus=0.25) is not None


def test_what_is_left_of_several_gpus_can_be_shown() -> None:
    """R4: also an amount that nobody could ask for."""
    ledger = make_ledger(Resources(8, 2))
    place(ledger, gpus=0.25)
    assert available(ledger).gpus == 1.75
    assert add_up([available(ledger), available(ledger)]).gpus == 3.5


def test_a_task_runs_where_most_cpus_are_free() -> None:
    """R12: by default tasks spread."""
    ledger = make_ledger(Resources(2), Resources(4))
    nodes = [grant.node for grant in (place(ledger, cpus=1) for _ in range(6)) if grant is not None]
    assert nodes[:2] == ["node1", "node1"]
    assert sorted(nodes) == ["node0"] * 2 + ["node1"] * 4


def test_a_request_is_met_by_one_node() -> None:
    """R3: not by the sum of several."""
    ledger = make_ledger(Resources(2), Resources(2))
    assert not ledger.could_fit(need_of(Resources(3)))
    assert ledger.could_fit(need_of(Resources(2)))
    assert place(ledger, cpus=3) is None


def test_kept_amounts_are_left_alone() -> None:
    """R7."""
    ledger = make_ledger(Resources(4))
    need = need_of(Resources(2))
    assert ledger.place(need, {"node0": {"cpus": 3 * UNIT}}) is None
    assert ledger.place(need, {"node0": {"cpus": 2 * UNIT}}) is not None


def test_an_earmark_keeps_what_is_short() -> None:
    """R7: those behind cannot take it; what is not short is left to them."""
    ledger = make_ledger(Resources(4, 1, 100))
    assert place(ledger, cpus=1, gpus=1) is not None
    kept: dict[str, dict[str, int]] = {}
    ledger.earmark(need_of(Resources(1, 1)), kept)
    assert ledger.place(need_of(Resources(1)), kept) is not None
    assert ledger.place(need_of(Resources(1, 0.5)), kept) is None
    ledger.earmark(need_of(Resources(4)), kept)
    assert ledger.place(need_of(Resources(1)), kept) is None
    assert ledger.place(need_of(Resources(0, 0, 50)), kept) is not None


def test_an_earmark_keeps_a_share_of_scarce_things() -> None:
    """R7: memory that is there now is kept for a task that waits for a gpu; the rest is free."""
    ledger = make_ledger(Resources(4, 1, 100))
    assert place(ledger, gpus=1) is not None
    kept: dict[str, dict[str, int]] = {}
    ledger.earmark(need_of(Resources(1, 1, 60)), kept)
    assert ledger.place(need_of(Resources(0, 0, 50)), kept) is None
    assert ledger.place(need_of(Resources(0, 0, 40)), kept) is not None


def test_an_earmark_names_one_node() -> None:
    """R7: the other nodes are free for all."""
    ledger = make_ledger(Resources(2), Resources(4))
    assert [place(ledger, cpus=1) for _ in range(3)]
    kept: dict[str, dict[str, int]] = {}
    ledger.earmark(need_of(Resources(4)), kept)
    assert list(kept) == ["node1"]
    grant = ledger.place(need_of(Resources(1)), kept)
    assert grant is not None
    assert grant.node == "node0"


def test_an_earmark_for_what_no_node_can_meet_keeps_nothing() -> None:
    """R3: a patient task must not hold back others."""
    ledger = make_ledger(Resources(2))
    kept: dict[str, dict[str, int]] = {}
    ledger.earmark(need_of(Resources(5)), kept)
    assert kept == {}


def test_slots_limit_calls_that_hold_no_cpu() -> None:
    """R2."""
    ledger = make_ledger(Resources(1), slots=2)
    grants = [place(ledger) for _ in range(3)]
    assert grants[2] is None
    assert grants[0] is not None
    ledger.give_back(grants[0])
    assert place(ledger) is not None


def test_a_lost_node_takes_nothing_and_counts_for_nothing() -> None:
    """R4, F10."""
    ledger = make_ledger(Resources(2), Resources(2))
    grant = place(ledger, cpus=2)
    assert grant is not None
    ledger.update([node for node, _ in ledger.snapshot() if node.id != grant.node])
    assert len(ledger.nodes()) == 1
    assert [left.cpus for node, left in ledger.snapshot() if not node.alive] == [0]
    other = place(ledger, cpus=2)
    assert other is not None
    assert other.node != grant.node
    assert place(ledger, cpus=1) is None


def test_a_node_that_comes_back_has_what_was_given_back_meanwhile() -> None:
    """R4."""
    ledger = make_ledger(Resources(2, 1))
    nodes = [node for node, _ in ledger.snapshot()]
    grants = [place(ledger, cpus=1, gpus=1), place(ledger, cpus=1)]
    ledger.update([])
    assert grants[0] is not None
    ledger.give_back(grants[0])
    ledger.update(nodes)
    assert available(ledger) == Resources(1, 1)
    assert place(ledger, gpus=1) is not None


def test_a_node_that_grows_and_shrinks() -> None:
    """R4: what is held stays held."""
    ledger = make_ledger(Resources(2))
    held = place(ledger, cpus=2)
    assert held is not None
    ledger.update([Node("node0", "host", Resources(4, 1, 10, {"license": 1}))])
    assert available(ledger) == Resources(2, 1, 10, {"license": 1})
    ledger.update([Node("node0", "host", Resources(1))])
    assert available(ledger).cpus == 0
    assert place(ledger, cpus=1) is None
    ledger.give_back(held)
    assert available(ledger).cpus == 1


def test_a_trial_changes_nothing() -> None:
    """N2."""
    ledger = make_ledger(Resources(2, 1))
    grant = place(ledger, cpus=2, gpus=1)
    assert grant is not None
    twin = ledger.copy()
    twin.give_back(grant)
    assert twin.has_room(need_of(Resources(2, 1)))
    assert not ledger.has_room(need_of(Resources(1)))

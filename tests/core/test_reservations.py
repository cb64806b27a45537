from __future__ import annotations

import pytest

from polyexec.endings import failure_of
from polyexec.errors import InfeasibleResources
from polyexec.gangs import Shape
from polyexec.ledger import SLOT, Need, need_of
from polyexec.options import Resources
from polyexec.placement import Placement
from polyexec.records import Cancelled, Displaced, Ended, Granted, NodeGone, Task, Wake
from polyexec.reservations import Gang
from polyexec.spi import Death, Node
from polyexec.stored import Tag

from .bench import CPU, Bench


class GangBench(Bench):
    """A scheduler on several nodes, with reservations."""

    def __init__(self, *cpus: float, gpus: int = 0) -> None:
        super().__init__(cpus[0], gpus=gpus)
        self.nodes = [Node("node", "host", Resources(cpus[0], gpus))]
        self.nodes += [
            Node(f"node{index}", "host", Resources(amount, gpus)) for index, amount in enumerate(cpus[1:], 1)
        ]
        self.scheduler.ledger.update(self.nodes)

    def reserve(
        self, task_id: int, *cpus: float, gpus: float = 0, strategy: str = "pack", by: int | None = None
    ) -> None:
        needs = {index: _bundle(Resources(amount, gpus)) for index, amount in enumerate(cpus)}
        owner = None if by is None else self.call(by)
        gang = Gang(Shape(needs, strategy), 0, owner)
        self.scheduler.submit(Task(task_id, "reserve", {}, parent=by, gang=gang))

    def add_in(self, task_id: int, reservation: int, index: int | None = None, **amounts: float) -> None:
        need = need_of(Resources(**{"cpus": 1, **amounts}))  # type: ignore[arg-type]
        self.add(task_id, need, placement=Placement(reservation=reservation, index=index))

    def close(self, reservation: int) -> None:
        self.scheduler.reservations.close(reservation)

    def granted(self, reservation: int) -> bool:
        return isinstance(self.ending(reservation), Granted)

    def node_of(self, task_id: int) -> str:
        self.go()
        call = self.scheduler.running[self.call(task_id)]
        return self.scheduler.ledger.node_of(call.grant.node)

    def take_nodes(self, *nodes: Node) -> None:
        self.scheduler.ledger.update(nodes)
        self.scheduler.nodes_changed()

    def lose(self, node: Node) -> None:
        self.take_nodes(*(other for other in self.nodes if other is not node))

    def free_cpus(self) -> list[float]:
        self.go()
        return [resources.cpus for _, resources in self.scheduler.ledger.snapshot()]


def _bundle(amounts: Resources) -> Need:
    return {name: amount for name, amount in need_of(amounts).items() if name != SLOT}


def test_nothing_is_held_while_a_gang_waits() -> None:
    """R11: one node is free, the other is not; the free one is used by others until all is free."""
    bench = GangBench(1, 1)
    bench.add(1)
    bench.reserve(2, 1)
    assert bench.granted(2)
    bench.reserve(3, 1, 1)
    bench.finish(1)
    assert not bench.granted(3)
    bench.add(4)
    assert bench.started() == [4]
    bench.close(2)
    assert not bench.granted(3)
    bench.finish(4)
    assert bench.granted(3)
    assert bench.free_cpus() == [0, 0]


def test_a_gang_over_two_nodes_is_not_starved() -> None:
    """R11, R7: small ones keep coming on both nodes; what became free on one is not given away for the other."""
    bench = GangBench(2, 2)
    for task in range(1, 5):
        bench.add(task)
    bench.go()
    bench.reserve(5, 2, 2)
    for task in range(6, 40):
        bench.add(task)
    for ended, task in enumerate((1, 2, 3, 4), 1):
        bench.finish(task)
        assert bench.started() == []
        assert bench.granted(5) == (ended == 4)
    bench.close(5)
    assert bench.started() == [6, 7, 8, 9]


def test_the_older_gang_comes_first_and_a_small_one_fills_no_gap_that_it_needs() -> None:
    """R11, R8."""
    bench = GangBench(4)
    bench.add(1, need_of(Resources(2)))
    bench.go()
    bench.reserve(2, 2, 2)
    bench.reserve(3, 1)
    assert not bench.granted(2)
    assert not bench.granted(3)
    bench.finish(1)
    assert bench.granted(2)
    assert not bench.granted(3)


def test_tasks_go_on_while_a_gang_waits_for_another_gang() -> None:
    """R11: whoever holds the first may need a task that stands behind the second."""
    bench = GangBench(2)
    bench.reserve(1, 1)
    bench.reserve(2, 2)
    bench.add(3)
    bench.add(4, need_of(Resources(2)))
    bench.add(5)
    assert bench.started() == [3]
    bench.finish(3)
    assert bench.started() == [5]


def test_tasks_of_a_bundle_stand_in_order_there() -> None:
    """R11, R7, R8: a large one is not starved by small ones of the same bundle, and others do not wait for it."""
    bench = GangBench(4)
    bench.reserve(1, 2)
    bench.go()
    bench.add_in(2, 1)
    bench.add_in(3, 1, cpus=2)
    bench.add_in(4, 1)
    bench.add(5)
    bench.add(6)
    assert sorted(bench.started()) == [2, 5, 6]
    bench.finish(2)
    assert bench.started() == [3]
    bench.finish(3)
    assert bench.started() == [4]


def test_closing_ends_what_waits_and_keeps_what_runs() -> None:
    """R11."""
    bench = GangBench(2)
    bench.reserve(1, 2)
    bench.go()
    for task in (2, 3, 4):
        bench.add_in(task, 1)
    bench.add_in(5, 1, 0)
    bench.scheduler.submit(Task(6, "dependent", CPU, [3], placement=Placement(reservation=1)))
    assert bench.started() == [2, 3]
    bench.close(1)
    assert [bench.ending(task) for task in (4, 5, 6)] == [Displaced()] * 3
    assert bench.free_cpus() == [0]
    bench.finish(2)
    assert bench.free_cpus() == [1]
    assert isinstance(bench.ending(2), Ended)
    bench.add_in(7, 1)
    assert bench.ending(7) == Displaced()
    bench.close(1)


def test_a_task_of_a_closed_reservation_is_not_tried_again() -> None:
    """R11, F5: it fails with its own error."""
    bench = GangBench(1)
    bench.reserve(1, 1)
    bench.go()
    bench.add(2, placement=Placement(reservation=1), retries=3)
    bench.go()
    bench.close(1)
    bench.finish(2, Tag.ERROR, retryable=True)
    assert isinstance(bench.ending(2), Ended)


def test_a_gang_that_waits_can_be_given_up() -> None:
    """R11: after a time-out nothing is held, and nobody waits behind it."""
    bench = GangBench(2)
    bench.add(1)
    bench.go()
    bench.reserve(2, 2)
    bench.add(3)
    assert bench.started() == []
    bench.close(2)
    assert isinstance(bench.ending(2), Cancelled)
    assert [action.task for action in bench.seen if hasattr(action, "grant")] == [1, 3]


def test_what_a_call_has_reserved_ends_with_it() -> None:
    """R11: whether it had it or still waited, and however it ended."""
    bench = GangBench(3)
    bench.add(1)
    bench.go()
    bench.reserve(2, 1, by=1)
    bench.reserve(3, 3, by=1)
    assert bench.granted(2)
    bench.scheduler.lost(bench.call(1), Death("host"))
    assert isinstance(bench.ending(3), Cancelled)
    assert bench.free_cpus() == [3]


def test_a_waiting_task_may_reserve_what_it_has_lent() -> None:
    """R11, R6: with one cpu; it goes on with the cpu while its bundle is idle, and lends it to what runs there."""
    bench = GangBench(1)
    bench.add(1)
    bench.go()
    bench.reserve(2, 1, by=1)
    bench.wait(7, 1, 2)
    assert bench.wakes() == {7: Wake.READY}
    bench.add_in(3, 2, 0)
    bench.add(4)
    assert bench.started() == [], "the only cpu is used"
    bench.wait(8, 1, 3)
    assert bench.started() == [3], "and 4 has no claim on it"
    bench.finish(3)
    assert bench.wakes() == {7: Wake.READY, 8: Wake.READY}
    bench.finish(1)
    assert bench.started() == [4]
    assert bench.free_cpus() == [0]


def test_a_reservation_never_keeps_a_task_from_going_on() -> None:
    """R11, R6: the driver reserves what waiting tasks have lent, and may then wait for those tasks."""
    bench = GangBench(1)
    bench.scheduler.underway.add(99)
    bench.add(1)
    bench.go()
    bench.add(2, parent=1)
    bench.wait(7, 1, 2)
    assert bench.started() == [2]
    bench.reserve(3, 1)
    assert not bench.granted(3)
    bench.wait(8, 2, 99)
    assert bench.granted(3)
    bench.add_in(4, 3)
    assert bench.started() == [4]
    bench.scheduler.arrive(99, Tag.VALUE)
    assert bench.wakes() == {}, "the cpu is used"
    bench.add_in(5, 3)
    bench.finish(4)
    assert bench.wakes() == {8: Wake.READY}
    assert bench.started() == []
    bench.finish(2)
    assert bench.wakes() == {8: Wake.READY, 7: Wake.READY}
    bench.finish(1)
    assert bench.started() == [5]


def test_two_owners_that_wait_for_each_others_bundles() -> None:
    """R11, N2: one is told, and the other gets its bundles when that one ends."""
    bench = GangBench(4, gpus=2)
    for task in (1, 2):
        bench.add(task)
    bench.go()
    for task in (1, 2):
        bench.reserve(10 + task, 1, gpus=1, by=task)
        assert bench.granted(10 + task)
    bench.reserve(21, 1, gpus=1, by=1)
    bench.wait(7, 1, 21)
    assert bench.wakes() == {}
    bench.reserve(22, 1, gpus=1, by=2)
    bench.wait(8, 2, 22)
    told = bench.wakes()
    assert list(told.values()) == [Wake.DEADLOCK]
    victim = 1 if 7 in told else 2
    bench.finish(victim, Tag.ERROR)
    assert bench.granted(20 + 3 - victim)


def test_the_driver_may_still_close_what_it_holds() -> None:
    """R11, N2: nobody is told as long as it may."""
    bench = GangBench(2, gpus=1)
    bench.reserve(1, 1, gpus=1)
    bench.add(2)
    bench.go()
    bench.reserve(3, 1, gpus=1, by=2)
    bench.wait(7, 2, 3)
    assert bench.wakes() == {}
    bench.close(1)
    assert bench.wakes() == {7: Wake.READY}


def test_a_child_that_needs_what_its_parent_holds_of_a_bundle() -> None:
    """R11, N2: that the driver may close the reservation helps nobody who waits in it."""
    bench = GangBench(2, gpus=1)
    bench.reserve(1, 2, gpus=1)
    bench.go()
    bench.add_in(2, 1, gpus=1)
    bench.go()
    bench.add_in(3, 1, gpus=1)
    bench.wait(7, 2, 3)
    assert bench.wakes() == {7: Wake.DEADLOCK}


def test_a_bundle_of_a_lost_node_moves_when_there_is_room() -> None:
    """R11: tasks for it wait until then; the other bundles are not touched."""
    bench = GangBench(1, 1, 1)
    bench.reserve(1, 1, 1, strategy="strict_spread")
    bench.go()
    places = [place.node for place in bench.scheduler.reservations.places[1]]
    spare = next(node for node in bench.nodes if node.id not in places)
    lost = next(node for node in bench.nodes if node.id == places[0])
    bench.add(2)
    bench.add_in(3, 1, 0)
    assert sorted(bench.started()) == [2, 3]
    assert bench.node_of(2) == spare.id
    bench.lose(lost)
    bench.scheduler.lost(bench.call(3), Death("host"))
    bench.add_in(4, 1, 0)
    bench.add_in(5, 1, 1)
    assert bench.started() == [5]
    assert bench.scheduler.reservations.places[1][0].node is None
    bench.finish(2)
    assert bench.started() == [4]
    assert bench.node_of(4) == spare.id
    assert bench.node_of(5) == places[1]


def test_a_lost_bundle_comes_back_before_what_is_younger() -> None:
    """R11, R7: it has the place of its reservation."""
    bench = GangBench(1, 1)
    bench.reserve(1, 1)
    bench.go()
    (place,) = bench.scheduler.reservations.places[1]
    bench.add(2)
    bench.add(3)
    assert bench.started() == [2]
    bench.lose(next(node for node in bench.nodes if node.id == place.node))
    bench.finish(2)
    assert bench.started() == []
    bench.add_in(4, 1)
    assert bench.started() == [4]
    bench.close(1)
    bench.finish(4)
    assert bench.started() == [3]


@pytest.mark.parametrize("retries", [0, 1])
def test_a_task_whose_node_is_gone_is_told(retries: int) -> None:
    """R12: it would wait for ever; one that may wait for nodes does."""
    bench = GangBench(1, 1)
    for task in (1, 2, 3):
        bench.add(task, placement=Placement(node="node1"), retries=retries, patient=task == 3)
    assert bench.started() == [1]
    bench.take_nodes(bench.nodes[0])
    bench.scheduler.lost(bench.call(1), Death("host"))
    bench.go(30)
    assert bench.ending(2) == NodeGone("node1")
    error = failure_of("train", NodeGone("node1"))
    assert isinstance(error, InfeasibleResources)
    assert "train" in str(error)
    assert "node1" in str(error)
    assert bench.ending(1) is not None
    assert bench.ending(3) is None
    bench.take_nodes(*bench.nodes)
    assert bench.started() == [3]


def test_a_wish_is_given_up_when_its_node_is_gone() -> None:
    """R12: until then it is waited for."""
    bench = GangBench(1, 1)
    bench.add(1, placement=Placement(node="node1"))
    bench.add(2, placement=Placement(node="node1", soft=True))
    assert bench.started() == [1]
    bench.take_nodes(bench.nodes[0])
    assert bench.started() == [2]
    assert bench.node_of(2) == "node"


def test_placed_tasks_hold_back_only_their_own_node() -> None:
    """R12, R7: one that waits for a whole node has it kept there, and not elsewhere."""
    bench = GangBench(2, 2)
    bench.add(1, placement=Placement(node="node1"))
    bench.add(2, need_of(Resources(2)), placement=Placement(node="node1"))
    bench.add(3, placement=Placement(node="node1"))
    bench.add(4)
    bench.add(5)
    assert sorted(bench.started()) == [1, 4, 5]
    bench.finish(1)
    assert bench.started() == [2]


def test_spread_goes_where_least_runs() -> None:
    """R12: also where cpus would say otherwise."""
    bench = GangBench(8, 2)
    for task in range(1, 5):
        bench.add(task, need_of(Resources(0.5)), placement=Placement(spread=True))
    assert len(bench.started()) == 4
    assert [bench.node_of(task) for task in range(1, 5)] == ["node", "node1"] * 2


def test_a_plain_call_does_not_wait_for_a_gang_that_waits_for_a_gang() -> None:
    """R11: the end of plain calls would not help it."""
    bench = GangBench(2)
    bench.reserve(2, 1)
    bench.go()
    bench.reserve(4, 2)
    bench.go()
    assert bench.scheduler.barrier() == float("inf")
    bench.close(2)
    bench.go()
    bench.reserve(6, 1)
    bench.close(4)
    bench.add(8)
    bench.go()
    bench.reserve(10, 2)
    bench.close(6)
    bench.go()
    assert bench.scheduler.barrier() == 10

"""Chapter R: where single tasks run."""

from __future__ import annotations

from typing import Any

import pytest

import polyexec
from polyexec import Executor, NodeAffinity
from polyexec.testing import bodies
from polyexec.testing.helpers import LIMIT, require
from polyexec.testing.marks import clause
from polyexec.testing.target import Target
from polyexec.testing.tools import Gate, Marks


@polyexec.task(strategy="spread")
def spread(number: int) -> int:
    """Return the number."""
    return number


def _alive(ex: Executor) -> list[Any]:
    return [node for node in ex.resources().nodes if node.alive]


@clause("R12")
def test_placed_tasks_run(ex: Executor) -> None:
    """R12 ``strategy``, ``node`` and ``labels`` are accepted wherever they can be met, whatever the nodes."""
    nodes = _alive(ex)
    placed: list[dict[str, Any]] = [{"strategy": "spread"}, {"strategy": "default"}, {"labels": {}}]
    placed += [{"node": node.id} for node in nodes]
    placed += [{"node": NodeAffinity(node.id, soft=True)} for node in nodes]
    placed += [{"labels": dict(node.labels), "strategy": "spread", "node": node.id} for node in nodes]
    placed += [{"node": NodeAffinity("no-such-node", soft=True)}]
    futures = [ex.options(**options).submit(bodies.add, number, 0) for number, options in enumerate(placed)]
    assert [future.result(LIMIT) for future in futures] == list(range(len(placed)))
    assert [ex.submit(spread, number).result(LIMIT) for number in range(3)] == [0, 1, 2]


@clause("R12")
def test_a_task_holds_its_request_on_the_node_that_it_names(
    ex: Executor, gate: Gate, marks: Marks, target: Target
) -> None:
    """R12 ``resources`` shows it there."""
    for node in _alive(ex):
        future = ex.options(node=node.id).submit(bodies.pass_gate, marks, gate, node.id)
        marks.wait_for(f"start {node.id}")
        if not target.capabilities.inline:
            seen = next(other for other in ex.resources().nodes if other.id == node.id)
            assert seen.total.cpus - seen.available.cpus >= 1
        gate.open()
        assert future.result(LIMIT) == node.id


@clause("R12")
@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({"node": "no-such-node"}, "no-such-node"),
        ({"node": NodeAffinity("no-such-node")}, "no-such-node"),
        ({"labels": {"no-such-label": "there"}}, "no-such-label"),
        ({"node": NodeAffinity("no-such-node", soft=True), "labels": {"no-such-label": "there"}}, "no-such-label"),
    ],
    ids=str,
)
def test_what_no_node_meets_is_refused(ex: Executor, marks: Marks, options: dict[str, Any], asked: str) -> None:
    """R12 ``submit`` raises ``InfeasibleResources``, with what was asked for and the nodes that there are."""
    with pytest.raises(polyexec.InfeasibleResources) as caught:
        ex.options(name="choosy", **options).submit(bodies.mark, marks, "ran")
    text = str(caught.value)
    assert "choosy" in text
    assert asked in text
    assert all(node.id in text for node in _alive(ex))
    assert marks.lines() == []


@clause("R12", "R3")
def test_a_task_may_wait_for_its_node(ex: Executor, marks: Marks, target: Target) -> None:
    """R12 With ``infeasible="wait"`` it waits for a node that may come, holds back nobody, and can be cancelled."""
    if target.capabilities.inline:
        pytest.skip("a task that waits would never let submit return")
    future = ex.options(node="later", infeasible="wait").submit(bodies.mark, marks, "ran")
    assert [ex.submit(bodies.add, number, 0).result(LIMIT) for number in range(4)] == [0, 1, 2, 3]
    assert not future.done()
    assert ex.cancel(future) is True
    assert marks.lines() == []


@clause("R12")
@pytest.mark.parametrize(
    "options",
    [{"strategy": "scatter"}, {"node": 3}, {"labels": "gpu"}, {"labels": {"gpu": 1}}, {"bundle": None}],
    ids=str,
)
def test_wrong_wishes_are_refused(ex: Executor, options: dict[str, Any]) -> None:
    """R12 What is no place raises ``SpecificationError`` from ``options``."""
    with pytest.raises(polyexec.SpecificationError):
        ex.options(**options)


@clause("R12", "F5")
def test_a_new_attempt_may_be_placed_otherwise(ex: Executor, marks: Marks) -> None:
    """R12 A ``retry`` hook may name another node, and labels; where there are no such, the task fails."""
    node = _alive(ex)[0]

    def fail_once(label: str) -> str:
        marks.add(label)
        if marks.count(label) == 1:
            raise ValueError(label)
        return label

    for label, place in (("good", {"node": node.id, "strategy": "spread"}), ("bad", {"node": "no-such-node"})):
        choosy = ex.options(retries=1, retry_on=ValueError, retry=lambda _, __, old, place=place: old.evolve(**place))
        future = choosy.submit(fail_once, label)
        if label == "good":
            assert future.result(LIMIT) == label
        else:
            assert isinstance(future.exception(LIMIT), polyexec.InfeasibleResources)
    assert marks.lines() == ["good", "good", "bad"]


@clause("R12")
def test_tasks_place_tasks(ex: Executor) -> None:
    """R12 Placement means the same in tasks; a failed one runs again where it may."""
    require(ex, cpus=2)

    def work() -> Any:
        executor = polyexec.current()
        node = next(node.id for node in executor.resources().nodes if node.alive)
        placed = executor.options(node=node, strategy="spread", retries=1).submit(bodies.add, 1, 1)
        try:
            executor.options(node="no-such-node").submit(bodies.add, 1, 1)
        except polyexec.InfeasibleResources as error:
            return placed.result(), str(error)
        return placed.result(), "accepted"

    value, text = ex.submit(work).result(LIMIT)
    assert value == 2
    assert "no-such-node" in text

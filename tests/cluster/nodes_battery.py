"""What must hold on two real nodes of two cpus each, labelled ``zone=a`` and ``zone=b``."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

import polyexec
from polyexec import Executor, NodeAffinity
from polyexec.testing import bodies
from polyexec.testing.executors import until_idle
from polyexec.testing.tools import Gate, Marks

LIMIT = 60.0


def check_everything(ex: Executor, where: Callable[[], str], folder: str) -> None:
    """Run all checks.

    Args:
        ex: an executor on the two nodes.
        where: a task that gives the id of the node on which it runs.
        folder: for marks.
    """
    nodes = {node.labels["zone"]: node.id for node in ex.resources().nodes if node.alive}
    assert sorted(nodes) == ["a", "b"]
    for check in (_tasks, _spread_tasks, _strategies, _infeasible, _gangs_take_turns):
        check(ex, where, nodes, folder)
        until_idle(ex)


def _tasks(ex: Executor, where: Callable[[], str], nodes: dict[str, str], folder: str) -> None:
    """R12 Hard and soft affinity, and labels."""
    for zone, node in nodes.items():
        for options in ({"node": node}, {"node": NodeAffinity(node, soft=True)}, {"labels": {"zone": zone}}):
            placed = ex.options(**options)
            futures = [placed.submit(where) for _ in range(5)]
            assert {future.result(LIMIT) for future in futures} == {node}, (zone, options)
    elsewhere = ex.options(node=NodeAffinity("no-such-node", soft=True), labels={"zone": "b"})
    assert elsewhere.submit(where).result(LIMIT) == nodes["b"]


def _spread_tasks(ex: Executor, where: Callable[[], str], nodes: dict[str, str], folder: str) -> None:
    """R12 Two tasks that run at the same time are on two nodes, also if they hold no cpu."""
    for cpus in (1, 0):
        marks, gate = Marks(f"{folder}/marks-{cpus}"), Gate(f"{folder}/gate-{cpus}")
        spread = ex.options(strategy="spread", cpus=cpus)
        futures = [spread.submit(_where_at, where, marks, gate) for _ in range(2)]
        marks.wait_for("start", 2, LIMIT)
        gate.open()
        assert {future.result(LIMIT) for future in futures} == set(nodes.values())


def _where_at(where: Callable[[], str], marks: Marks, gate: Gate) -> str:
    marks.add("start")
    gate.wait()
    return where()


def _strategies(ex: Executor, where: Callable[[], str], nodes: dict[str, str], folder: str) -> None:
    """R11 Each strategy puts its bundles where Ray's would, and their tasks run there."""
    one = {"cpus": 1}
    for strategy, count, used in (
        ("pack", 2, 1),
        ("pack", 3, 2),
        ("strict_pack", 2, 1),
        ("spread", 2, 2),
        ("spread", 3, 2),
        ("spread", 4, 2),
        ("strict_spread", 2, 2),
    ):
        with ex.reserve([one] * count, strategy=strategy, timeout=LIMIT) as group:
            assert len(set(group.nodes)) == used, strategy
            assert [group[index].submit(where).result(LIMIT) for index in range(count)] == list(group.nodes)
            assert {group.executor.submit(where).result(LIMIT) for _ in range(4)} <= set(group.nodes)
            for node in ex.resources().nodes:
                assert node.total.cpus - node.available.cpus == group.nodes.count(node.id)
    for zone, node in nodes.items():
        with ex.options(labels={"zone": zone}).reserve([one, one], strategy="spread", timeout=LIMIT) as group:
            assert group.nodes == (node, node)


def _infeasible(ex: Executor, where: Callable[[], str], nodes: dict[str, str], folder: str) -> None:
    """R11, R12 What the two nodes could never meet is refused, with both of them named."""
    one = {"cpus": 1}
    for bundles, strategy in (([one] * 3, "strict_pack"), ([one] * 3, "strict_spread"), ([{"cpus": 3}], "pack")):
        with pytest.raises(polyexec.InfeasibleResources, match=strategy):
            ex.reserve(bundles, strategy=strategy)
    with pytest.raises(polyexec.InfeasibleResources) as caught:
        ex.options(labels={"zone": "c"}).submit(where)
    assert all(node in str(caught.value) for node in nodes.values())
    with pytest.raises(polyexec.InfeasibleResources, match="zone"):
        ex.options(node=nodes["a"], labels={"zone": "b"}).submit(where)
    with pytest.raises(polyexec.InfeasibleResources, match=nodes["a"]):
        ex.options(node=nodes["a"], cpus=3).submit(where)


def _gangs_take_turns(ex: Executor, where: Callable[[], str], nodes: dict[str, str], folder: str) -> None:
    """R11 Gangs over both nodes that do not fit together: each holds all or nothing, and all come to their end."""
    marks = Marks(f"{folder}/gangs")

    def use(count: int, strategy: str) -> None:
        for _ in range(4):
            with ex.reserve([{"cpus": 1}] * count, strategy=strategy, timeout=LIMIT) as group:
                futures = [group[index].submit(bodies.mark, marks, "ran") for index in range(count)]
                ex.wait(futures, timeout=LIMIT)

    gangs = ((3, "spread"), (2, "strict_spread"), (4, "pack"), (2, "strict_pack"))
    with ThreadPoolExecutor(len(gangs)) as pool:
        for done in [pool.submit(use, *gang) for gang in gangs]:
            done.result(2 * LIMIT)
    assert marks.count("ran") == 4 * (3 + 2 + 4 + 2)

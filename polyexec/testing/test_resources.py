"""Chapter R: what tasks hold."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

import polyexec
from polyexec import Executor, Resources
from polyexec.testing import bodies
from polyexec.testing.executors import idle
from polyexec.testing.helpers import LIMIT, hold, require
from polyexec.testing.marks import clause, deviation
from polyexec.testing.target import SHARED_KEYS, Target
from polyexec.testing.tools import Gate, Marks, eventually

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def _most_held(lines: list[str]) -> Counter[str]:
    """Add up what the marks say was held at the same time, and give the most of each."""
    held: Counter[str] = Counter()
    most: Counter[str] = Counter()
    for line in lines:
        word, *amounts = line.split()
        sign = 1 if word == "begin" else -1
        for name, _, amount in (text.partition("=") for text in amounts):
            held[name] += round(sign * float(amount) * 1000)
        most |= held
    assert not +held
    return most


@clause("R1")
def test_running_tasks_never_hold_more_than_there_is(ex: Executor, marks: Marks) -> None:
    """R1 The sum of what running tasks hold never exceeds the total: cpus, gpus, memory, custom."""
    require(ex, cpus=2, gpus=2, license=1, disk=2)
    chance, total, futures = random.Random(1), ex.resources().total, []
    for _ in range(60):
        amounts = {
            "cpus": chance.choice([0.5, 1, 1, 2]),
            "gpus": chance.choice([0, 0, 0.5, 1, 2]),
            "memory": chance.choice([0, 0, total.memory // 2 + 1]),
            "license": chance.choice([0, 0, 1]),
            "disk": chance.choice([0, 0.75, 2]),
        }
        custom = {name: amounts[name] for name in ("license", "disk")}
        options = {name: amounts[name] for name in ("cpus", "gpus", "memory")}
        futures.append(ex.options(**options, resources=custom).submit(bodies.use, marks, amounts))
    for future in futures:
        future.result(LIMIT)
    assert marks.count("begin") == marks.count("end") == len(futures)
    limits = {"cpus": total.cpus, "gpus": total.gpus, "memory": total.memory, **total.custom}
    for name, amount in _most_held(marks.lines()).items():
        assert amount <= limits[name] * 1000, f"{amount / 1000:g} {name} were held at the same time"


@clause("R2")
def test_fractions(ex: Executor, target: Target, marks: Marks, new_gate: Callable[[], Gate]) -> None:
    """R2 Four tasks of half a cpu and of a quarter of one gpu run at the same time."""
    require(ex, cpus=2, gpus=2)
    count = 1 if target.capabilities.inline else 4
    shared = ex.options(cpus=0.5, gpus=0.5)
    futures = [shared.submit(bodies.visible_devices, marks, count, number) for number in range(4)]
    assert [len(future.result(LIMIT).split(",")) for future in futures] == [1] * 4
    quarter = ex.options(cpus=0, gpus=0.25).submit(bodies.visible_devices, marks, 1, "quarter")
    assert quarter.result(LIMIT)


@clause("R2")
def test_a_task_of_no_cpu_takes_none(ex: Executor, gate: Gate, marks: Marks, target: Target) -> None:
    """R2 ``cpus=0`` takes none: such a task runs although all cpus are held."""
    require(ex, cpus=1)
    holders = hold(ex, marks, gate, int(ex.resources().total.cpus))
    assert ex.options(cpus=0).submit(bodies.add, 1, 1).result(LIMIT) == 2
    if not target.capabilities.inline:
        assert not any(holder.done() for holder in holders)
        assert ex.resources().available.cpus == 0
    gate.open()
    assert len([holder.result(LIMIT) for holder in holders]) == len(holders)


@clause("R3")
@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({"cpus": 10_000}, "10000 cpus"),
        ({"gpus": 10_000}, "10000 gpus"),
        ({"memory": "900TB"}, "818.55 TiB"),
        ({"resources": {"license": 10_000}}, "10000 license"),
        ({"resources": {"no-such-thing": 1}}, "1 no-such-thing"),
    ],
    ids=str,
)
def test_what_no_node_could_meet_is_refused(ex: Executor, marks: Marks, options: dict[str, Any], asked: str) -> None:
    """R3 ``submit`` raises ``InfeasibleResources`` with what was asked for and what exists."""
    with pytest.raises(polyexec.InfeasibleResources) as caught:
        ex.options(name="greedy", **options).submit(bodies.mark, marks, "ran")
    text = str(caught.value)
    assert "greedy" in text
    assert asked in text
    assert f"{ex.resources().total.cpus:g} cpus" in text
    assert marks.lines() == []


@clause("R3")
def test_a_request_may_wait_for_the_cluster_to_grow(ex: Executor, marks: Marks, target: Target) -> None:
    """R3 With ``infeasible="wait"`` it waits instead, and can be cancelled."""
    if target.capabilities.inline:
        pytest.skip("a task that waits would never let submit return")
    future = ex.options(cpus=10_000, infeasible="wait").submit(bodies.mark, marks, "ran")
    assert ex.wait([future], timeout=0.05) == ([], [future])
    assert ex.submit(bodies.add, 1, 1).result(LIMIT) == 2
    assert ex.cancel(future) is True
    assert future.cancelled()


@clause("R4")
def test_resources_say_what_there_is(ex: Executor, target: Target) -> None:
    """R4 ``resources`` gives total and available, in all and by node, as the executor was opened."""
    resources = ex.resources()
    nodes = [node for node in resources.nodes if node.alive]
    if target.own_cluster:
        assert (resources.total.cpus, resources.total.gpus) == (SHARED_KEYS["workers"], SHARED_KEYS["gpus"])
        assert dict(resources.total.custom) == {"license": 1, "disk": 2}
    assert isinstance(resources.total, Resources)
    for name in ("cpus", "gpus", "memory"):
        assert sum(getattr(node.total, name) for node in nodes) == getattr(resources.total, name)
        assert sum(getattr(node.available, name) for node in nodes) == getattr(resources.available, name)
    assert all(node.id and node.host for node in nodes)
    assert len({node.id for node in nodes}) == len(nodes)
    assert resources.total.memory > 0


@clause("R4")
def test_resources_say_what_is_left(ex: Executor, gate: Gate, marks: Marks, target: Target) -> None:
    """R4 What a running task holds is not available; after it ends, available equals total."""
    require(ex, cpus=2, license=1)
    future = ex.options(cpus=1.5, resources={"license": 1}).submit(bodies.pass_gate, marks, gate)
    marks.wait_for("start")
    if not target.capabilities.inline:
        resources = ex.resources()
        assert resources.total.cpus - resources.available.cpus == 1.5
        assert resources.available.custom.get("license", 0) == resources.total.custom["license"] - 1
        assert sum(node.available.cpus for node in resources.nodes) == resources.available.cpus
    gate.open()
    future.result(LIMIT)
    eventually(lambda: idle(ex), "available equals total")


@clause("R4")
def test_resources_from_a_task(ex: Executor) -> None:
    """R4 A task sees the same resources, and that it holds some."""

    def look() -> tuple[float, float]:
        resources = polyexec.current().resources()
        return resources.total.cpus, resources.available.cpus

    total = ex.resources().total.cpus
    assert ex.options(cpus=1).submit(look).result(LIMIT) == (total, total - 1)


@clause("R5")
def test_gpus_of_tasks_are_disjoint(ex: Executor, marks: Marks, target: Target) -> None:
    """R5 Tasks that run at the same time on a node see disjoint ``CUDA_VISIBLE_DEVICES``."""
    require(ex, cpus=2, gpus=2)
    partners = 1 if target.capabilities.inline else 2
    one = ex.options(gpus=1, cpus=1)
    seen = [one.submit(bodies.visible_devices, marks, partners, number) for number in range(2)]
    devices = [future.result(LIMIT) for future in seen]
    assert all(device.isdigit() for device in devices)
    assert target.capabilities.inline or len(set(devices)) == 2


@clause("R5")
def test_a_task_sees_as_many_gpus_as_it_holds(ex: Executor, marks: Marks) -> None:
    """R5 A task sees exactly the gpus that it holds, each time, whatever ran before."""
    require(ex, gpus=2)
    for gpus, expected in ((2, 2), (1, 1), (2, 2), (0.5, 1)):
        seen = ex.options(gpus=gpus).submit(bodies.visible_devices, marks, 1, gpus).result(LIMIT)
        assert len(set(seen.split(","))) == expected
        assert all(device.isdigit() for device in seen.split(","))


@deviation("R5")
def test_gpus_are_those_of_the_process(ex: Executor, marks: Marks) -> None:
    """R5 (declared) The variable belongs to the process: a task that runs alone sees as many gpus as it holds."""
    for gpus, expected in ((2, 2), (1, 1), (0.5, 1)):
        seen = ex.options(gpus=gpus).submit(bodies.visible_devices, marks, 1, gpus).result(LIMIT)
        assert len(set(seen.split(","))) == expected


@clause("R10")
def test_thread_pools_are_as_large_as_the_task_has_cpus(ex: Executor) -> None:
    """R10 BLAS and OpenMP are told to use as many threads as the task has cpus, at least 1."""
    require(ex, cpus=2)
    for cpus, expected in ((1, "1"), (2, "2"), (0.5, "1"), (0, "1"), (1, "1")):
        assert ex.options(cpus=cpus).submit(bodies.variables, *_THREADS).result(LIMIT) == [expected] * len(_THREADS)


@deviation("R10")
def test_thread_pools_are_those_of_the_process(ex: Executor) -> None:
    """R10 (declared) Tasks share the driver's process: pools are as large as there; ``env`` sets the variables."""
    for cpus in (1, 2):
        seen = ex.options(cpus=cpus).submit(bodies.variables, *_THREADS).result(LIMIT)
        assert seen == [os.environ.get(name) for name in _THREADS]
    chosen = ex.options(env={"OMP_NUM_THREADS": "7"}).submit(bodies.variables, "OMP_NUM_THREADS")
    assert chosen.result(LIMIT) == ["7"]


@clause("R10")
def test_env_overrides_the_size_of_thread_pools(ex: Executor) -> None:
    """R10 ``env`` says otherwise where it does, and for that task alone."""
    chosen = ex.options(cpus=1, env={"OMP_NUM_THREADS": "7"})
    assert chosen.submit(bodies.variables, *_THREADS).result(LIMIT) == ["7", "1", "1"]
    assert ex.options(cpus=1).submit(bodies.variables, *_THREADS).result(LIMIT) == ["1", "1", "1"]

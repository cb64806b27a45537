"""Chapter R: bundles that are taken together."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import polyexec
from polyexec import Executor, Reservation
from polyexec.testing import bodies
from polyexec.testing.executors import idle
from polyexec.testing.helpers import LIMIT, require, require_processes
from polyexec.testing.marks import clause
from polyexec.testing.target import Target
from polyexec.testing.tools import Gate, Marks, eventually

_STRATEGIES = ("pack", "spread", "strict_pack", "strict_spread")


def _sum_in(group: Reservation, bundle: Executor, numbers: list[int]) -> int:
    """Use a reservation, and a view of one bundle, that came as arguments."""
    doubled = list(group.executor.map(bodies.add, numbers, numbers))
    return sum(future.result() for future in [bundle.submit(bodies.add, number, 0) for number in doubled])


def _reserve_more(bundles: list[dict[str, Any]]) -> str:
    """Reserve in a task what the task itself stands in the way of."""
    try:
        polyexec.current().reserve(bundles)
    except polyexec.DeadlockError as error:
        return f"deadlock: {error}"
    return "no deadlock"


def _leave_open() -> float:
    """Reserve in a task, and end without closing."""
    executor = polyexec.current()
    reservation = executor.reserve([{"resources": {"license": 1}}])
    assert len(reservation) == 1
    return executor.resources().available.custom.get("license", 0)


@clause("R11")
def test_bundles_hold_what_they_were_given(ex: Executor) -> None:
    """R11 What is reserved is not available to others, and is again after the end of the block."""
    require(ex, cpus=2, gpus=2, license=1)
    before = ex.resources()
    bundles: list[Any] = [{"cpus": 1, "gpus": 1}, polyexec.Resources(1, custom={"license": 1})]
    with ex.reserve(bundles) as group:
        during = ex.resources()
        assert during.total == before.total
        assert [node.id for node in during.nodes] == [node.id for node in before.nodes]
        assert before.available.cpus - during.available.cpus == 2
        assert before.available.gpus - during.available.gpus == 1
        assert during.available.custom.get("license", 0) == before.available.custom["license"] - 1
        assert len(group) == len(group.nodes) == 2
        assert set(group.nodes) <= {node.id for node in before.nodes}
        assert ex.options(cpus=0).submit(bodies.add, 1, 1).result(LIMIT) == 2
    assert idle(ex)


@clause("R11")
def test_tasks_run_in_their_bundle(ex: Executor, marks: Marks) -> None:
    """R11 They have what the bundle has, its gpus among it, though all else is reserved; options work as elsewhere."""
    require(ex, cpus=2, gpus=2)
    with ex.reserve([{"cpus": 1, "gpus": 1}, {"cpus": 1}]) as group:
        views = [group[0].options(gpus=1, name=str(number)) for number in range(3)]
        devices = {view.submit(bodies.visible_devices, marks, 1, "gpu").result(LIMIT) for view in views}
        assert len(devices) == 1
        assert len(devices.pop().split(",")) == 1
        assert group[-1].submit(bodies.add, 1, 1).result(LIMIT) == 2
        assert list(group.executor.map(bodies.add, range(20), range(20))) == [2 * number for number in range(20)]
        half = group[1].options(cpus=0.5)
        assert [half.submit(bodies.add, number, 0).result(LIMIT) for number in range(4)] == [0, 1, 2, 3]
        with pytest.raises(IndexError):
            group[2]


@clause("R11")
def test_a_bundle_is_never_overdrawn(ex: Executor, marks: Marks) -> None:
    """R11 Tasks in a bundle hold no more at a time than the bundle has."""
    require(ex, cpus=2)
    with ex.reserve([{"cpus": 1}, {"cpus": 1}]) as group:
        futures = [group[0].submit(bodies.use, marks, {"cpus": 1}) for _ in range(12)]
        ex.wait(futures, timeout=LIMIT)
    words = [line.split()[0] for line in marks.lines()]
    assert words == ["begin", "end"] * 12


@clause("R11")
def test_more_than_the_bundle_has_is_refused(ex: Executor) -> None:
    """R11 ``submit`` raises ``InfeasibleResources``, with what was asked for and what the bundle has."""
    require(ex, cpus=2)
    with ex.reserve([{"cpus": 1}, {"cpus": 1}]) as group:
        for view in (group[0], group.executor):
            with pytest.raises(polyexec.InfeasibleResources, match=r"greedy.* 2 cpus.* 1 cpus"):
                view.options(cpus=2, name="greedy").submit(bodies.add, 1, 1)
        with pytest.raises(polyexec.InfeasibleResources, match="gpus"):
            group[0].options(gpus=1).submit(bodies.add, 1, 1)


@clause("R11")
@pytest.mark.parametrize("strategy", _STRATEGIES)
def test_what_could_never_be_reserved_is_refused(ex: Executor, strategy: str) -> None:
    """R11 ``reserve`` raises ``InfeasibleResources`` at once; what is possible is given, by every strategy."""
    total, nodes = ex.resources().total, ex.resources().nodes
    count = math.floor(total.cpus) + 1
    with pytest.raises(polyexec.InfeasibleResources, match=strategy):
        ex.reserve([{"cpus": 1}] * count, strategy=strategy)
    if strategy == "strict_spread":
        with pytest.raises(polyexec.InfeasibleResources, match=strategy):
            ex.reserve([{}] * (len(nodes) + 1), strategy=strategy)
    with ex.reserve([{"cpus": 0.5}], strategy=strategy) as group:
        assert group[0].options(cpus=0.5).submit(bodies.add, 1, 1).result(LIMIT) == 2
    assert idle(ex)


@clause("R11")
@pytest.mark.parametrize(
    ("bundles", "strategy"),
    [([], "pack"), ([{"cpu": 1}], "pack"), ([1], "pack"), ([{"cpus": -1}], "pack"), ([{"cpus": 1}], "tight")],
    ids=str,
)
def test_wrong_bundles_are_refused(ex: Executor, bundles: list[Any], strategy: str) -> None:
    """R11 What is no bundle, or no strategy, raises ``SpecificationError``."""
    with pytest.raises(polyexec.SpecificationError):
        ex.reserve(bundles, strategy=strategy)


@clause("R11")
def test_nothing_is_held_after_a_timeout(ex: Executor) -> None:
    """R11 ``TimeoutError`` when the time is over; with 0 what is there is taken at once."""
    require(ex, cpus=2)
    total = math.floor(ex.resources().total.cpus)
    with ex.reserve([{"cpus": total - 1}], timeout=0):
        for timeout in (0, 0.05):
            with pytest.raises(TimeoutError):
                ex.reserve([{"cpus": 1}] * total, strategy="spread", timeout=timeout)
            assert ex.resources().available.cpus == ex.resources().total.cpus - (total - 1)
    with ex.reserve([{"cpus": 1}] * total, timeout=LIMIT):
        assert ex.resources().available.cpus < 1
    assert idle(ex)


@clause("R11", "N2")
def test_what_all_is_reserved_for_others_waits(ex: Executor, target: Target) -> None:
    """R11 A task outside of a reservation of everything waits; where its submitter would wait with it, it is told."""
    total = ex.resources().total.cpus
    with ex.reserve([{"cpus": total}]) as group:
        if target.capabilities.inline:
            with pytest.raises(polyexec.DeadlockError, match="reserved"):
                ex.submit(bodies.add, 1, 1)
            assert group[0].submit(bodies.add, 1, 1).result(LIMIT) == 2
            return
        waiting = ex.submit(bodies.add, 1, 1)
        assert group[0].submit(bodies.add, 1, 1).result(LIMIT) == 2
        assert not waiting.done()
    assert waiting.result(LIMIT) == 2


@clause("R11")
def test_two_gangs_that_do_not_fit_together_take_turns(ex: Executor, marks: Marks) -> None:
    """R11 While the second waits it holds nothing, so that others go on; it has its bundles when the first ends."""
    require(ex, cpus=2)
    total = math.floor(ex.resources().total.cpus)

    def second() -> None:
        with ex.reserve([{"cpus": 1}] * total, timeout=LIMIT) as group:
            marks.add("second has all")
            assert group[1].submit(bodies.mark, marks, "second runs").result(LIMIT)

    with ThreadPoolExecutor(1) as pool:
        with ex.reserve([{"cpus": 1}] * (total - 1)) as first:
            waiting = pool.submit(second)
            for number in range(30):
                assert ex.submit(bodies.mark, marks, f"other {number}").result(LIMIT)
                assert first[0].submit(bodies.mark, marks, f"first {number}").result(LIMIT)
        waiting.result(LIMIT)
    assert marks.lines()[-2:] == ["second has all", "second runs"]
    assert marks.count() == 62
    assert idle(ex)


@clause("R11")
def test_gangs_never_hold_parts_and_all_get_their_turn(ex: Executor, marks: Marks) -> None:
    """R11 Several threads reserve different gangs again and again: never more than there is, and all come to an end."""
    require(ex, cpus=2, gpus=2)

    def use(bundles: list[dict[str, float]]) -> None:
        held = " ".join(f"{name}={sum(bundle.get(name, 0) for bundle in bundles)}" for name in ("cpus", "gpus"))
        for _ in range(6):
            with ex.reserve(bundles, timeout=LIMIT):
                marks.add(f"begin {held}")
                marks.add(f"end {held}")

    gangs: list[list[dict[str, float]]] = [
        [{"cpus": 1}, {"gpus": 2}],
        [{"gpus": 1}, {"cpus": 2}, {"gpus": 1}],
        [{"cpus": 1, "gpus": 1}, {"cpus": 1}],
    ]
    with ThreadPoolExecutor(len(gangs)) as pool:
        for done in [pool.submit(use, gang) for gang in gangs]:
            done.result(LIMIT)
    held = {"cpus": 0.0, "gpus": 0.0}
    for line in marks.lines():
        word, *amounts = line.split()
        for name, _, amount in (text.partition("=") for text in amounts):
            held[name] += float(amount) if word == "begin" else -float(amount)
            assert held[name] <= getattr(ex.resources().total, name)
    assert marks.count("begin") == 18


@clause("R11", "R7")
def test_a_gang_is_not_starved(ex: Executor, marks: Marks, target: Target) -> None:
    """R11 It gets all its bundles although small tasks keep coming."""
    require(ex, cpus=2)
    total = int(ex.resources().total.cpus)
    if target.capabilities.inline:
        with ex.reserve([{"cpus": 1}] * total, timeout=LIMIT) as group:
            assert len(group) == total
        return

    def gang() -> int:
        with ex.reserve([{"cpus": 1}] * total, timeout=LIMIT) as group:
            return len(group)

    with ThreadPoolExecutor(1) as pool:
        pending = [ex.submit(bodies.use, marks, {"cpus": 1}) for _ in range(4 * total)]
        waiting = pool.submit(gang)
        submitted = 0
        while not waiting.done():
            done, pending = ex.wait(pending, num_returns=1, timeout=LIMIT)
            assert done, "the small tasks do not go on"
            pending += [ex.submit(bodies.use, marks, {"cpus": 1}) for _ in done]
            submitted += len(done)
            assert submitted < 2000, "the gang is starved by 2000 small ones"
        assert waiting.result(LIMIT) == total
    ex.wait(pending, timeout=LIMIT)


@clause("R11")
def test_close_gives_back_when_what_runs_has_ended(
    ex: Executor, new_gate: Callable[[], Gate], marks: Marks, target: Target
) -> None:
    """R11 What has not started fails, with an error that says why; what runs keeps its part; submits are refused."""
    require(ex, cpus=2)
    gate = new_gate()
    group = ex.reserve([{"cpus": 1}, {"cpus": 1}])
    if not target.capabilities.inline:
        running = group[0].submit(bodies.pass_gate, marks, gate, "running")
        marks.wait_for("start running")
        waiting = [group[0].submit(bodies.mark, marks, "ran"), group[0].submit(bodies.give, running)]
    group.close()
    if not target.capabilities.inline:
        for future in waiting:
            with pytest.raises(polyexec.ExecutorClosed, match="reservation"):
                future.result(LIMIT)
        resources = ex.resources()
        assert resources.total.cpus - resources.available.cpus == 1
        gate.open()
        assert running.result(LIMIT) == "running"
    group.close()
    with pytest.raises(polyexec.ExecutorClosed, match="reservation"):
        group[0].submit(bodies.mark, marks, "ran")
    with pytest.raises(polyexec.ExecutorClosed, match="reservation"):
        group.nodes  # noqa: B018
    eventually(lambda: idle(ex), "everything is available again")
    assert marks.count("ran") == 0


@clause("R11")
def test_a_task_uses_a_reservation_that_it_was_given(ex: Executor) -> None:
    """R11 Reservations and their views can be passed to tasks."""
    require(ex, cpus=2)
    with ex.reserve([{"cpus": 1}, {"cpus": 1}]) as group:
        coordinator = ex.options(cpus=0).submit(_sum_in, group, group[1], [1, 2, 3])
        assert coordinator.result(LIMIT) == 12
        assert group[0].submit(_sum_in, group, group[0], [1, 2, 3]).result(LIMIT) == 12


@clause("R11")
def test_a_task_reserves(ex: Executor) -> None:
    """R11 ``reserve`` works in tasks, which lend their cpus while they wait."""
    require(ex, cpus=2, gpus=2)

    def work() -> Any:
        executor = polyexec.current()
        with executor.reserve([{"cpus": 1, "gpus": 1}, {"gpus": 1}], strategy="spread", timeout=LIMIT) as group:
            inside = executor.resources().available
            return inside.gpus, len(group.nodes), group[0].options(gpus=1).submit(bodies.add, 1, 1).result()

    futures = [ex.submit(work) for _ in range(4)]
    assert [future.result(LIMIT) for future in futures] == [(ex.resources().total.gpus - 2, 2, 2)] * 4
    assert idle(ex)


@clause("R11", "R6")
def test_a_task_may_reserve_what_it_has_lent(ex: Executor) -> None:
    """R11 A task that holds a cpu reserves all of them, and waits for tasks there; several such tasks take turns."""
    total = ex.resources().total.cpus

    def work() -> Any:
        with polyexec.current().reserve([{"cpus": total}]) as group:
            return [group[0].submit(bodies.add, number, 0).result() for number in range(3)]

    futures = [ex.submit(work) for _ in range(4)]
    assert [future.result(LIMIT) for future in futures] == [[0, 1, 2]] * 4
    assert idle(ex)


@clause("R11", "N2")
def test_a_task_in_its_own_way_is_told(ex: Executor) -> None:
    """R11 A reservation that needs what the waiting task itself holds for good raises ``DeadlockError``."""
    require(ex, license=1)
    licensed = ex.options(resources={"license": 1})
    assert licensed.submit(_reserve_more, [{"resources": {"license": 1}}]).result(LIMIT).startswith("deadlock: ")
    eventually(lambda: idle(ex), "everything is available again")


@clause("R11")
def test_what_a_task_has_reserved_ends_with_it(ex: Executor) -> None:
    """R11 A task that ends without closing its reservation leaves nothing reserved."""
    require(ex, license=1)
    left = ex.resources().total.custom["license"] - 1
    assert [ex.submit(_leave_open).result(LIMIT) for _ in range(3)] == [left] * 3
    eventually(lambda: idle(ex), "everything is available again")


@clause("R11", "F3")
def test_a_worker_that_dies_in_a_bundle(ex: Executor, marks: Marks, target: Target) -> None:
    """R11 Its task alone fails; the bundle is there for the next one."""
    require_processes(target)
    require(ex, cpus=2)
    with ex.reserve([{"cpus": 1}, {"cpus": 1}]) as group:
        error = group[0].submit(bodies.die, marks, "SIGKILL").exception(LIMIT)
        assert isinstance(error, polyexec.WorkerDied)
        assert group[0].submit(bodies.add, 1, 1).result(LIMIT) == 2

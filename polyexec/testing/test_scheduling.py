"""Chapter R: which task starts when."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import polyexec
from polyexec import Executor
from polyexec.testing import bodies
from polyexec.testing.helpers import LIMIT, require
from polyexec.testing.marks import clause
from polyexec.testing.target import Target
from polyexec.testing.tools import Gate, Marks

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@clause("R6")
def test_a_task_that_waits_lends_its_cpus(ex: Executor, marks: Marks) -> None:
    """R6 A task that holds every cpu waits for a task that needs every cpu."""
    total = ex.resources().total.cpus

    def parent() -> Any:
        executor = polyexec.current()
        child = executor.options(cpus=total).submit(lambda: polyexec.current().resources().available.cpus)
        return child.result(), executor.resources().available.cpus

    assert ex.options(cpus=total).submit(parent).result(LIMIT) == (0, 0)


@clause("R7")
def test_a_big_task_is_not_starved(ex: Executor, marks: Marks, target: Target) -> None:
    """R7 A task that needs every cpu runs although small ones keep coming."""
    if target.capabilities.inline:
        assert ex.options(cpus=2).submit(bodies.mark, marks, "big").result(LIMIT) == "big"
        return
    total = int(ex.resources().total.cpus)
    pending = [ex.submit(bodies.use, marks, {"cpus": 1}) for _ in range(4 * total)]
    big = ex.options(cpus=total).submit(bodies.mark, marks, "big")
    submitted = 0
    while not big.done():
        done, pending = ex.wait(pending, num_returns=1, timeout=LIMIT)
        assert done, "the small tasks do not go on"
        pending += [ex.submit(bodies.use, marks, {"cpus": 1}) for _ in done]
        submitted += len(done)
        assert submitted < 1000, "the big task is starved by 1000 small ones"
    assert big.result(LIMIT) == "big"
    ex.wait(pending, timeout=LIMIT)


@clause("R8")
def test_equals_start_in_order_of_submission(single: Executor, gate: Gate, marks: Marks) -> None:
    """R8 Independent tasks of equal needs start in the order of submission."""
    single.submit(bodies.pass_gate, marks, gate, "first")
    futures = [single.submit(bodies.mark, marks, f"item {number}") for number in range(50)]
    gate.open()
    single.wait(futures, timeout=LIMIT)
    assert marks.values("item") == [str(number) for number in range(50)]


@clause("R8")
def test_priority_overrides(single: Executor, gate: Gate, marks: Marks, target: Target) -> None:
    """R8 A higher ``priority`` starts first; equals keep their order."""
    single.submit(bodies.pass_gate, marks, gate, "first")
    marks.wait_for("start first")
    futures = [
        single.options(priority=number % 3).submit(bodies.mark, marks, f"item {number % 3} {number}")
        for number in range(15)
    ]
    gate.open()
    single.wait(futures, timeout=LIMIT)
    started = [tuple(map(int, text.split())) for text in marks.values("item")]
    if target.capabilities.inline:
        assert started == sorted(started, key=lambda item: item[1])
    else:
        assert started == sorted(started, key=lambda item: (-item[0], item[1]))


@clause("R9")
def test_a_long_task_does_not_hold_back_short_ones(
    ex: Executor, new_gate: Callable[[], Gate], marks: Marks, target: Target
) -> None:
    """R9 Short tasks behind a long one all run on the other worker, also after many short ones in a row."""
    if target.capabilities.inline:
        assert [ex.submit(bodies.add, number, 0).result(LIMIT) for number in range(3)] == [0, 1, 2]
        return
    require(ex, cpus=2)
    for attempt in range(3):
        gate = new_gate()
        before = [ex.submit(bodies.add, number, 0) for number in range(40)]
        long = ex.submit(bodies.pass_gate, marks, gate, f"long {attempt}")
        behind = [ex.submit(bodies.add, number, 0) for number in range(40)]
        assert [future.result(LIMIT) for future in before + behind] == [*range(40), *range(40)]
        assert not long.done()
        gate.open()
        assert long.result(LIMIT) == f"long {attempt}"

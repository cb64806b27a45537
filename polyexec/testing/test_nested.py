"""Chapter N: tasks that submit tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import polyexec
from polyexec import Executor, Future
from polyexec.testing import bodies
from polyexec.testing.executors import idle
from polyexec.testing.helpers import LIMIT, error_of, require
from polyexec.testing.marks import clause
from polyexec.testing.target import Target
from polyexec.testing.tools import Gate, Marks, eventually


@clause("N1")
def test_eight_levels_with_one_worker(single: Executor) -> None:
    """N1 Eight nested levels finish with a single worker."""
    assert single.submit(bodies.descend, 8).result(LIMIT) == 8


@clause("N1")
def test_many_children_with_one_worker(single: Executor) -> None:
    """N1 A task waits for thirty others with a single worker; two such tasks do too."""
    parents = [single.submit(bodies.spread_out, 30) for _ in range(2)]
    assert [parent.result(LIMIT) for parent in parents] == [sum(range(30))] * 2


@clause("N1")
def test_a_tree_of_tasks(ex: Executor) -> None:
    """N1 A tree of tasks finishes with two workers."""

    def fibonacci(number: int) -> int:
        if number < 2:
            return number
        executor = polyexec.current()
        children = [executor.submit(fibonacci, number - 1), executor.submit(fibonacci, number - 2)]
        return sum(child.result() for child in children)

    assert ex.submit(fibonacci, 6).result(LIMIT) == 8


@clause("N1")
def test_a_task_may_use_the_whole_interface(ex: Executor) -> None:
    """N1 Inside a task ``current`` is an executor like any other: put, map, options, cancel, resources."""

    def work() -> Any:
        executor = polyexec.current()
        stored = executor.put([1, 2])
        mapped = list(executor.map(bodies.add, [1, 2], [10, 20]))
        pair: Any = executor.options(num_returns=2, name="inner").submit(bodies.give, 1, 2)
        left, right = pair
        failed = executor.submit(bodies.fail, ValueError("inner")).exception()
        done = executor.submit(bodies.give, stored)
        value = done.result()
        return value, mapped, left.result() + right.result(), str(failed), executor.cancel(done), done.done()

    assert ex.submit(work).result(LIMIT) == ([1, 2], [11, 22], 3, "inner", False, True)


@clause("N1")
def test_a_task_cancels_a_task(ex: Executor, gate: Gate, marks: Marks, target: Target) -> None:
    """N1 A task cancels another one that it has submitted."""
    if target.capabilities.inline:
        return

    def work() -> Any:
        executor = polyexec.current()
        child = executor.submit(bodies.beat, marks)
        marks.wait_for("beat")
        told = executor.cancel(child)
        try:
            child.result()
        except polyexec.TaskCancelled:
            return told, child.cancelled()
        return told, "not cancelled"

    require(ex, cpus=2)
    assert ex.submit(work).result(LIMIT) == (True, True)
    assert marks.lines()[-1] == "end"


@clause("N1")
def test_errors_pass_through_all_levels(ex: Executor) -> None:
    """N1 An error of the innermost task arrives at the outermost caller, as it was."""

    def level(number: int) -> Any:
        if number == 0:
            raise KeyError("innermost")
        return polyexec.current().submit(level, number - 1).result()

    error = ex.submit(level, 3).exception(LIMIT)
    assert type(error) is KeyError
    assert error.args == ("innermost",)


@clause("N1")
def test_current_outside_a_task(ex: Executor) -> None:
    """N1 Outside of tasks ``current`` raises, and says so."""
    with pytest.raises((polyexec.PolyexecError, RuntimeError), match="task"):
        polyexec.current()


@clause("N2")
@pytest.mark.parametrize("options", [{"gpus": 2}, {"resources": {"license": 1}}], ids=["gpus", "license"])
def test_waiting_for_what_oneself_holds(ex: Executor, marks: Marks, options: dict[str, Any]) -> None:
    """N2 A task that waits for one that needs what it holds itself gets ``DeadlockError``."""
    require(ex, gpus=2, license=1)
    answer = ex.options(**options).submit(bodies.held_by_parent, marks, options).result(LIMIT)
    assert answer.startswith("deadlock: ")
    eventually(lambda: idle(ex), "everything is available again")
    assert ex.options(**options).submit(bodies.add, 1, 1).result(LIMIT) == 2


@clause("N2")
def test_an_uncaught_deadlock_fails_the_waiting_task(ex: Executor, marks: Marks) -> None:
    """N2 A task that does not catch it fails with it, and a task of somebody else goes on."""
    require(ex, license=1)

    def parent() -> Any:
        child = polyexec.current().options(resources={"license": 1}, cpus=0).submit(bodies.mark, marks, "child")
        return polyexec.current().wait([child])

    future = ex.options(resources={"license": 1}).submit(parent)
    other = ex.submit(bodies.add, 1, 1)
    assert isinstance(future.exception(LIMIT), polyexec.DeadlockError)
    assert other.result(LIMIT) == 2


@clause("N2")
def test_a_wait_that_can_end_is_no_deadlock(
    ex: Executor, new_gate: Callable[[], Gate], marks: Marks, target: Target
) -> None:
    """N2 A wait that ends when an unrelated task frees what is needed does not raise."""
    if target.capabilities.inline:
        return
    require(ex, license=1)
    gate = new_gate()
    holder = ex.options(resources={"license": 1}, cpus=0).submit(bodies.pass_gate, marks, gate, "holder")
    marks.wait_for("start holder")

    def parent() -> Any:
        child = polyexec.current().options(resources={"license": 1}).submit(bodies.mark, marks, "child")
        marks.add("waiting")
        return child.result()

    future = ex.submit(parent)
    marks.wait_for("waiting")
    assert ex.wait([future], timeout=0.3) == ([], [future])
    gate.open()
    assert future.result(LIMIT) == "child"
    assert holder.result(LIMIT) == "holder"


@clause("N3")
def test_a_future_made_in_a_task_is_returned(ex: Executor) -> None:
    """N3 A Future made in a task can be returned and is still good after that task has ended."""
    future, value = ex.submit(bodies.make_child, "value").result(LIMIT)
    assert isinstance(future, Future)
    assert ex.wait([future], timeout=LIMIT) == ([future], [])
    assert future.result(LIMIT) == value
    assert ex.submit(bodies.give, future).result(LIMIT) == value
    assert list(ex.as_completed([future])) == [future]


@clause("N3")
def test_a_bare_future_is_returned(ex: Executor) -> None:
    """N3 Also bare: the result is that Future."""
    future = ex.submit(lambda: polyexec.current().submit(bodies.add, 2, 3)).result(LIMIT)
    assert isinstance(future, Future)
    assert future.result(LIMIT) == 5


@clause("N3")
def test_a_future_made_in_a_task_is_passed_on(ex: Executor) -> None:
    """N3 A Future made in one task is passed to another by its result, and used there."""
    made: Any = ex.submit(bodies.make_child, 6)
    assert ex.submit(lambda pair: [*bodies.ask([pair[0]]), pair[1]], made).result(LIMIT) == [6, 6]


@clause("N3")
def test_a_value_put_in_a_task(ex: Executor) -> None:
    """N3 A value that a task has put outlives the task."""
    stored: Any = ex.submit(lambda: polyexec.current().put(list(range(1000)))).result(LIMIT)
    assert ex.submit(len, stored).result(LIMIT) == 1000
    assert stored.result(LIMIT) == list(range(1000))


@clause("N3")
def test_a_running_future_made_in_a_task(ex: Executor, gate: Gate, marks: Marks, target: Target) -> None:
    """N3 It may still run when its maker ends, and be cancelled by whoever got it."""

    def make() -> Any:
        executor = polyexec.current()
        return [executor.submit(bodies.pass_gate, marks, gate, number) for number in range(2)]

    first, second = ex.submit(make).result(LIMIT)
    if not target.capabilities.inline:
        marks.wait_for("start")
        assert not first.done()
        assert ex.cancel(second) is True
        gate.open()
        assert isinstance(error_of(second), polyexec.TaskCancelled)
    assert first.result(LIMIT) == 0

"""Chapter S: how arguments travel, and what Futures among them mean."""

from __future__ import annotations

import pickle
import tempfile
import threading
from collections.abc import Callable

import numpy as np
import pytest

import polyexec
from polyexec import Executor, Future
from polyexec.testing import bodies
from polyexec.testing.helpers import LIMIT, hold, text_of
from polyexec.testing.marks import clause, deviation
from polyexec.testing.tools import Gate, Marks

_LARGE = 1_000_000


class Inner:
    """Holds what cannot be serialised."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


class Holder:
    """Holds it one level deeper."""

    def __init__(self) -> None:
        self.name = "holder"
        self.inner = Inner()


@clause("S2")
@pytest.mark.parametrize("count", [10, _LARGE])
def test_a_later_change_by_the_caller_is_not_seen(ex: Executor, gate: Gate, marks: Marks, count: int) -> None:
    """S2 Arguments are taken as they are at ``submit``: containers, arrays and buffers, small and large."""
    hold(ex, marks, gate, int(ex.resources().total.cpus) * (not gate.is_open()))
    items, array, buffer = {"list": [1]}, np.ones(count), bytearray(b"1" * count)
    futures = [ex.submit(bodies.give, value) for value in (items, array, buffer)]
    closure = ex.submit(lambda: (items, array[0]))
    items["list"].append(2)
    array[:] = 2
    buffer[:] = b"2" * count
    gate.open()
    seen_items, seen_array, seen_buffer = (future.result(LIMIT) for future in futures)
    assert seen_items == {"list": [1]}
    assert (seen_array == 1).all()
    assert bytes(seen_buffer) == b"1" * count
    assert closure.result(LIMIT) == ({"list": [1]}, 1)


@clause("S2")
def test_a_change_by_the_task_is_not_seen_by_the_caller(ex: Executor) -> None:
    """S2 A change by the task is not seen by the caller, nor by another task of the same argument."""
    items = [1]
    assert ex.submit(bodies.append_to, items, 2).result(LIMIT) == [1, 2]
    assert ex.submit(bodies.append_to, items, 3).result(LIMIT) == [1, 3]
    assert items == [1]


@clause("S2")
def test_a_change_of_a_put_value_is_not_seen(ex: Executor) -> None:
    """S2 ``put`` takes its value as it is, and tasks change only their own copy of it."""
    items = [1]
    stored = ex.put(items)
    items.append(9)
    assert ex.submit(bodies.append_to, stored, 2).result(LIMIT) == [1, 2]
    assert ex.submit(bodies.append_to, stored, 3).result(LIMIT) == [1, 3]
    assert stored.result(LIMIT) == [1]


@deviation("S2")
def test_arguments_are_shared(ex: Executor, gate: Gate, marks: Marks) -> None:
    """S2 (declared) Tasks get the very objects of the caller: changes on either side are seen on the other."""
    hold(ex, marks, gate, int(ex.resources().total.cpus) * (not gate.is_open()))
    items = [1]
    future = ex.submit(bodies.append_to, items, 3)
    items.insert(0, 0)
    gate.open()
    future.result(LIMIT)
    assert sorted(items) == [0, 1, 3]


@clause("S4")
def test_a_keyword_argument_that_cannot_be_serialised(ex: Executor) -> None:
    """S4 ``submit`` itself raises ``SerializationError`` that names the argument and the path to the culprit."""
    with pytest.raises(polyexec.SerializationError) as caught:
        ex.options(name="the-task").submit(bodies.echo, 1, config=Holder())
    error = caught.value
    assert isinstance(error, pickle.PickleError)
    assert (error.stage, error.task) == ("argument", "the-task")
    assert "config" in error.culprit
    assert "inner.lock" in error.culprit
    assert ex.submit(bodies.add, 1, 1).result(LIMIT) == 2


@clause("S4")
def test_a_positional_argument_that_cannot_be_serialised(ex: Executor) -> None:
    """S4 The path leads through containers."""
    with pytest.raises(polyexec.SerializationError, match=r"inner\.lock") as caught:
        ex.submit(bodies.add, 1, {"deep": [0, Holder()]})
    assert "['deep'][1]" in caught.value.culprit
    assert any(name in caught.value.culprit for name in ("right", "1", "2"))


@clause("S4")
def test_what_would_arrive_changed_is_refused(ex: Executor) -> None:
    """S4 An open or closed file, a generator and a running thread are refused, not turned into something else."""
    with tempfile.TemporaryFile("w") as file, pytest.raises(polyexec.SerializationError):
        ex.submit(bodies.give, file)
    for value in (file, (number for number in range(3)), threading.current_thread()):
        with pytest.raises(polyexec.SerializationError):
            ex.submit(bodies.give, value)


@clause("S4")
def test_a_function_that_cannot_be_serialised(ex: Executor) -> None:
    """S4 A closure over something that cannot be serialised is refused, and the variable named."""
    unserialisable = threading.Lock()
    with pytest.raises(polyexec.SerializationError, match="unserialisable"):
        ex.submit(lambda: unserialisable)


@clause("S4")
def test_put_refuses_what_cannot_be_serialised(ex: Executor) -> None:
    """S4 ``put`` refuses it too."""
    with pytest.raises(polyexec.SerializationError, match=r"inner\.lock"):
        ex.put(Holder())


@deviation("S4")
def test_what_cannot_be_serialised_is_handed_over(ex: Executor) -> None:
    """S4 (declared) Nothing is serialised: the task gets the object as it is."""
    holder = Holder()
    assert ex.submit(bodies.give, holder).result(LIMIT) is holder


@clause("S5")
def test_a_future_argument_is_replaced_by_its_value(ex: Executor, gate: Gate, marks: Marks) -> None:
    """S5 A Future as a positional or keyword argument is replaced by its value, whether it is done or not."""
    waiting = ex.submit(bodies.pass_gate, marks, gate, 5)
    done = ex.put(2)
    positional = ex.submit(bodies.add, waiting, done)
    keyword = ex.submit(bodies.echo, waiting, right=waiting, left=done)
    gate.open()
    assert positional.result(LIMIT) == 7
    assert keyword.result(LIMIT) == ((5,), {"right": 5, "left": 2})


@clause("S5")
def test_a_long_chain_of_dependencies(ex: Executor) -> None:
    """S5 Each link of a chain gets the value of the one before."""
    future = ex.put(0)
    for _ in range(50):
        future = ex.submit(bodies.add, future, 1)
    assert future.result(LIMIT) == 50


@clause("S5")
def test_a_future_inside_a_container_stays_a_future(ex: Executor) -> None:
    """S5 A Future deeper in a container stays a Future, usable in the task."""
    futures = [ex.submit(bodies.add, 1, 1), ex.put(3)]
    assert ex.submit(bodies.ask, futures).result(LIMIT) == [2, 3]
    kept = ex.submit(bodies.give, {"inside": futures[0]}).result(LIMIT)
    assert isinstance(kept["inside"], Future)
    assert kept["inside"].result(LIMIT) == 2


@clause("S5")
def test_a_future_captured_by_a_closure_stays_a_future(ex: Executor) -> None:
    """S5 A Future captured by a closure stays a Future, usable in the task."""
    captured = ex.submit(bodies.add, 2, 2)
    assert ex.submit(lambda: captured.result() + 1).result(LIMIT) == 5


@clause("S5")
def test_a_future_that_the_caller_forgets_is_kept_for_its_dependents(
    ex: Executor, gate: Gate, new_gate: Callable[[], Gate], marks: Marks
) -> None:
    """S5 A value lives as long as a task needs it, even if the caller has dropped the Future."""
    first = ex.submit(bodies.pass_gate, marks, gate, "kept")
    second = ex.submit(bodies.give, first)
    third = ex.submit(bodies.ask, [second])
    del first, second
    gate.open()
    assert third.result(LIMIT) == ["kept"]


@clause("S6")
def test_dependents_of_a_failed_task_never_run(ex: Executor, gate: Gate, marks: Marks) -> None:
    """S6 A dependent of a failed task never runs, and fails with the same error, which names the dependency."""
    failed = ex.options(name="the-dependency").submit(bodies.fail_after, marks, gate, KeyError("gone"))
    dependent = ex.options(name="the-dependent").submit(bodies.mark, marks, failed)
    indirect = ex.submit(bodies.echo, 1, key=dependent)
    gate.open()
    for future, needed in ((dependent, "the-dependency"), (indirect, "the-depend")):
        error = future.exception(LIMIT)
        assert isinstance(error, KeyError)
        assert error.args == ("gone",)
        assert needed in text_of(error)
    assert marks.lines() == ["start"]


@clause("S6")
def test_dependents_of_a_task_that_failed_before(ex: Executor, marks: Marks) -> None:
    """S6 A task that is submitted after its dependency has failed never runs either."""
    failed = ex.options(name="the-dependency").submit(bodies.leave, 5)
    assert failed.exception(LIMIT) is not None
    error = ex.submit(bodies.mark, marks, failed).exception(LIMIT)
    assert isinstance(error, polyexec.TaskExited)
    assert error.code == 5
    assert marks.lines() == []


@clause("S6")
def test_independent_tasks_go_on(ex: Executor) -> None:
    """S6 A failed dependency fails its dependents alone; its siblings and what depends on them go on."""
    failed = ex.submit(bodies.fail, ValueError("bad"))
    good = ex.submit(bodies.add, 1, 2)
    both = ex.submit(bodies.give, good, failed)
    assert isinstance(both.exception(LIMIT), ValueError)
    assert good.result(LIMIT) == 3
    assert ex.submit(bodies.give, good).result(LIMIT) == 3

"""Chapter S: what ``submit`` takes and gives."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

import polyexec
from polyexec import Executor, Future
from polyexec.testing import bodies
from polyexec.testing.executors import Executors
from polyexec.testing.helpers import LIMIT
from polyexec.testing.marks import clause
from polyexec.testing.target import Target
from polyexec.testing.tools import Gate, Marks, eventually


@clause("S1")
def test_submit_returns_at_once(ex: Executor, gate: Gate, marks: Marks, target: Target) -> None:
    """S1 ``submit`` returns at once with a Future, whatever runs already; an inline backend runs the task first."""
    futures = [ex.submit(bodies.pass_gate, marks, gate, number) for number in range(20)]
    assert all(isinstance(future, Future) for future in futures)
    assert [future.done() for future in futures] == [target.capabilities.inline] * 20
    gate.open()
    assert [future.result(LIMIT) for future in futures] == list(range(20))


@clause("S1")
def test_a_future_tells_its_state(ex: Executor, gate: Gate, marks: Marks, target: Target) -> None:
    """S1 The Future says whether its task runs, and whether it is done."""
    future = ex.submit(bodies.pass_gate, marks, gate, "it")
    if not target.capabilities.inline:
        marks.wait_for("start it")
        eventually(future.running, "the Future says that it runs")
        assert not future.done()
        gate.open()
    assert future.result(LIMIT) == "it"
    assert (future.done(), future.running(), future.cancelled()) == (True, False, False)
    assert future.exception(LIMIT) is None
    assert future.attempts == 1


@clause("S3")
def test_functions_that_have_no_importable_name(ex: Executor) -> None:
    """S3 Lambdas, closures, partials and nested functions can be submitted."""
    offset = 10

    def nested(value: int) -> int:
        return value + offset if value < 3 else nested(value - 1)

    assert ex.submit(lambda value: value * 2, 4).result(LIMIT) == 8
    assert ex.submit(nested, 5).result(LIMIT) == 12
    assert ex.submit(functools.partial(nested, value=1)).result(LIMIT) == 11
    assert ex.submit(functools.partial(lambda left, right: left - right, right=1), 5).result(LIMIT) == 4


@clause("S3")
def test_classes_that_have_no_importable_name(ex: Executor) -> None:
    """S3 Nested classes, their instances and their methods can be submitted and returned."""

    class Counter:
        def __init__(self, value: int) -> None:
            self.value = value

        def more(self, by: int) -> Counter:
            return Counter(self.value + by)

    result = ex.submit(Counter(1).more, 2).result(LIMIT)
    assert result.value == 3
    assert isinstance(result, Counter)
    assert ex.submit(Counter, 7).result(LIMIT).value == 7


@clause("S7")
def test_options_and_arguments_are_apart(ex: Executor) -> None:
    """S7 A function's own keyword arguments reach it, even if they are named like options or parameters."""
    arguments: dict[str, Any] = {name: number for number, name in enumerate(sorted(polyexec.options.OPTION_NAMES))}
    arguments |= {"self": 1, "function": 2, "fn": 3, "args": 4, "kwargs": 5, "task": 6, "options": 7, "call": 8}
    assert ex.submit(bodies.echo, 1, **arguments).result(LIMIT) == ((1,), arguments)
    assert ex.options(name="other", timeout=LIMIT).submit(bodies.echo, **arguments).result(LIMIT) == ((), arguments)


@clause("S7")
def test_default_options_of_a_function(ex: Executor) -> None:
    """S7 ``task`` gives a function default options, and it is called locally as before."""

    @polyexec.task(num_returns=2, name="pair")
    def pair() -> tuple[int, int]:
        return 1, 2

    assert pair() == (1, 2)
    futures: Any = ex.submit(pair)
    assert [future.result(LIMIT) for future in futures] == [1, 2]
    assert ex.options(num_returns=1).submit(pair).result(LIMIT) == (1, 2)
    assert futures[0].name == "pair"


@clause("S7")
def test_a_wrong_option_is_refused(ex: Executor) -> None:
    """S7 An unknown option and a wrong value each raise at once, and say what is valid."""
    with pytest.raises(polyexec.SpecificationError, match="cpus"):
        ex.options(cpu=1)
    with pytest.raises(ValueError, match="retries"):
        ex.options(retries=-1)


@clause("S8")
def test_submit_from_many_threads(ex: Executor) -> None:
    """S8 ``submit`` is safe from any number of threads."""
    results: dict[int, list[int]] = {}

    def work(number: int) -> None:
        futures = [ex.submit(bodies.add, number, index) for index in range(20)]
        results[number] = [future.result(LIMIT) for future in futures]

    threads = [threading.Thread(target=work, args=(number * 100,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert results == {number * 100: [number * 100 + index for index in range(20)] for number in range(8)}


@clause("S8")
def test_submit_from_a_callback(ex: Executor) -> None:
    """S8 ``submit`` is safe from callbacks."""
    found: list[Future[Any]] = []
    first = ex.submit(bodies.add, 1, 1)
    first.add_done_callback(lambda done: found.append(ex.submit(bodies.add, done.result(), 1)))
    eventually(lambda: found, "the callback has submitted")
    assert found[0].result(LIMIT) == 3


@clause("S8")
def test_submit_from_a_task(ex: Executor) -> None:
    """S8 ``submit`` is safe from tasks."""
    assert ex.submit(bodies.spread_out, 20).result(LIMIT) == sum(range(20))


@clause("S13")
def test_identical_calls_all_run(ex: Executor, marks: Marks) -> None:
    """S13 Four identical calls run four times."""
    futures = [ex.submit(bodies.mark, marks, "ran") for _ in range(4)]
    assert [future.result(LIMIT) for future in futures] == ["ran"] * 4
    assert marks.lines() == ["ran"] * 4


@clause("S13")
def test_a_returned_exception_is_a_value(ex: Executor) -> None:
    """S13 An exception that a task returns is a value, not a failure."""
    future = ex.submit(bodies.give, ValueError("a value"))
    result = future.result(LIMIT)
    assert isinstance(result, ValueError)
    assert result.args == ("a value",)
    assert future.exception(LIMIT) is None
    assert ex.submit(bodies.give, future).result(LIMIT).args == ("a value",)


class _Adder:
    def __init__(self, by: int) -> None:
        self.by = by

    def __call__(self, value: int) -> int:
        return value + self.by

    def method(self, value: int) -> int:
        return value - self.by

    @classmethod
    def make(cls, by: int) -> _Adder:
        return cls(by)

    @staticmethod
    def static(value: int) -> int:
        return -value


@clause("S14")
def test_any_callable_goes(ex: Executor) -> None:
    """S14 Functions, builtins, partials, bound methods, callable objects and classes can be submitted."""
    calls: list[tuple[Callable[..., Any], tuple[Any, ...], Any]] = [
        (bodies.add, (1, 2), 3),
        (len, ("four",), 4),
        (max, (1, 5), 5),
        (functools.partial(bodies.add, 1), (5,), 6),
        (_Adder(3), (4,), 7),
        (_Adder(1).method, (9,), 8),
        (_Adder.static, (-9,), 9),
        ("a-b".split, ("-",), ["a", "b"]),
        (dict, ([("a", 1)],), {"a": 1}),
        (str.upper, ("x",), "X"),
    ]
    futures = [ex.submit(function, *args) for function, args, _ in calls]
    assert [future.result(LIMIT) for future in futures] == [expected for _, _, expected in calls]
    assert ex.submit(_Adder.make, 2).result(LIMIT).by == 2
    assert ex.submit(_Adder, 2).result(LIMIT).by == 2


@clause("S14")
def test_what_cannot_be_called_is_refused(ex: Executor) -> None:
    """S14 Something that is not callable is refused by ``submit`` itself."""
    with pytest.raises((TypeError, polyexec.SpecificationError), match="callable"):
        ex.submit(42)  # type: ignore[arg-type]


@clause("S15")
def test_which_backend_runs_is_said(ex: Executor, executors: Executors, target: Target) -> None:
    """S15 ``ex.info`` and one INFO line at ``connect`` say the backend, the engine's version and what chose it."""
    info = ex.info
    assert info.backend == target.name
    assert info.chosen_by == "argument"
    assert any(character.isdigit() for character in info.engine)
    lines = [text for text in executors.connecting.texts(logging.INFO) if info.engine in text]
    assert len(lines) == 1
    assert all(part in lines[0] for part in (info.backend, info.address, info.chosen_by))


@clause("S15")
def test_tasks_see_the_same_choice(ex: Executor) -> None:
    """S15 Tasks see the same choice."""
    info = ex.info
    assert ex.submit(bodies.chosen_backend).result(LIMIT) == (info.backend, info.engine, info.chosen_by)

"""S2, S3: plain calls see what any call would see, although their functions are sent once."""

from __future__ import annotations

import functools
import pickle
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import cloudpickle
import pytest

from polyexec import plain
from polyexec.plain import FunctionTable, PlainCall, PlainFunction, dump_arguments, dump_call, joined
from polyexec.session import Entry


def identity(value: object) -> object:
    return value


@pytest.fixture
def module() -> Iterator[ModuleType]:
    """A module that can be imported, with a function that is in it by its name."""
    made = ModuleType("module_of_a_test")
    sys.modules[made.__name__] = made
    exec("def double(value):\n    return 2 * value\n", made.__dict__)
    yield made
    del sys.modules[made.__name__]


def made_in_main(source: str) -> Callable[..., Any]:
    """Make a function as a script would."""
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(source, space)
    made: Callable[..., Any] = space["function"]
    return made


def test_importable_functions_are_described_once(module: ModuleType) -> None:
    table = FunctionTable()
    first = table.find(module.double, None)
    assert first is not None
    assert first is table.find(module.double, None)
    assert first.name == "double"
    assert pickle.loads(first.data) is module.double


def test_a_name_makes_another_description(module: ModuleType) -> None:
    table = FunctionTable()
    named = table.find(module.double, "other")
    assert named is not None
    assert named.name == "other"
    assert named.key != table.find(module.double, None).key  # type: ignore[union-attr]  # it is described, as above


def test_a_function_that_was_replaced_in_its_module_is_not_taken_for_the_new_one(module: ModuleType) -> None:
    table = FunctionTable()
    old = module.double
    table.find(old, None)
    exec("def double(value):\n    return 0\n", module.__dict__)
    assert table.find(module.double, None) is not table.find(old, None)


def test_functions_of_registered_modules_are_not_importable(module: ModuleType) -> None:
    table = FunctionTable()
    module.helper = 3  # type: ignore[attr-defined]  # a module takes anything
    exec("def use():\n    return helper\n", module.__dict__)
    assert table.find(module.use, None) is not None
    cloudpickle.register_pickle_by_value(module)
    try:
        assert table.find(module.use, None) is None
    finally:
        cloudpickle.unregister_pickle_by_value(module)


@pytest.mark.parametrize(
    "source",
    [
        "function = lambda: 1",
        "def function(value):\n    return len(value)",
        "def function():\n    import os\n    return os.getpid()",
        "def function():\n    return [item for item in range(3)]",
    ],
)
def test_functions_without_state_are_described_once(source: str) -> None:
    table = FunctionTable()
    found = table.find(made_in_main(source), None)
    assert found is not None
    # Another one with the same code is the same, as lambdas in a loop are.
    assert table.find(made_in_main(source), None) is found


@pytest.mark.parametrize(
    "source",
    [
        "limit = 3\ndef function():\n    return limit",
        "def make(value):\n    return lambda: value\nfunction = make(1)",
        "def function(found=[]):\n    return found",
        "def function(*, found={}):\n    return found",
        "def function():\n    global seen\n    seen = 1",
        "def function():\n    def inner():\n        global seen\n        seen = 1\n    inner()",
        "limit = 3\ndef function():\n    return (lambda: limit)()",
        "def function():\n    pass\nfunction.count = 0",
    ],
)
def test_functions_with_state_are_pickled_for_each_call(source: str) -> None:
    assert FunctionTable().find(made_in_main(source), None) is None


def test_a_global_that_comes_later_is_seen() -> None:
    table = FunctionTable()
    function = made_in_main("def function():\n    return limit")
    assert table.find(function, None) is not None
    function.__globals__["limit"] = 3
    assert table.find(function, None) is None


@pytest.mark.parametrize("callable_", [len, int, functools.partial(identity, 1), "text".upper])
def test_other_callables_are_pickled_for_each_call(callable_: Callable[..., Any]) -> None:
    assert FunctionTable().find(callable_, None) is None


def test_the_table_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "_TABLE_LIMIT", 3)
    table = FunctionTable()
    for number in range(10):
        assert table.find(made_in_main(f"function = lambda: {number}"), None) is not None
    assert len(table._known) <= 4


@pytest.mark.parametrize("args", [(), (1, 2.5, "text", b"bytes", None, True, 1j), ([1, {"a": (2,)}],)])
def test_small_arguments_are_pickled(args: tuple[Any, ...]) -> None:
    data = dump_arguments(args, {"key": args})
    assert data is not None
    assert pickle.loads(data) == (args, {"key": args})


@pytest.mark.parametrize("value", ["x" * (plain.SIZE_LIMIT + 1), bytes(plain.SIZE_LIMIT + 1), [0.5] * plain.SIZE_LIMIT])
def test_large_arguments_go_the_usual_way(value: object) -> None:
    assert dump_arguments((value,), {}) is None
    assert dump_arguments((), {"key": value}) is None


def test_arguments_with_buffers_go_the_usual_way() -> None:
    assert dump_arguments((pickle.PickleBuffer(b"memory"),), {}) is None


def test_a_call_that_becomes_a_task_is_not_unpickled_on_the_way(module: ModuleType) -> None:
    found = FunctionTable().find(module.double, None)
    data = dump_arguments((4,), {})
    assert found is not None
    assert data is not None
    function, args, kwargs = pickle.loads(joined(PlainCall(Entry(1, "double"), found, data)))
    assert function(*args, **kwargs) == 8
    whole = dump_call(identity, (5,), {})
    assert whole is not None
    function, args, kwargs = pickle.loads(joined(PlainCall(Entry(2, "identity"), PlainFunction(0, b"", "f"), whole)))
    assert function(*args, **kwargs) == 5

from __future__ import annotations

import math
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import pytest

import polyexec
from polyexec import config
from polyexec.options import DEFAULT_OPTIONS, OPTION_NAMES, Resources, TaskOptions, parse_bytes

BAD_OPTIONS: dict[str, list[Any]] = {
    "cpus": [-1, math.inf, math.nan, "2", None, True],
    "gpus": [-0.5, 1.5, math.inf, "1"],
    "memory": [-1, "2 gigs", "GiB", "", None, True, math.nan, "-1"],
    "resources": [5, {"cpus": 1}, {"GPU": 1}, {"memory": 1}, {"a b": 1}, {"": 1}, {3: 1}, {"x": -1}, {"x": "1"}],
    "name": [3, b"x"],
    "retries": [-1, 1.0, "3", True, None],
    "retry_on": [ValueError("x"), "ValueError", (ValueError, 3), int],
    "retry": [3, "f"],
    "timeout": [-1, "5", math.inf, math.nan, True],
    "env": ["A=1", {"A": 1}, {1: "A"}, {"": "1"}, {"A=B": "1"}, {"A": "\0"}],
    "working_dir": [3, b"/tmp", "no-such-folder", __file__],
    "py_modules": [
        "text",
        os,
        3,
        [3],
        ["no-such-file.py"],
        [os],
        [polyexec],
        [__file__ + "c"],
        [sys.modules["__main__"]],
    ],
    "num_returns": [0, -1, 1.0, "2", True],
    "priority": ["high", math.nan, math.inf, None],
    "infeasible": ["no", None, True],
    "strategy": ["pack", None, 1],
    "node": [1, b"node", ["node"]],
    "labels": [None, "zone", {"zone": 1}, {1: "zone"}],
    "buffer": [0, -1, 1.0, "2", True, None],
    "restarts": [-1, 1.0, "3", True, None],
    "concurrency": [0, -1, 1.0, "2", True],
}

GOOD_OPTIONS: dict[str, list[Any]] = {
    "cpus": [0, 0.25, 4],
    "gpus": [0, 0.25, 1, 2, 3.0],
    "memory": [0, 10**12, "2GiB", "500 MB", "1.5kib"],
    "resources": [{}, {"license": 1, "a.b-c_d": 0.5}],
    "name": [None, "train"],
    "retries": [0, 3],
    "retry_on": [ValueError, (OSError, KeyError), ()],
    "retry": [None, print],
    "timeout": [None, 0, 0.5, 60],
    "env": [None, {}, {"OMP_NUM_THREADS": "4"}],
    "working_dir": [None, "/", pathlib.Path("/")],
    "py_modules": [None, (), [__file__], [pytest], [pathlib.Path(__file__).parent]],
    "num_returns": [1, 5],
    "priority": [-1, 0.5, 10],
    "infeasible": ["error", "wait"],
    "strategy": ["default", "spread"],
    "node": [None, "node", polyexec.NodeAffinity("node", soft=True)],
    "labels": [{}, {"zone": "a", "disk": "ssd"}],
    "buffer": [1, 1000],
    "restarts": [0, 3],
    "concurrency": [None, 1, 100],
}


def pairs(table: dict[str, list[Any]]) -> list[tuple[str, Any]]:
    return [(name, value) for name, values in table.items() for value in values]


def test_every_option_is_tested() -> None:
    assert BAD_OPTIONS.keys() == GOOD_OPTIONS.keys() == OPTION_NAMES


@pytest.mark.parametrize(("name", "value"), pairs(BAD_OPTIONS))
def test_bad_values_give_one_line(name: str, value: Any) -> None:
    """A message says what is wrong, at once and where the option is given."""
    with pytest.raises(polyexec.SpecificationError) as caught:
        DEFAULT_OPTIONS.evolve(**{name: value})
    assert "\n" not in str(caught.value)
    with pytest.raises(polyexec.SpecificationError):
        polyexec.task(**{name: value})


@pytest.mark.parametrize(("name", "value"), pairs(GOOD_OPTIONS))
def test_good_values(name: str, value: Any) -> None:
    assert isinstance(DEFAULT_OPTIONS.evolve(**{name: value}), TaskOptions)


@pytest.mark.parametrize("make", [lambda: polyexec.NodeAffinity(3), lambda: polyexec.NodeAffinity("a", soft="no")])  # type: ignore[arg-type]
def test_bad_affinities_give_one_line(make: Callable[[], object]) -> None:
    with pytest.raises(polyexec.SpecificationError) as caught:
        make()
    assert len(str(caught.value)) < 100


def test_an_unknown_option_names_the_valid_ones() -> None:
    with pytest.raises(polyexec.SpecificationError, match="unknown option 'cpu'; valid are buffer, concurrency, cpus"):
        DEFAULT_OPTIONS.evolve(cpu=2)


def test_what_is_no_function_cannot_be_decorated() -> None:
    with pytest.raises(polyexec.SpecificationError, match="3 is neither"):
        polyexec.task(3)  # type: ignore[call-overload]


def test_options_do_not_change() -> None:
    """What the caller does later to a mapping that was given has no effect."""
    amounts, variables = {"license": 1.0}, {"A": "1"}
    options = DEFAULT_OPTIONS.evolve(resources=amounts, env=variables)
    amounts["license"], variables["A"] = 5.0, "2"
    assert options.resources == {"license": 1.0}
    assert options.env == {"A": "1"}
    assert TaskOptions() == DEFAULT_OPTIONS


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GiB", 2**31), ("500 MB", 5 * 10**8), ("1.5kib", 1536), (7, 7), (7.9, 7), ("12", 12), (" 1 TB ", 10**12)],
)
def test_sizes(text: Any, size: int) -> None:
    assert parse_bytes(text) == size


def test_resources_as_text() -> None:
    """R3: errors show what was asked for."""
    assert str(Resources(1.5, 2, 10, {"license": 1})) == "1.5 cpus, 2 gpus, 10 bytes of memory, 1 license"
    assert str(Resources(memory=3 * 2**29)) == "1.5 GiB of memory"
    assert str(Resources(memory=20 * 2**20)) == "20 MiB of memory"
    assert str(Resources()) == "nothing"


CONVERTERS: list[tuple[Callable[[Any], Any], list[tuple[Any, Any]], list[Any]]] = [
    (config.positive, [("4", 4), (1, 1), (" 7 ", 7)], ["0", 0, -1, "x", "", 1.0, None, True]),
    (config.count, [("0", 0), (3, 3)], ["-1", -1, "x", 0.0, None, False]),
    (config.seconds, [("0.5", 0.5), (2, 2.0)], ["0", -1, "x", "", "inf", "nan", None, []]),
    (config.amount, [("0", 0.0), (2, 2.0)], ["-1", "x", "", "inf", "nan", None, []]),
    (config.boolean, [("1", True), ("No", False), (True, True), (0, False)], ["", "2", None, 2, "on"]),
    (config.text, [("x", "x")], ["", None, 3]),
    (
        config.amounts,
        [("a:1,b:2.5", {"a": 1, "b": 2.5}), ("", {}), ({"a": 1}, {"a": 1})],
        ["a", "a:", "a:-1", "a:x", ":1", "cpus:1", 3, None, ["a"]],
    ),
    (parse_bytes, [("1KiB", 1024)], ["x", None]),
    (config.function, [(print, print)], ["x", "", ":", "a:", ":b", " : ", 3, None]),
]


@pytest.mark.parametrize(("converter", "good", "bad"), CONVERTERS, ids=[item[0].__name__ for item in CONVERTERS])
def test_converters_of_configurations(
    converter: Callable[[Any], Any], good: list[tuple[Any, Any]], bad: list[Any]
) -> None:
    """A bad value raises ``ValueError`` with one line that shows it."""
    for value, expected in good:
        assert converter(value) == expected
    for value in bad:
        with pytest.raises(ValueError, match=r".") as caught:
            converter(value)
        assert str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_function_is_imported_when_it_is_called() -> None:
    """Its module need not exist in the driver."""
    assert config.function("os:getpid")() == os.getpid()
    with pytest.raises(ModuleNotFoundError):
        config.function("no_such_module:function")()

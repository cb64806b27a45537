"""Parsers meet texts and bytes that nobody meant: they say so in one line, or understand them; nothing else.

``POLYEXEC_LONG=1`` tries a hundred times as many.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import polyexec
from polyexec import registry
from polyexec.errors import SpecificationError
from polyexec.ignoring import Rules
from polyexec.options import TaskOptions, parse_bytes
from polyexec.redaction import redacted
from polyexec.stored import Head, Tag

LONG = os.environ.get("POLYEXEC_LONG", "") not in ("", "0")
fuzz = settings(max_examples=20_000 if LONG else 200, deadline=None, derandomize=not LONG, database=None)

NAMES = ("serial", "threads", "process")
KEYS = (
    "workers",
    "gpus",
    "memory",
    "resources",
    "log_to_driver",
    "initializer",
    "store_limit",
    "spill_folder",
    "isolate",
)
NUMBERS = st.one_of(st.integers(), st.floats(), st.from_regex(r"-?\d{1,400}(\.\d{0,20})?(e\d{1,5})?", fullmatch=True))
VALUES = st.one_of(
    NUMBERS.map(str), st.text(max_size=30), st.sampled_from(["", "0", "inf", "nan", "-1", "1GiB", "a:1,b"])
)
PAIRS = st.lists(st.tuples(st.one_of(st.sampled_from(KEYS), st.text(max_size=8)), VALUES), max_size=4)
SPECIFICATIONS = st.one_of(
    st.text(max_size=60),
    st.builds(
        lambda name, pairs: f"{name}?{'&'.join(f'{key}={value}' for key, value in pairs)}",
        st.sampled_from(NAMES),
        PAIRS,
    ),
)


def understood_or_refused(function: Callable[[], object]) -> None:
    """Call a parser, which may refuse what it gets, in one line."""
    try:
        function()
    except (SpecificationError, polyexec.BackendNotFound) as error:
        text = str(error)
    else:
        return
    assert text
    assert len(text.splitlines()) == 1, text


@fuzz
@given(SPECIFICATIONS)
@example("process?workers=" + "9" * 5000)
@example("process?memory=" + "9" * 400)
@example("process?resources=a:nan")
@example("process?a=\n")
@example("\n")
def test_specifications(text: str) -> None:
    """Any text is a specification of an installed backend, or an error of one line that says what is wrong."""

    def configure() -> None:
        name, keys = registry.parse(text)
        registry.configure(name, registry.backend_class(name), keys)

    redacted(text)
    understood_or_refused(configure)


@fuzz
@given(st.one_of(NUMBERS, st.text(max_size=20), st.none(), st.booleans(), st.binary(max_size=4)))
@example("9" * 400)
@example(float("inf"))
@example(float("nan"))
def test_sizes(value: Any) -> None:
    understood_or_refused(lambda: parse_bytes(value))


_ANYTHING = st.one_of(
    NUMBERS,
    st.text(max_size=10),
    st.none(),
    st.booleans(),
    st.binary(max_size=4),
    st.dictionaries(st.text(max_size=5), st.one_of(NUMBERS, st.text(max_size=5)), max_size=3),
    st.lists(st.text(max_size=5), max_size=3),
)
_OPTIONS = (
    "cpus", "gpus", "memory", "resources", "name", "retries", "retry_on", "retry", "timeout", "env", "priority",
    "infeasible", "strategy", "node", "labels", "num_returns", "buffer", "concurrency", "restarts", "working_dir",
    "py_modules",
)  # fmt: skip


@fuzz
@given(st.dictionaries(st.sampled_from(_OPTIONS), _ANYTHING, min_size=1, max_size=3))
@example({"memory": "9" * 400})
@example({"cpus": float("nan")})
def test_options(options: dict[str, Any]) -> None:
    understood_or_refused(lambda: TaskOptions().evolve(**options))


@fuzz
@given(st.one_of(st.binary(max_size=100), st.binary(max_size=100).map(lambda data: Head().encode()[:2] + data)))
@example(Head(references=(1, 2)).encode()[:-3])
@example(Head().encode()[:2] + b"\xff" * 60)
def test_heads_of_outcomes(data: bytes) -> None:
    try:
        head, offset = Head.decode(data)
    except ValueError:
        return
    assert head.tag in Tag
    assert offset <= len(data)


@fuzz
@given(st.text(max_size=60), st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=4), st.booleans())
@example("[z-a]", ["a"], False)
@example("**/" * 50 + "x", ["a"] * 20, False)
@example("[[]", ["["], True)
@example("*a" * 40 + "b", ["a" * 200], False)
def test_ignored_files(text: str, path: list[str], is_folder: bool) -> None:
    assert Rules.read(text).verdict(path, is_folder=is_folder) in (None, True, False)


@fuzz
@given(st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40))
def test_the_variable(text: str) -> None:
    """``POLYEXEC_BACKEND`` is as any other specification, and what it says is never shown with its secrets."""
    with pytest.MonkeyPatch.context() as changed:
        changed.setenv("POLYEXEC_BACKEND", text)
        assert registry.choose(None).specification in (text.strip(), "process")

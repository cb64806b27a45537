"""F2, F12: exceptions that are too large, or do not want to travel."""

from __future__ import annotations

import threading
from typing import Any

import pytest

import polyexec
from polyexec import outcome
from polyexec.outcome import CHAIN_LIMIT, FRAME_LIMIT, MESSAGE_LIMIT, decode_error, encode_error

from .exceptions import BadLoad, BadNotes, BadReduce, BadText, Liar, WithAttributes, text_of_all, there_and_back

LARGE = 20 * 1024 * 1024


def test_a_chain_of_causes_without_end() -> None:
    """F12: 5000 causes, and causes in a circle, are cut."""
    error: Exception = ValueError("0")
    for number in range(1, 5000):
        following = ValueError(str(number))
        following.__cause__ = error
        error = following
    found: BaseException | None = there_and_back(error)
    count = 0
    while found is not None:
        found, count = found.__cause__, count + 1
    assert count == CHAIN_LIMIT + 1


def test_causes_in_a_circle() -> None:
    """F12."""
    first, second = ValueError("first"), KeyError("second")
    first.__cause__, second.__cause__ = second, first
    found = there_and_back(first)
    assert type(found) is ValueError
    assert type(found.__cause__) is KeyError


@pytest.mark.parametrize("kind", [ValueError, WithAttributes])
@pytest.mark.parametrize("make", [lambda size: "x" * size, lambda size: b"x" * size], ids=["str", "bytes"])
def test_a_message_of_20_megabytes(kind: type[Exception], make: Any) -> None:
    """F12: the type is kept, the text is capped and says so."""
    found = there_and_back(kind(make(LARGE)))
    assert type(found) is kind
    assert f"({LARGE - MESSAGE_LIMIT} bytes omitted)" in str(found)
    assert len(text_of_all(found)) < 8 * MESSAGE_LIMIT


def test_a_large_attribute() -> None:
    """F12."""
    error = WithAttributes("text")
    error.detail = "x" * LARGE
    found: Any = there_and_back(error)
    assert type(found) is WithAttributes
    assert found.detail.endswith("bytes omitted)")


def test_large_notes() -> None:
    """F12: the text and the beginning of the note arrive."""
    error = ValueError("text")
    error.add_note("x" * LARGE)
    found: Any = there_and_back(error)
    assert "text" in str(found)
    assert found.__notes__[0].endswith("bytes omitted)")


def test_an_exception_that_holds_a_lock() -> None:
    """F2: name, text and traceback arrive."""
    found = there_and_back(WithAttributes("text", threading.Lock()))
    assert isinstance(found, polyexec.RemoteError)
    assert found.type_name == f"{WithAttributes.__module__}.WithAttributes"
    assert found.message.startswith("('text', <unlocked")
    assert "in there_and_back" in found.traceback


@pytest.mark.parametrize("kind", [BadReduce, BadLoad, Liar])
def test_exceptions_that_do_not_pickle(kind: type[Exception]) -> None:
    """F2, F12: what was raised meanwhile escapes on neither side."""
    found = there_and_back(kind("text"))
    if not isinstance(found, kind):
        assert isinstance(found, polyexec.RemoteError)
        assert found.type_name.endswith(kind.__name__)
    assert "text" in str(found)


def test_a_text_that_raises() -> None:
    """F12."""
    found = there_and_back(BadText("text"))
    assert type(found) is BadText
    assert "its __str__ raised RuntimeError" in str(found.__cause__)


def test_notes_that_are_none() -> None:
    """F12."""
    assert type(there_and_back(BadNotes("text"))) is BadNotes


def test_an_exception_that_contains_itself() -> None:
    """F12."""
    error = ValueError("text")
    error.args = ("text", error)
    found = there_and_back(error)
    assert isinstance(found, polyexec.RemoteError)
    assert found.type_name == "ValueError"


def test_an_endless_recursion() -> None:
    """F12: a traceback of thousands of frames is cut in the middle."""
    error = _recursion_error(10_000)
    stored = encode_error(error)
    text = str(decode_error(stored).__cause__)
    assert "frames omitted)" in text
    assert text.count("in _recurse") <= FRAME_LIMIT
    assert stored.nbytes < outcome.TRACEBACK_LIMIT


def _recurse(depth: int) -> None:
    if depth:
        _recurse(depth - 1)
    raise RecursionError("deep")


def _recursion_error(depth: int) -> BaseException:
    """Raise from so deep, in a thread with a stack for it."""
    import sys

    found: list[BaseException] = []

    def work() -> None:
        try:
            _recurse(depth)
        except RecursionError as error:
            found.append(error)

    limit, size = sys.getrecursionlimit(), threading.stack_size(256 * 1024 * 1024)
    try:
        sys.setrecursionlimit(depth + 1000)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    finally:
        sys.setrecursionlimit(limit)
        threading.stack_size(size)
    return found[0]


def test_a_surrogate_in_the_text() -> None:
    """F12."""
    assert there_and_back(ValueError("\udcff")).args == ("\udcff",)

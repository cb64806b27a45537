"""F1, F2, F4: exceptions and values, from the worker to who asks for them."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

import polyexec
from polyexec import outcome
from polyexec.stored import Head, Stored, Tag

from .exceptions import Frozen, FrozenData, KeywordOnly, TwoArguments, WithAttributes, text_of_all, there_and_back


def test_arguments_of_which_one_is_kept() -> None:
    """F1: the type, the text and the attributes arrive although ``__init__`` cannot be called again."""
    found = there_and_back(TwoArguments(7, "text"))
    assert type(found) is TwoArguments
    assert (found.args, found.code, str(found)) == (("text",), 7, "text")


def test_attributes_and_notes() -> None:
    """F1."""
    error = WithAttributes("text", 2)
    error.detail = {"a": [1, 2]}
    error.add_note("first")
    error.add_note("second")
    found: Any = there_and_back(error)
    assert type(found) is WithAttributes
    assert (found.args, found.detail, found.__notes__) == (("text", 2), {"a": [1, 2]}, ["first", "second"])


@pytest.mark.parametrize(
    "error",
    [KeyError("key"), OSError(2, "No such file", "path"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), Frozen(3)],
    ids=lambda error: type(error).__name__,
)
def test_types_of_the_standard_library_and_attrs(error: Exception) -> None:
    """F1."""
    found = there_and_back(error)
    assert type(found) is type(error)
    assert (found.args, str(found)) == (error.args, str(error))


def test_a_constructor_with_keywords_only() -> None:
    """F1: attributes arrive without a call of ``__init__``."""
    found = there_and_back(KeywordOnly(path="file"))
    assert type(found) is KeywordOnly
    assert str(found) == "no file"


def test_an_exception_that_refuses_attributes_gets_its_cause() -> None:
    """F1: the cause is set all the same."""
    found = there_and_back(FrozenData())
    assert type(found) is FrozenData
    assert isinstance(found.__cause__, polyexec.RemoteTraceback)


def test_types_that_exist_only_where_they_were_made() -> None:
    """F1, S3: a local class travels by value."""

    class Local(Exception):
        pass

    found = there_and_back(Local("text"))
    assert type(found).__name__ == "Local"
    assert found.args == ("text",)


def test_the_remote_traceback_is_the_cause() -> None:
    """F1."""
    found = there_and_back(ValueError("text"))
    assert isinstance(found.__cause__, polyexec.RemoteTraceback)
    assert "in there_and_back" in str(found.__cause__)


def test_a_chain_of_causes() -> None:
    """F1: types and order are kept, and the traceback stands at its end."""
    first, second, third = KeyError("first"), WithAttributes("second"), ValueError("third")
    third.__cause__, second.__cause__ = second, first
    found = there_and_back(third)
    assert found.__cause__ is not None
    assert [type(found), type(found.__cause__), type(found.__cause__.__cause__)] == [
        ValueError,
        WithAttributes,
        KeyError,
    ]
    assert "direct cause" in text_of_all(found)


def test_a_group() -> None:
    """F1."""
    found = there_and_back(ExceptionGroup("several", [ValueError("one"), KeyError("two")]))
    assert isinstance(found, ExceptionGroup)
    assert [type(error) for error in found.exceptions] == [ValueError, KeyError]


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt("text"),
        GeneratorExit("text"),
        SystemExit("text"),
        BaseException("text"),
        BaseExceptionGroup("text", [KeyboardInterrupt()]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_base_exceptions_are_never_raised_bare(error: BaseException) -> None:
    """F4."""
    found = there_and_back(error)
    assert isinstance(found, polyexec.RemoteError)
    assert found.type_name == type(error).__name__
    assert "text" in found.message


def test_an_exception_as_a_value() -> None:
    """S13: what a task returns is no failure."""
    found = outcome.decode(outcome.encode_value("task", ValueError("text")), "task")
    assert isinstance(found, ValueError)


@pytest.mark.parametrize("kind", [RuntimeError, SystemExit, polyexec.Interrupted])
def test_a_value_that_does_not_load(kind: type[BaseException]) -> None:
    """F12: also if it raises what is no ``Exception``."""
    with pytest.raises(polyexec.SerializationError, match="text") as caught:
        outcome.decode(outcome.encode_value("task", _Raiser(kind)), "task")
    assert caught.value.stage == "result-load"
    assert isinstance(caught.value.__cause__, kind)


class _Raiser:
    def __init__(self, kind: type[BaseException]) -> None:
        self.kind = kind

    def __reduce__(self) -> Any:
        return _raise, (self.kind,)


def _raise(kind: type[BaseException]) -> None:
    raise kind("text")


@pytest.mark.parametrize(
    "head",
    [
        Head(),
        Head(Tag.ERROR, duration=1.5, summary="ValueError: \udcff"),
        Head(Tag.VALUE, references=(1, 2**60)),
    ],
)
def test_heads(head: Head) -> None:
    """The driver reads the head of an outcome without its pickle."""
    data = head.encode()
    found, offset = Head.decode(data + b"rest")
    assert offset == len(data)
    assert found == attrs.evolve(head, summary=head.summary.replace("\udcff", "?"))


@pytest.mark.parametrize("data", [b"", b"px", b"no outcome, but long enough"])
def test_bytes_that_are_no_outcome(data: bytes) -> None:
    """A backend that mixes up its bytes is told so."""
    with pytest.raises(ValueError, match="not the bytes of an outcome"):
        outcome.decode(Stored(data), "task")

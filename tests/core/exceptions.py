"""Exceptions of every shape, and how they travel."""

from __future__ import annotations

import dataclasses
from typing import Any

import attrs

from polyexec.outcome import decode_error, encode_error


def there_and_back(error: BaseException) -> BaseException:
    """Encode an exception as the worker does, with a traceback, and decode it."""
    try:
        raise error
    except BaseException as raised:
        stored = encode_error(raised)
    assert stored.nbytes < 8 * 1024 * 1024, "F12: what travels is capped"
    return decode_error(stored)


def text_of_all(error: BaseException) -> str:
    """Give the texts of an exception and its causes."""
    return f"{error}\n{text_of_all(error.__cause__)}" if error.__cause__ is not None else str(error)


class TwoArguments(Exception):
    """Passes one of two arguments on, so that pickle cannot rebuild it."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class WithAttributes(Exception):
    """Has attributes that its constructor does not know."""

    detail: Any


class KeywordOnly(Exception):
    """Cannot be made without a keyword."""

    def __init__(self, *, path: str) -> None:
        super().__init__()
        self.path = path

    def __str__(self) -> str:
        return f"no {self.path}"


@attrs.frozen
class Frozen(Exception):
    """Refuses new attributes, but for those of exceptions."""

    number: int


@dataclasses.dataclass(frozen=True)
class FrozenData(Exception):
    """Refuses new attributes altogether."""


class BadReduce(Exception):
    """Cannot be pickled."""

    def __reduce__(self) -> Any:
        raise RuntimeError("no")


class BadText(Exception):
    """Has no text."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class BadNotes(Exception):
    """Has notes that are none."""

    __notes__: Any = 5


class BadLoad(Exception):
    """Can be pickled, but not unpickled."""

    def __reduce__(self) -> Any:
        return _fail_to_load, ()


class Liar(Exception):
    """Comes back as something that is no exception."""

    def __reduce__(self) -> Any:
        return str, ("not an exception",)


def _fail_to_load() -> None:
    raise SystemExit(3)

"""Checking results: a figure of a wrong result is worth nothing."""

from __future__ import annotations


class WrongResult(Exception):
    """A system gave a value that is not the right one."""


def expect(got: object, wanted: object, what: str = "the results") -> None:
    """Raise ``WrongResult`` if two values differ."""
    if got != wanted:
        raise WrongResult(f"{what}: {_short(got)} instead of {_short(wanted)}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."

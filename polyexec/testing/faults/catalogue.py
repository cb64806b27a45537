"""All rows of the matrix."""

from __future__ import annotations

from itertools import chain

from polyexec.testing.faults import deaths, engine, exhaustion, exits, lives, misuse, nesting, setting
from polyexec.testing.faults.model import Row

_MODULES = (deaths, engine, exhaustion, exits, lives, misuse, nesting, setting)

ROWS: tuple[Row, ...] = tuple(sorted(chain.from_iterable(module.ROWS for module in _MODULES), key=lambda row: row.id))


def row_of(name: str) -> Row:
    """Give the row with an id; raises ``LookupError`` if there is none."""
    return next(row for row in ROWS if row.id == name)

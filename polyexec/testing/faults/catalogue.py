"""All rows of the matrix."""

from __future__ import annotations

from itertools import chain

from polyexec.testing.faults import (
    cancels,
    deaths,
    endings,
    engine,
    exhaustion,
    exits,
    lives,
    misuse,
    nesting,
    setting,
    starts,
    values,
    workers,
)
from polyexec.testing.faults.model import Row

_MODULES = (
    cancels,
    deaths,
    endings,
    engine,
    exhaustion,
    exits,
    lives,
    misuse,
    nesting,
    setting,
    starts,
    values,
    workers,
)

ROWS: tuple[Row, ...] = tuple(sorted(chain.from_iterable(module.ROWS for module in _MODULES), key=lambda row: row.id))


def row_of(name: str) -> Row:
    """Give the row with an id; raises ``LookupError`` if there is none."""
    return next(row for row in ROWS if row.id == name)

"""All rows of the matrix."""

from __future__ import annotations

from polyexec.testing.faults import deaths, exits, misuse, nesting
from polyexec.testing.faults.model import Row

ROWS: tuple[Row, ...] = tuple(sorted((*deaths.ROWS, *exits.ROWS, *misuse.ROWS, *nesting.ROWS), key=lambda row: row.id))


def row_of(name: str) -> Row:
    """Give the row with an id; raises ``LookupError`` if there is none."""
    return next(row for row in ROWS if row.id == name)

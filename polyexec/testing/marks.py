"""Marks of the suite's tests: which clause they check, and on which backends."""

from __future__ import annotations

import pytest

from polyexec.testing.clauses import CLAUSES


def clause(*names: str) -> pytest.MarkDecorator:
    """Mark a test of one clause, or of several that only hold together; the first is the one it is reported under."""
    _check(names)
    return pytest.mark.clause(*names)


def deviation(name: str) -> pytest.MarkDecorator:
    """Mark the test that runs instead of the clause's own where a backend declares that it does not keep the clause."""
    _check((name,))
    return pytest.mark.clause(name, deviation=True)


def _check(names: tuple[str, ...]) -> None:
    unknown = [name for name in names if name not in CLAUSES]
    if unknown or not names:
        raise ValueError(f"not a clause of the contract: {', '.join(unknown) or 'nothing'}")


alone = pytest.mark.alone
"""Mark a test that opens executors or drivers of its own, with no other open in this process."""

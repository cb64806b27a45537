"""What several tests of the core need."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import polyexec

from .gates import Gate


@pytest.fixture
def ex() -> Iterator[polyexec.Executor]:
    """An executor on two threads."""
    with polyexec.connect("threads?workers=2") as executor:
        yield executor


@pytest.fixture
def gate() -> Iterator[Gate]:
    """A gate that is open at the end of the test, whatever happens."""
    made = Gate()
    yield made
    made.open()

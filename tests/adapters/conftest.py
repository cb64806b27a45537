"""What several tests of the adapters need."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from polyexec.testing.tools import Gate, Marks


@pytest.fixture
def marks(tmp_path: Path) -> Marks:
    """Marks that tasks leave."""
    return Marks(str(tmp_path / "marks"))


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """A gate that is open at the end of the test, whatever happens."""
    made = Gate(str(tmp_path / "gate"))
    yield made
    made.open()

"""Fixtures of the fault matrix."""

from __future__ import annotations

from pathlib import Path

import pytest

from polyexec.testing.faults.harness import Harness
from polyexec.testing.faults.report import FaultReport
from polyexec.testing.faults.session import faults_key
from polyexec.testing.target import Target


@pytest.fixture
def leaks() -> None:
    """Nothing: the harness judges what each cell has left."""


@pytest.fixture(scope="session")
def fault_report(pytestconfig: pytest.Config) -> FaultReport:
    """Where results go."""
    return pytestconfig.stash[faults_key].report


@pytest.fixture(scope="session")
def harness(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Harness:
    """What runs the cells."""
    found: Target | None = pytestconfig.stash[faults_key].target
    assert found is not None
    folder: Path = tmp_path_factory.mktemp("cells")
    return Harness(found, folder)

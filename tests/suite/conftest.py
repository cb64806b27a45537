from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import polyexec
from polyexec.testing import Report, run

_HERE = Path(__file__).parent
_FOREIGN = _HERE.parent / "foreign"


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which the faulty backends are installed, by their classes' names in small letters."""
    site = tmp_path_factory.mktemp("site")
    source = (_HERE / "faults" / "faulty_backends.py").read_text(encoding="utf-8")
    names = re.findall(r"^class ([A-Z]\w*)\((?!_|LocalClusterConfig|ForeignPoolConfig)", source, re.MULTILINE)
    points = "".join(f"{name.lower()} = faulty_backends:{name}\n" for name in names)
    points += "foreignpool = foreign_pool:ForeignPool\nabsent = faulty_absent:Absent\n"
    metadata = site / "faulty_backends-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty-backends\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[polyexec.backends]\n{points}")
    checkout = Path(polyexec.__file__).parent.parent
    path = [str(site), str(_HERE / "faults"), str(_FOREIGN), str(checkout), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path)), "POLYEXEC_TESTING_PATIENCE": "6"}


@pytest.fixture
def conformance(environment: dict[str, str], tmp_path: Path) -> Callable[..., Report]:
    """Runs some clauses of the suite for a backend, in a process of its own."""

    def start(backend: str, *clauses: str, only: str = "") -> Report:
        arguments = ["--clauses", ",".join(clauses), "-q", "--no-header", "--tb=line", "-p", "no:cacheprovider"]
        arguments += ["--basetemp", str(tmp_path / "run"), *(["-k", only] if only else [])]
        arguments += ["--rootdir", str(tmp_path)]
        return run(
            f"{backend.lower()}?workers=2",
            report=tmp_path / "report.json",
            arguments=arguments,
            environment=environment,
            timeout=110,
        )

    return start

"""Running the suite from a program, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from polyexec.testing.report import Report, load


def run(
    specification: str,
    *,
    report: str | os.PathLike[str] | None = None,
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> Report:
    """Run the conformance suite for a backend in a new Python process. Blocks; the suite's output goes to ours.

    Args:
        specification: of the backend, ``NAME[?key=value&...]``.
        report: where the report is written; by default nowhere that lasts.
        arguments: more arguments for pytest, for example ``["-k", "cancel"]``.
        environment: environment of the process; by default this one's.
        timeout: seconds after which the process is killed; by default none.

    Returns:
        The report.

    Raises:
        RuntimeError: the suite could not be started.
        subprocess.TimeoutExpired: it took longer than ``timeout``.
    """
    with tempfile.TemporaryDirectory(prefix="polyexec-testing-") as folder:
        path = Path(report) if report is not None else Path(folder) / "report.json"
        path.unlink(missing_ok=True)
        command = [sys.executable, "-m", "pytest", "-p", "polyexec.testing.plugin", "--pyargs", "polyexec.testing"]
        command += ["--backend", specification, "--backend-report", str(path.absolute()), *arguments]
        done = subprocess.run(
            command, env=None if environment is None else dict(environment), timeout=timeout, check=False
        )
        if not path.exists():
            raise RuntimeError(f"the conformance suite did not start: pytest ended with {done.returncode}")
        return load(path)

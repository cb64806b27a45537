"""The benchmark of what recording costs runs, and says what it should. No figure decides."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

COMMAND = Path(__file__).parents[2] / "benchmarks" / "events_cost.py"


def test_the_smallest_size() -> None:
    command = [sys.executable, str(COMMAND), "threads?workers=1", "--pairs", "4", "--count", "20"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.split()[1] for line in done.stdout.splitlines()] == ["time", "cpu"]
    assert all("ratio" in line for line in done.stdout.splitlines())

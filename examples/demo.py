"""Run the census on several backends, with nothing but POLYEXEC_BACKEND changed, and compare what they find."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import attrs

BACKENDS = ("serial", "threads", "process", "dask", "ray")
LIMIT_SECONDS = 300
HEADINGS = ("backend", "digest", "seconds", "start-up", "chosen by")


@attrs.frozen
class Run:
    """What became of the census on one backend; one of facts and failure is set."""

    backend: str
    facts: dict[str, str | float] | None = None
    failure: str = ""

    @property
    def cells(self) -> tuple[str, ...]:
        """The columns of the table."""
        if self.facts is None:
            return (self.backend, f"failed: {self.failure}")
        times = (f"{float(self.facts[key]):.2f} s" for key in ("seconds", "start_seconds"))
        return (str(self.facts["backend"]), str(self.facts["digest"])[:16], *times, str(self.facts["chosen_by"]))


def main() -> int:
    """Print one line for each backend; give 0 if all found the same."""
    print(format_row(HEADINGS))
    runs = []
    for backend in sys.argv[1:] or BACKENDS:
        runs.append(take_census(backend))
        print(format_row(runs[-1].cells), flush=True)
    digests = {str(run.facts["digest"]) for run in runs if run.facts}
    if any(run.facts is None for run in runs):
        print("demo: not every backend finished", file=sys.stderr)
        return 1
    if len(digests) > 1:
        print(f"demo: the backends disagree, there are {len(digests)} different digests", file=sys.stderr)
        return 1
    print(f"all {len(runs)} agree on {digests.pop()}")
    return 0


def take_census(backend: str) -> Run:
    """Run the census in a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name("census.py")), "--json"]
    environment = {**os.environ, "POLYEXEC_BACKEND": backend}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return Run(backend, failure=f"not finished after {LIMIT_SECONDS} s")
    if done.returncode:
        return Run(backend, failure=last_line(done.stderr) or f"exit code {done.returncode}")
    return Run(backend, json.loads(last_line(done.stdout)))


def last_line(text: str) -> str:
    """Give the last line that is not empty."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")


def format_row(cells: tuple[str, ...]) -> str:
    """Align the columns."""
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, (10, 18, 10, 10, 16), strict=False)).rstrip()


if __name__ == "__main__":
    sys.exit(main())

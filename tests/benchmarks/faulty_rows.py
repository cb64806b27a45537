"""A row whose systems misbehave, each in a way of its own."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from local.bench import Bench, Round, expect
from local.rows import Entrant, Row

PIDS = "FAULTY_ROWS_PIDS"
"""Environment variable with the file in which processes that are to be killed are noted."""


def good(bench: Bench) -> Round:
    return lambda: {"rate": 2.0}


def hanging(bench: Bench) -> Round:
    child = subprocess.Popen(["sleep", "600"], start_new_session=True)
    Path(os.environ[PIDS]).write_text(f"{os.getpid()} {child.pid}")

    def run() -> dict[str, float]:
        time.sleep(600)
        return {}

    return run


def lying(bench: Bench) -> Round:
    def run() -> dict[str, float]:
        expect([1, 3], [1, 2])
        return {}

    return run


def raising(bench: Bench) -> Round:
    raise ValueError("cannot open")


def dying(bench: Bench) -> Round:
    return lambda: os._exit(3)


ROWS = {
    "faulty": Row(
        name="faulty", what="a row of {count}", metric="rate", unit="/s", more=True, sizes={"count": (3, 2, 1)},
        entrants=tuple(Entrant(case.__name__, case.__name__, case) for case in (hanging, lying, raising, dying, good)),
        limit=3,
    )
}  # fmt: skip

"""What a case is given, and what it gives."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import attrs

from polyexec_bench.checks import WrongResult
from polyexec_bench.systems import System, open_system

PATIENCE = 30.0
"""Seconds within which something must happen that takes milliseconds as a rule."""

Figures: TypeAlias = Mapping[str, Any]
"""Numbers by name, and now and then a text or a list of such mappings; all of it can be written as JSON."""

Round: TypeAlias = Callable[..., Figures]
"""Runs once; its keyword arguments can be written as JSON as well."""


def whoami(number: int) -> int:
    """Give the worker's process id, slowly enough for another worker to take the next task."""
    time.sleep(0.005)
    return os.getpid()


@attrs.define
class Bench:
    """What a case works with: one system, and a folder of its own.

    Attributes:
        name: of the system; nothing for a case that needs none.
        workers: how many it has.
        folder: for files.
        notes: facts for the report, by name.
    """

    name: str
    workers: int
    folder: Path
    notes: dict[str, Any] = attrs.Factory(dict)
    _numbers: itertools.count[int] = attrs.Factory(itertools.count)
    _closers: list[Callable[[], object]] = attrs.Factory(list)

    def open(self, *, warm: bool = True) -> System:
        """Open the system; by default all workers have answered when this returns."""
        began = time.perf_counter()
        system = open_system(self.name, self.workers)
        self.at_end(system.close)
        if warm:
            self.warm_up(system)
        self.notes["open_seconds"] = time.perf_counter() - began
        return system

    def warm_up(self, system: System) -> None:
        """Let every worker answer."""
        end = time.monotonic() + PATIENCE
        pids: set[int] = set()
        # Where tasks run in this process they have one process id between them.
        while len(pids) < self.workers and os.getpid() not in pids:
            if time.monotonic() > end:
                raise WrongResult(f"{len(pids)} of {self.workers} workers answered within {PATIENCE:g} s")
            handles = [system.submit(whoami, number) for number in self.numbers(2 * self.workers)]
            pids.update(system.take(handles))

    def numbers(self, count: int) -> range:
        """Give numbers that no task of this case has had as an argument."""
        first = next(self._numbers) << 24
        return range(first, first + count)

    def at_end(self, closer: Callable[[], Any]) -> None:
        """Have something called when the case is over."""
        self._closers.append(closer)

    def close(self) -> None:
        """Close what was opened, the last first."""
        while self._closers:
            self._closers.pop()()

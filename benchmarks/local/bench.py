"""What a case is given, and what it gives."""

from __future__ import annotations

import importlib
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import attrs

from local import tasks
from local.systems import OPENERS, System

WORKERS = 2
PATIENCE = 30.0
"""Seconds within which something must happen that takes milliseconds as a rule."""

Metrics: TypeAlias = dict[str, float]
Round: TypeAlias = Callable[[], Metrics]


class WrongResult(Exception):
    """A system gave a value that is not the right one."""


def expect(got: object, wanted: object, what: str = "the results") -> None:
    """Raise ``WrongResult`` if two values differ."""
    if got != wanted:
        raise WrongResult(f"{what}: {_short(got)} instead of {_short(wanted)}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def await_file(path: Path) -> None:
    """Wait until a file exists.

    Raises:
        WrongResult: it does not come.
    """
    end = time.monotonic() + PATIENCE
    while not path.exists():
        if time.monotonic() > end:
            raise WrongResult(f"a task did not begin within {PATIENCE:g} s")
        time.sleep(0.001)


@attrs.define
class Bench:
    """What a case works with: one system, the sizes of its row, and a folder of its own.

    Attributes:
        system: name of the system, among ``OPENERS``.
        sizes: numbers by name.
        folder: for marker files.
        notes: facts for the report, by name.
    """

    system: str
    sizes: dict[str, int]
    folder: Path
    notes: dict[str, object] = attrs.Factory(dict)
    _opened: list[tuple[System, int]] = attrs.Factory(list)
    _numbers: itertools.count[int] = attrs.Factory(itertools.count)
    _closers: list[Callable[[], object]] = attrs.Factory(list)

    def load(self) -> None:
        """Import the system's module."""
        importlib.import_module(OPENERS[self.system].module)

    def open(self, workers: int = WORKERS, *, warm: bool = True) -> System:
        """Open the system; by default all workers have answered when this returns."""
        system = OPENERS[self.system].open(workers)
        self.at_end(system.close)
        if warm:
            self._opened.append((system, workers))
            self.warm_up()
        return system

    def warm_up(self) -> None:
        """Let every worker of what is open answer: some systems let idle workers go between two rounds."""
        for system, workers in self._opened:
            end = time.monotonic() + PATIENCE
            pids: set[int] = set()
            while len(pids) < workers:
                if time.monotonic() > end:
                    raise WrongResult(f"{len(pids)} of {workers} workers answered within {PATIENCE:g} s")
                pids.update(system.many(tasks.whoami, self.numbers(2 * workers)))

    def numbers(self, count: int) -> range:
        """Give numbers that no task of this case has had as an argument."""
        first = next(self._numbers) << 24
        return range(first, first + count)

    def path(self, kind: str) -> Path:
        """Name a file that does not exist."""
        return self.folder / f"{kind}-{next(self._numbers)}"

    def at_end(self, closer: Callable[[], Any]) -> None:
        """Have something called when the case is over."""
        self._closers.append(closer)

    def close(self) -> None:
        """Close what was opened, the last first."""
        while self._closers:
            self._closers.pop()()

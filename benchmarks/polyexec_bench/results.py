"""What a run of the benchmark amounts to, and the JSON document that holds it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

SCHEMA = 1


@attrs.frozen(kw_only=True)
class Measurement:
    """One repeat of one benchmark on one system.

    Attributes:
        bench: name of the benchmark.
        params: what was asked for.
        system: name of the system.
        repeat: number of the round, from 0; the same for all systems that took turns.
        figures: what came out, by name; seconds, bytes, or counts by second.
        status: ``ok``, ``missing`` (not installed), ``hang``, ``wrong``, ``failed`` or ``died``.
        error: what happened, if not ok.
    """

    bench: str
    params: Mapping[str, Any]
    system: str
    repeat: int
    figures: Mapping[str, Any]
    status: str = "ok"
    error: str = ""


@attrs.frozen
class Run:
    """One run of the benchmark: what was measured, and on what.

    Attributes:
        facts: time, machine, versions and settings; see ``machine.facts``.
        rows: all measurements.
    """

    facts: Mapping[str, Any]
    rows: Sequence[Measurement]

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        rows = [attrs.asdict(row, recurse=False) for row in self.rows]
        path.write_text(json.dumps({"schema": SCHEMA, **self.facts, "rows": rows}, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Run:
        """Read what ``write`` has written.

        Raises:
            ValueError: the file holds something else.
        """
        document = json.loads(path.read_text())
        if not isinstance(document, dict) or document.get("schema") != SCHEMA:
            raise ValueError(f"{path} is not a run of the benchmark in schema {SCHEMA}")
        rows = [Measurement(**row) for row in document.pop("rows")]
        return cls({name: value for name, value in document.items() if name != "schema"}, rows)


@attrs.frozen
class Spread:
    """What the repeats of one figure amount to."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Describe some values, of which there is at least one."""
        return cls(statistics.median(values), min(values), max(values), len(values))


@attrs.frozen
class Group:
    """All repeats of one benchmark with the same parameters on one system, in order."""

    bench: str
    params: Mapping[str, Any]
    system: str
    rows: Sequence[Measurement]

    @property
    def label(self) -> str:
        """Name it for readers, without the system."""
        return " ".join([self.bench, *(f"{name}={value}" for name, value in self.params.items())])

    @property
    def trouble(self) -> Measurement | None:
        """Give the first repeat that did not end well, None if all did."""
        return next((row for row in self.rows if row.status != "ok"), None)

    def values(self, figure: str) -> list[float]:
        """Give a figure of all repeats that have it."""
        found = (row.figures.get(figure) for row in self.rows)
        return [float(value) for value in found if value is not None]


def groups(rows: Iterable[Measurement], wanted: Callable[[Measurement], bool] = lambda row: True) -> list[Group]:
    """Put repeats together, in the order in which they first come."""
    found: dict[str, list[Measurement]] = {}
    for row in rows:
        if wanted(row):
            found.setdefault(json.dumps([row.bench, row.params, row.system], sort_keys=True), []).append(row)
    return [Group(same[0].bench, same[0].params, same[0].system, same) for same in found.values()]

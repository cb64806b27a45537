"""What a run of the matrix has found, as data and as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import attrs

PASS, FAIL, CAPABILITY, SKIP, DIES = "PASS", "FAIL", "CAPABILITY", "SKIP", "D"
_WORST_FIRST = (FAIL, CAPABILITY, DIES, PASS, SKIP)
_SCHEMA = 1


@attrs.define
class CaseResult:
    """What came of one case.

    Attributes:
        name: of the case.
        status: ``PASS``, ``FAIL``, ``CAPABILITY``, ``SKIP`` or ``D``.
        outcome: what the user of the victim saw.
        message: why it failed or was skipped, or what is declared.
        injected: number of times that the fault was done.
        detected: seconds from each fault to its error or recovery, where it can be told.
        starts: number of times that the victim's body started, None if that says nothing.
        duplicates: starts beyond what the options allow.
        innocents: number of tasks that had nothing to do with the fault.
        lost: how many of them did not give their result.
        hung: something that had to come did not.
        stacks: where everybody was then.
        seconds: how long the case took.
    """

    name: str
    status: str = FAIL
    outcome: str = ""
    message: str = ""
    injected: int = 0
    detected: list[float] = attrs.field(factory=list)
    starts: int | None = None
    duplicates: int = 0
    innocents: int = 0
    lost: int = 0
    hung: bool = False
    stacks: str = ""
    seconds: float = 0.0


@attrs.define
class RowResult:
    """A cell: what came of a row on a backend.

    Attributes:
        id: of the row.
        title: of the row.
        cases: results of its cases.
        left: what was left behind, none if nothing was.
        allowed: what was left behind as the backend declares.
    """

    id: str
    title: str
    cases: list[CaseResult] = attrs.field(factory=list)
    left: list[str] = attrs.field(factory=list)
    allowed: list[str] = attrs.field(factory=list)

    @property
    def status(self) -> str:
        """The worst status of a case; FAIL if something was left behind."""
        if self.left or not self.cases:
            return FAIL
        statuses = {case.status for case in self.cases}
        worst = next(status for status in _WORST_FIRST if status in statuses)
        return CAPABILITY if self.allowed and worst != FAIL else worst

    def problems(self) -> list[str]:
        """Say what is wrong, one text for each case that failed and one for what was left."""
        failed = [f"{case.name}: {case.message}\n{case.stacks}".rstrip() for case in self.cases if case.status == FAIL]
        return [*failed, *(f"left over: {text}" for text in self.left)] or ([] if self.cases else ["no case ran"])


@attrs.define
class FaultReport:
    """A run of the matrix on a backend.

    Attributes:
        specification: of the backend.
        backend: its name.
        engine: name and version of the engine, empty until it was opened.
        polyexec: version of polyexec.
        python: version of Python.
        rows: results by row.
        finished: whether the run came to its end.
    """

    specification: str
    backend: str
    engine: str = ""
    polyexec: str = ""
    python: str = ""
    rows: list[RowResult] = attrs.field(factory=list)
    finished: bool = False

    def failures(self) -> dict[str, list[str]]:
        """Give what is wrong, by row."""
        return {row.id: row.problems() for row in self.rows if row.status == FAIL}

    def cases(self) -> Iterable[CaseResult]:
        """Give the results of all cases."""
        return (case for row in self.rows for case in row.cases)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON, whole or not at all."""
        content = {"schema": _SCHEMA, **attrs.asdict(self)}
        for row, found in zip(content["rows"], self.rows, strict=True):
            row["status"] = found.status
        target = Path(path)
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        temporary.replace(target)


def load(path: str | os.PathLike[str]) -> FaultReport:
    """Read a report.

    Args:
        path: a file that ``--fault-report`` wrote.

    Returns:
        The report.

    Raises:
        ValueError: the file is not a report of this version.
    """
    content: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    if content.pop("schema", None) != _SCHEMA or "rows" not in content:
        raise ValueError(f"{os.fspath(path)} is not a report of the fault matrix, or of another version")
    rows = [_row(found) for found in content.pop("rows")]
    return FaultReport(rows=rows, **content)


def _row(content: dict[str, Any]) -> RowResult:
    content.pop("status")
    return RowResult(cases=[CaseResult(**case) for case in content.pop("cases")], **content)

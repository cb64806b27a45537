"""The report of a run: which clauses a backend keeps, as data and as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from polyexec.testing.clauses import CLAUSES, sort_key

PASSED, FAILED, DEVIATION, SKIPPED = "passed", "failed", "deviation", "skipped"
_SCHEMA = 1


@attrs.define
class TestResult:
    """How one test ended.

    Attributes:
        name: its node id inside the suite.
        outcome: ``passed``, ``failed`` or ``skipped``; ``failed`` also while it runs, so that a report of a run that
            was killed names the test that was to blame.
        seconds: how long it took.
        message: why it failed or was skipped, or a remark, for example that a clause holds trivially.
    """

    __test__ = False

    name: str
    outcome: str
    seconds: float = 0.0
    message: str = ""


@attrs.frozen
class ClauseResult:
    """How a backend stands to one clause.

    Attributes:
        status: ``passed``, ``failed``, ``deviation`` (declared, and what happens instead was checked) or ``skipped``.
        tests: the tests of the clause.
        deviation: reason and what happens instead, where it is declared.
    """

    status: str
    tests: tuple[TestResult, ...]
    deviation: Mapping[str, str] | None = None


@attrs.define
class Report:
    """A run of the suite.

    Attributes:
        specification: of the backend.
        backend: its name.
        engine: name and version of the engine, empty until it was opened.
        polyexec: version of polyexec.
        python: version of Python.
        capabilities: what the backend says that it does.
        clauses: results by clause.
        finished: whether the run came to its end.
    """

    specification: str
    backend: str
    engine: str = ""
    polyexec: str = ""
    python: str = ""
    capabilities: dict[str, bool] = attrs.field(factory=dict)
    clauses: dict[str, ClauseResult] = attrs.field(factory=dict)
    finished: bool = False

    def failures(self) -> dict[str, list[str]]:
        """Give the tests that failed, with their messages, by clause."""
        failed = {name: result for name, result in self.clauses.items() if result.status == FAILED}
        return {
            name: [f"{test.name}: {test.message}" for test in result.tests if test.outcome == FAILED]
            or ["declared as a deviation, but kept: undeclare it"]
            for name, result in failed.items()
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON, whole or not at all."""
        ordered = {name: self.clauses[name] for name in sorted(self.clauses, key=sort_key)}
        content = {"schema": _SCHEMA, **attrs.asdict(attrs.evolve(self, clauses=ordered))}
        for name, clause in content["clauses"].items():
            clause["title"] = CLAUSES[name]
        target = Path(path)
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        temporary.replace(target)


def load(path: str | os.PathLike[str]) -> Report:
    """Read a report.

    Args:
        path: a file that ``--backend-report`` wrote.

    Returns:
        The report.

    Raises:
        ValueError: the file is not a report of this version.
    """
    content: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    if content.pop("schema", None) != _SCHEMA:
        raise ValueError(f"{os.fspath(path)} is not a report of the conformance suite, or of another version")
    clauses = {name: _clause(found) for name, found in content.pop("clauses").items()}
    return Report(clauses=clauses, **content)


def _clause(content: dict[str, Any]) -> ClauseResult:
    return ClauseResult(
        content["status"], tuple(TestResult(**test) for test in content["tests"]), content.get("deviation")
    )


def status_of(tests: tuple[TestResult, ...], declared: bool, replaced: bool) -> str:
    """Decide a clause's status.

    Args:
        tests: the tests that ran for it.
        declared: the backend declares that it does not keep the clause.
        replaced: the tests are those of what happens instead, not the clause's own.

    Returns:
        One of the statuses of ``ClauseResult``.
    """
    outcomes = {test.outcome for test in tests}
    if declared and not replaced:
        return DEVIATION if FAILED in outcomes else SKIPPED if outcomes == {SKIPPED} else FAILED
    if FAILED in outcomes:
        return FAILED
    if PASSED not in outcomes:
        return SKIPPED
    return DEVIATION if declared else PASSED

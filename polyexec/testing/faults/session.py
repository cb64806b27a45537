"""A run of the fault matrix: its options, its limits and its report."""

from __future__ import annotations

import platform
from pathlib import Path

import attrs
import pytest

import polyexec
from polyexec.testing.faults.report import FaultReport
from polyexec.testing.session import find_target
from polyexec.testing.target import Target

_ROW_LIMIT = 1800
"""Seconds that a row may take; the harness keeps the limits of the cases, this is behind it."""

faults_key = pytest.StashKey["FaultSession"]()


@attrs.define(eq=False)
class FaultSession:
    """Hooks of one run, and its report.

    Attributes:
        target: the backend, None if its engine is not installed.
        absent: why the engine is absent.
        report: what is known so far.
        path: where the report goes, None for nowhere.
    """

    target: Target | None
    absent: str
    report: FaultReport
    path: Path | None

    @staticmethod
    def of(config: pytest.Config) -> FaultSession:
        """Read the options; raises ``pytest.UsageError`` if they make no sense."""
        specification = config.option.polyexec_backend
        if not specification:
            raise pytest.UsageError('say to which backend the faults shall be done: --backend "NAME?workers=2"')
        target, absent = find_target(specification)
        if target is not None and not target.own_cluster:
            raise pytest.UsageError("the fault matrix needs an engine that it may start and harm itself, not address=")
        name = target.name if target else specification.partition("?")[0]
        report = FaultReport(specification, name, polyexec=polyexec.__version__, python=platform.python_version())
        path = config.option.polyexec_faults_report
        session = FaultSession(target, absent, report, Path(path).absolute() if path else None)
        config.stash[faults_key] = session
        return session

    def pytest_report_header(self) -> str:
        """Say what is harmed."""
        return f"polyexec: faults done to {self.report.specification!r}"

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Give the rows their limit, and skip them if the engine is absent."""
        for item in items:
            if "harness" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.timeout(_ROW_LIMIT, method="signal"))
                if self.target is None:
                    item.add_marker(pytest.mark.skip(reason=self.absent))

    def pytest_runtest_logfinish(self) -> None:
        """Save what is known so far."""
        self._save()

    def pytest_sessionfinish(self) -> None:
        """Write the report."""
        self.report.finished = True
        self._save()

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say how the cells stand."""
        terminalreporter.section("faults", sep="-")
        terminalreporter.line(f"{self.report.backend} ({self.report.engine or 'not opened'})")
        for row in self.report.rows:
            terminalreporter.line(f"{row.id} {row.status:10} {row.title}")

    def _save(self) -> None:
        if self.path is not None:
            self.report.save(self.path)

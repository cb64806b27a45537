"""A run of the suite: which tests are chosen, in which order they run, and what is reported."""

from __future__ import annotations

import faulthandler
import os
import platform
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

import attrs
import pytest

import polyexec
from polyexec.testing.clauses import CLAUSES
from polyexec.testing.report import (
    DEVIATION,
    FAILED,
    PASSED,
    SKIPPED,
    ClauseResult,
    Report,
    TestResult,
    status_of,
)
from polyexec.testing.target import Target, required
from polyexec.testing.watch import LeakError

TEST_LIMIT = 60
"""Seconds that one test may take; a test that takes longer has failed."""

HANG_LIMIT = 130
"""Seconds after which a test that cannot be interrupted ends the run; the stacks of all threads are shown."""

_PHASES = {"ex": 0, "single": 1, "last": 2}
failed_key = pytest.StashKey[bool]()
session_key = pytest.StashKey["Session"]()


@attrs.define(eq=False)
class Session:
    """Hooks of one run, and its report.

    Attributes:
        target: the backend under test, None if its engine is not installed.
        absent: why the engine is absent.
        report: what is known so far.
        path: where the report goes, None for nowhere.
        clauses: the chosen clauses, empty for all.
    """

    target: Target | None
    absent: str
    report: Report
    path: Path | None
    clauses: frozenset[str]
    _results: dict[str, tuple[str, TestResult]] = attrs.field(factory=dict)
    _leaks: list[TestResult] = attrs.field(factory=list)
    _replaced: set[str] = attrs.field(factory=set)
    _stderr: int = attrs.field(factory=lambda: os.dup(2))

    @staticmethod
    def of(config: pytest.Config) -> Session:
        """Read the options; raises ``pytest.UsageError`` if they make no sense."""
        specification = config.option.polyexec_backend
        if not specification:
            raise pytest.UsageError('say which backend the suite shall test: --backend "NAME?workers=2"')
        target, absent = find_target(specification)
        chosen = frozenset(name for name in config.option.polyexec_clauses.replace(" ", "").split(",") if name)
        if chosen - CLAUSES.keys():
            raise pytest.UsageError(f"--clauses: no clause {sorted(chosen - CLAUSES.keys())[0]!r} in the contract")
        name = target.name if target else specification.partition("?")[0]
        report = Report(specification, name, polyexec=polyexec.__version__, python=platform.python_version())
        if target is not None:
            report.capabilities = attrs.asdict(target.capabilities)
        path = config.option.polyexec_report
        config.addinivalue_line("markers", "clause(*names, deviation=False): the clauses that a test checks")
        config.addinivalue_line("markers", "alone: no other executor is open in this process meanwhile")
        session = Session(target, absent, report, Path(path).absolute() if path else None, chosen)
        config.stash[session_key] = session
        return session

    def pytest_report_header(self) -> str:
        """Say what is tested."""
        return f"polyexec: conformance of {self.report.specification!r}"

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Choose the tests that fit what the backend declares, and group them by the executor that they need."""
        ours = [item for item in items if item.get_closest_marker("clause") is not None]
        others = [item for item in items if item.get_closest_marker("clause") is None]
        self._replaced = {_clause(item) for item in ours if _is_deviation(item)}
        chosen = [item for item in ours if self._chosen(item)]
        config.hook.pytest_deselected(items=[item for item in ours if item not in set(chosen)])
        for item in chosen:
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(TEST_LIMIT, method="signal"))
            if self.target is None:
                item.add_marker(pytest.mark.skip(reason=self.absent))
            elif item.get_closest_marker("alone") is not None and not self.target.own_cluster:
                item.add_marker(pytest.mark.skip(reason="needs an engine that it may start and harm itself"))
        items[:] = others + sorted(chosen, key=_phase)

    def _chosen(self, item: pytest.Item) -> bool:
        name = _clause(item)
        if self.clauses and not self.clauses & set(_clauses(item)):
            return False
        declared = self.target is not None and self.target.declared(name) is not None
        return declared if _is_deviation(item) else not (declared and name in self._replaced)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Note a test as failed until it has ended; end the whole run if it hangs so that even its limit cannot."""
        if item.get_closest_marker("clause") is None:
            return (yield)
        self._results[item.nodeid] = (_clause(item), TestResult(_name(item), FAILED, message="it did not end"))
        self._save()
        faulthandler.dump_traceback_later(HANG_LIMIT, exit=True, file=self._stderr)
        try:
            return (yield)
        finally:
            faulthandler.cancel_dump_traceback_later()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Note how a test ended, and turn it round where its clause is declared as not kept."""
        report = yield
        if item.nodeid not in self._results:
            return report
        name, result = self._results[item.nodeid]
        result.seconds = round(result.seconds + report.duration, 3)
        error = call.excinfo.value if call.excinfo is not None else None
        leak = report.when == "teardown" and isinstance(error, LeakError)
        if report.failed and leak:
            self._leaks.append(TestResult(f"after {result.name}", FAILED, message=str(error)))
        elif report.failed:
            result.outcome, result.message = FAILED, _message(report)
            item.stash[failed_key] = True
        elif report.skipped:
            result.outcome, result.message = SKIPPED, _message(report)
        elif report.when == "call":
            result.outcome, result.message = PASSED, "; ".join(str(v) for k, v in report.user_properties if k == "note")
        if report.failed and not leak and self._turned_round(name):
            report.outcome, report.wasxfail = "skipped", f"{name} is declared as a deviation"
        return report

    def _turned_round(self, name: str) -> bool:
        return self.target is not None and self.target.declared(name) is not None and name not in self._replaced

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the report; a deviation that is declared but kept fails the run."""
        self.report.finished = True
        self._save()
        if self.report.failures() and session.exitstatus == 0:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say how the clauses stand."""
        statuses = [result.status for result in self.report.clauses.values()]
        counts = ", ".join(f"{statuses.count(kind)} {kind}" for kind in (PASSED, DEVIATION, SKIPPED, FAILED))
        terminalreporter.section("conformance", sep="-")
        terminalreporter.line(f"{self.report.backend} ({self.report.engine or 'not opened'}): clauses: {counts}")
        for name, messages in self.report.failures().items():
            terminalreporter.line(f"{name} {CLAUSES[name]}: {messages[0].splitlines()[0]}")

    def _save(self) -> None:
        by_clause: dict[str, list[TestResult]] = {}
        for name, result in self._results.values():
            by_clause.setdefault(name, []).append(result)
        if self._leaks:
            by_clause.setdefault("F9", []).extend(self._leaks)
        self.report.clauses = {name: self._clause(name, tuple(tests)) for name, tests in by_clause.items()}
        if self.path is not None:
            self.report.save(self.path)

    def _clause(self, name: str, tests: tuple[TestResult, ...]) -> ClauseResult:
        declared = self.target.declared(name) if self.target else None
        status = status_of(tests, declared is not None, name in self._replaced)
        return ClauseResult(status, tests, attrs.asdict(declared) if declared else None)


def find_target(specification: str) -> tuple[Target | None, str]:
    """Find the backend under test.

    Args:
        specification: as given to ``--backend``.

    Returns:
        The target, or None and why its engine is absent.

    Raises:
        pytest.UsageError: there is no such backend, or its engine is absent and must be there.
    """
    try:
        return Target.of(specification), ""
    except polyexec.BackendUnavailable as error:
        if specification.partition("?")[0] in required():
            raise pytest.UsageError(f"{error} (and POLYEXEC_REQUIRE says that it must be there)") from error
        return None, str(error)
    except polyexec.PolyexecError as error:
        raise pytest.UsageError(str(error)) from error


def _clauses(item: pytest.Item) -> tuple[str, ...]:
    marker = item.get_closest_marker("clause")
    return tuple(marker.args) if marker else ()


def _clause(item: pytest.Item) -> str:
    return _clauses(item)[0]


def _is_deviation(item: pytest.Item) -> bool:
    marker = item.get_closest_marker("clause")
    return marker is not None and bool(marker.kwargs.get("deviation"))


def _phase(item: pytest.Item) -> int:
    if item.get_closest_marker("alone") is not None:
        return 9
    names: Iterable[str] = getattr(item, "fixturenames", ())
    return min((_PHASES[name] for name in names if name in _PHASES), default=0)


def _name(item: pytest.Item) -> str:
    return item.nodeid.rpartition("/")[2]


def _message(report: pytest.TestReport) -> str:
    if report.skipped and isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message if crash is not None else report.longrepr)[:2000]

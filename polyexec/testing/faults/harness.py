"""Runs the cells of the matrix from outside: starts the processes, keeps their limits, looks at what they have left."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

from polyexec.testing.drivers import import_path
from polyexec.testing.faults import stacks
from polyexec.testing.faults.child import RECORDS
from polyexec.testing.faults.model import Case, Row
from polyexec.testing.faults.report import DIES, FAIL, SKIP, CaseResult, RowResult
from polyexec.testing.target import Target
from polyexec.testing.things import Things
from polyexec.testing.tools import eventually
from polyexec.testing.watch import Process, family, marked_environment

_GRACE = 5.0
_LONG_GRACE = 80.0
"""Seconds that the engine's own processes may take to end where they are declared to need about a minute (F8)."""

_START_LIMIT = 60.0
_EVERY = 0.5
"""Seconds after which it is looked again which processes a cell has."""


@attrs.define(eq=False)
class Harness:
    """Runs rows on one backend.

    Attributes:
        target: the backend.
        folder: where cells write; each has a folder of its own in it.
        engine: name and version of the engine, empty until it was opened.
    """

    target: Target
    folder: Path
    engine: str = ""

    def run(self, row: Row) -> RowResult:
        """Run all cases of a row. Blocks; the cases' own limits bound it."""
        found = RowResult(row.id, row.title)
        by_name: dict[str, CaseResult] = {}
        possible = []
        for case in row.cases:
            if reason := case.unmet(self.target):
                by_name[case.name] = CaseResult(case.name, SKIP, message=reason)
            else:
                possible.append(case)
        for group in self._groups(possible):
            remaining = group
            while remaining:
                for result in self._cell(row, remaining, found):
                    by_name[result.name] = result
                remaining = [case for case in remaining if case.name not in by_name]
        found.cases = [by_name[case.name] for case in row.cases]
        return found

    def _groups(self, cases: list[Case]) -> list[list[Case]]:
        """Give the cases that may share a process: one whose driver ends has its own."""
        groups: dict[Any, list[Case]] = {}
        for case in cases:
            ends = case.ends_driver(self.target)
            groups.setdefault((case.own, case.name if ends else "", str(case.keys)), []).append(case)
        return list(groups.values())

    def _cell(self, row: Row, cases: list[Case], found: RowResult) -> list[CaseResult]:
        """Run cases in one process as far as it goes, at least the first; note what is left."""
        with marked_environment(), self._start(row, cases) as process:
            watch = Watch(process)
            hung = watch.until_end()
            results = watch.results
            self.engine = watch.engine or self.engine
            found.left += watch.left
            if hung or watch.process.returncode != 0 or not results:
                self._interrupted(watch, cases, hung)
            if results[-1].hung:
                return results
            died = cases[0].ends_driver(self.target)
            left, allowed = watch.left_over(lenient=died and self.target.declared("F8") is not None)
            found.left += left
            found.allowed += allowed
            return results

    def _interrupted(self, watch: Watch, cases: list[Case], hung: str) -> None:
        """Say what became of the case that the process was at when it ended, the last if it was closing already."""
        if watch.results and (watch.results[-1].hung or watch.case in ("", watch.results[-1].name)):
            result = watch.results[-1]
        else:
            result = CaseResult(watch.case or cases[0].name, injected=1)
            watch.results.append(result)
        case = next(case for case in cases if case.name == result.name)
        code = watch.process.returncode
        if result.hung:
            return
        if watch.case and not hung and case.ends_driver(self.target) and code == case.ending:
            result.status, result.outcome = DIES, f"the driver ends with {_ending(code)}"
            return
        result.status, result.hung, result.stacks = FAIL, bool(hung), watch.stacks
        result.message = hung or f"the driver ended with {_ending(code)} {watch.stage()}: {watch.said()}"

    @contextmanager
    def _start(self, row: Row, cases: list[Case]) -> Iterator[Started]:
        folder = Path(tempfile.mkdtemp(prefix=f"{row.id}-", dir=self.folder))
        module = "polyexec.testing.faults.child"
        command = [sys.executable, "-m", module, self.target.specification, str(folder), row.id]
        environment = {**os.environ, "PYTHONPATH": import_path(self.target), stacks.FOLDER: str(folder)}
        before = Things.now()
        with open(folder / "output", "wb") as output:
            process = subprocess.Popen(
                [*command, *(case.name for case in cases)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                cwd=folder,
                start_new_session=True,
            )
        try:
            yield Started(process, folder, before)
        finally:
            before.end_others(_GRACE)
            process.wait()


@attrs.frozen
class Started:
    """A process that runs cases, and what there was before it."""

    process: subprocess.Popen[bytes]
    folder: Path
    before: Things


@attrs.define(eq=False)
class Watch:
    """Follows what a process that runs cases says about itself.

    Attributes:
        started: the process.
        results: of the cases that have ended.
        case: the case that it is at, empty for none.
        engine: name and version of the engine.
        left: what it says was left when it had closed its executor.
        stacks: where everybody was when it hung.
    """

    started: Started
    results: list[CaseResult] = attrs.field(factory=list)
    case: str = ""
    engine: str = ""
    left: list[str] = attrs.field(factory=list)
    stacks: str = ""
    _read: int = 0
    _deadline: float = attrs.field(factory=lambda: time.monotonic() + _START_LIMIT)
    _seen: set[Process] = attrs.field(factory=set)

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process."""
        return self.started.process

    def until_end(self) -> str:
        """Wait for the end of the process.

        Returns:
            Why it was taken to hang, with its stacks noted; empty if it has ended.
        """
        look = 0.0
        while True:
            ended = self.process.poll() is not None
            self._read_on()
            if ended or time.monotonic() > look:
                self._seen |= family()
                look = time.monotonic() + _EVERY
            if ended:
                return ""
            if time.monotonic() > self._deadline:
                self.stacks = stacks.collect(self.started.folder)
                return f"hangs {self.stage()}: it did not end within its limit"
            time.sleep(0.05)

    def _read_on(self) -> None:
        path = self.started.folder / RECORDS
        if not path.exists():
            return
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        for line in whole[self._read :]:
            self._take(json.loads(line))
        self._read = len(whole)

    def _take(self, record: dict[str, Any]) -> None:
        if record["event"] == "begin":
            self.case = record["case"]
            self._deadline = time.monotonic() + record["limit"]
        elif record["event"] == "end":
            self.results.append(CaseResult(**record["result"]))
            self._deadline = time.monotonic() + _START_LIMIT
        elif record["event"] == "open":
            self.engine = record["engine"]
        elif record["event"] == "left":
            self.left.append(record["text"])

    def stage(self) -> str:
        """Say where the process was."""
        return f"in {self.case!r}" if self.case else "opening or closing the executor"

    def said(self) -> str:
        """Give the end of what the process has printed."""
        return (self.started.folder / "output").read_text(errors="replace")[-3000:]

    def left_over(self, *, lenient: bool) -> tuple[list[str], list[str]]:
        """Look for what the process has left behind, after some grace.

        Args:
            lenient: files may stay, and processes may take about a minute, as declared (F8).

        Returns:
            What must not be there, and what may.
        """
        with contextlib.suppress(AssertionError):
            eventually(lambda: not self._processes(), limit=_LONG_GRACE if lenient else _GRACE)
        with contextlib.suppress(AssertionError):
            eventually(lambda: not (self._memory() or (self._files() and not lenient)), limit=_GRACE)
        files = self._files()
        left = [*self._processes(), *self._memory(), *([] if lenient else files)]
        if "leaked" in self.said():
            left.append(f"something that Python's resource tracker found: {self.said()[-500:]}")
        return left, files if lenient else []

    def _processes(self) -> list[str]:
        own = f"{self.process.pid} "
        left = self.started.before.processes_left()
        return [f"process {text}" for text in left if not text.startswith(own)]

    def _files(self) -> list[str]:
        return [f"file {name}" for name in self.started.before.files_left()]

    def _memory(self) -> list[str]:
        return [f"shared memory {name}" for name in self.started.before.memory_left(self._seen)]


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"

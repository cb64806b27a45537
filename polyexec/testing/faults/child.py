"""The process in which cases of one cell run: it opens an executor, does the faults, and writes what came of them.

``python -m polyexec.testing.faults.child SPECIFICATION FOLDER ROW CASE...``; the harness starts it.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import attrs

import polyexec
from polyexec import Executor
from polyexec.testing import bodies
from polyexec.testing.executors import end
from polyexec.testing.faults import stacks
from polyexec.testing.faults.catalogue import row_of
from polyexec.testing.faults.model import Case
from polyexec.testing.faults.report import CAPABILITY, FAIL, PASS, CaseResult
from polyexec.testing.faults.trial import HungError, Trial
from polyexec.testing.target import Target
from polyexec.testing.tools import PATIENCE
from polyexec.testing.watch import LeakError, Snapshot

RECORDS = "records"
INITIALIZER = f"{stacks.__name__}:answer_signals"


@attrs.frozen
class Child:
    """Runs the cases.

    Attributes:
        target: the backend.
        folder: for the records, and for what the cases write.
    """

    target: Target
    folder: Path

    def record(self, event: str, **content: Any) -> None:
        """Append a line to what the harness reads."""
        with open(self.folder / RECORDS, "a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, "time": time.monotonic(), **content}) + "\n")

    def run(self, cases: list[Case]) -> None:
        """Run cases on one executor, or, if they open their own, one after the other."""
        if cases[0].own:
            for case in cases:
                self._run_one(case, None)
            return
        before = Snapshot.take()
        self.record("begin", case="", limit=2 * PATIENCE)
        executor = polyexec.connect(self.target.with_keys(initializer=INITIALIZER, **cases[0].keys))
        self.record("open", engine=executor.info.engine)
        assert executor.submit(bodies.add, 1, 1).result(PATIENCE) == 2
        for case in cases:
            self._run_one(case, executor)
        self.record("begin", case="", limit=3 * PATIENCE)
        end(executor)
        self._check(before, descriptors=True)

    def _run_one(self, case: Case, executor: Executor | None) -> None:
        before = Snapshot.take() if case.own else None
        trial = Trial.of(self.target, self.folder / case.name.replace("/", " "), case.name, executor)
        self.record("begin", case=case.name, limit=case.limit)
        begun = time.monotonic()
        self._do(case, trial)
        trial.open_gates()
        trial.result.seconds = round(time.monotonic() - begun, 3)
        self.record("end", result=attrs.asdict(trial.result))
        if trial.result.hung:
            # What hangs may hang whatever follows; the harness starts another process for the rest.
            os._exit(1)
        if before is not None:
            self._check(before, descriptors=True)

    def _do(self, case: Case, trial: Trial) -> None:
        result: CaseResult = trial.result
        try:
            clause = case.do(trial)
            if clause is None:
                result.status = PASS
                return
            declared = self.target.declared(clause)
            assert declared is not None, f"what happened would have to be declared as a deviation from {clause}"
            result.status, result.message = CAPABILITY, f"{clause}: {declared.reason} Instead: {declared.instead}"
        except BaseException as error:
            result.status, result.hung = FAIL, isinstance(error, HungError)
            result.message = "".join(traceback.format_exception(error))[-4000:]

    def _check(self, before: Snapshot, *, descriptors: bool) -> None:
        """Note what was not there before; descriptors only where the backend does not declare that some stay."""
        try:
            before.check(descriptors=descriptors and self.target.declared("F9") is None)
        except LeakError as error:
            self.record("left", text=str(error))


def main(arguments: list[str]) -> None:
    """Run some cases; ends the process."""
    specification, folder, row, *names = arguments
    os.environ[stacks.FOLDER] = folder
    stacks.answer_signals()
    cases = {case.name: case for case in row_of(row).cases}
    Child(Target.of(specification), Path(folder)).run([cases[name] for name in names])


if __name__ == "__main__":
    main(sys.argv[1:])

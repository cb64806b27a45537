"""Runs CPython's own tests of ``concurrent.futures`` on a backend, each case with a limit of time.

    python cpython.py SPEC [--json FILE] [--only TEXT]

A case that has not ended after ``LIMIT`` seconds hangs, and its process is killed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import cpython_cases

from polyexec import registry

HERE = Path(__file__).parent
LIMIT = 120.0
THREADS = {"serial", "threads"}
"""Backends whose workers are threads of the program; to all others the cases for processes apply."""


def kind_of(specification: str) -> str:
    """Say which cases apply."""
    return "thread" if registry.parse(specification)[0] in THREADS else "process"


def prepared(specification: str) -> str:
    """Add what the cases need: output as it is, and the key of the judge's managers in each worker."""
    more = "log_to_driver=0&initializer=judge_worker:prepare"
    return f"{specification}{'&' if '?' in specification else '?'}{more}"


def run(specification: str, names: list[str]) -> Iterator[tuple[str, str, str]]:
    """Give each case with its outcome and the reason for it."""
    left = list(names)
    while left:
        with _Child(specification, left) as child:
            while left:
                line = child.next_line()
                if line is None:
                    yield left.pop(0), "hangs" if child.is_late else "failed", child.last_words()
                    break
                name, status, reason = json.loads(line)
                left.remove(name)
                yield name, status, reason


class _Child:
    def __init__(self, specification: str, names: list[str]) -> None:
        # Imported, not run, so that workers find what is in it by its name.
        code = "import sys, cpython_cases; cpython_cases.main(*sys.argv[1:])"
        command = [sys.executable, "-c", code, prepared(specification), kind_of(specification)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, sys.path)])}
        self.is_late = False
        self._said: list[str] = []
        self._process = subprocess.Popen(
            [*command, *names],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            start_new_session=True,
        )

    def next_line(self) -> str | None:
        """Give the next result, None if there is none within the limit."""
        watch = threading.Timer(LIMIT, self._end)
        watch.start()
        try:
            assert self._process.stdout is not None
            for line in self._process.stdout:
                if line.startswith("["):
                    return line
                self._said.append(line)
            return None
        finally:
            watch.cancel()

    def _end(self) -> None:
        self.is_late = True
        os.killpg(self._process.pid, signal.SIGKILL)

    def last_words(self) -> str:
        return "".join(self._said[-30:])

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdout is not None
        self._process.stdout.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def main() -> int:
    """Run, and print the counts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("specification")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    missing = cpython_cases.available()
    if missing:
        print(f"skipped: {missing}")
        return 0
    names = [name for name in cpython_cases.cases(kind_of(options.specification)) if options.only in name]
    outcomes = []
    for name, status, reason in run(options.specification, names):
        outcomes.append((name, status, reason))
        print(f"{status:8}{name}{': ' + reason if reason else ''}", flush=True)
    passed = sum(status == "passed" for _, status, _ in outcomes)
    print(f"{options.specification}: {passed} of {len(outcomes)} passed")
    if options.json is not None:
        found = {"judge": "cpython", "specification": options.specification, "outcomes": outcomes}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1))
    return 0 if passed == len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())

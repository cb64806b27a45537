"""Scripts that use the backend from a process of their own, as a user's program does."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import site
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs

import polyexec
from polyexec.testing.target import SHARED_KEYS, Target

_LIMIT = 50.0


@attrs.frozen
class Ended:
    """What a script did.

    Attributes:
        code: its exit status, negative for a signal.
        said: the values that it printed as JSON, line by line, less those that ``meanwhile`` read.
        errors: its standard error.
        output: its standard output.
    """

    code: int
    said: list[Any]
    errors: str
    output: str


@attrs.frozen
class Driver:
    """Runs scripts; the specification is their first argument.

    Attributes:
        target: the backend under test.
        folder: where the scripts are written.
    """

    target: Target
    folder: Path

    def run(
        self,
        source: str,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        meanwhile: Callable[[subprocess.Popen[str]], object] | None = None,
    ) -> Ended:
        """Run a script to its end.

        Args:
            source: the script; it prints values as JSON, one on each line.
            *arguments: what follows the specification in ``sys.argv``.
            environment: variables on top of this process's.
            meanwhile: called with the running process.

        Returns:
            What it did. A script that does not end within the limit, or for which ``meanwhile`` fails, is killed with
            its process group.
        """
        script = self.folder / "driver.py"
        script.write_text(textwrap.dedent(source), encoding="utf-8")
        keys = SHARED_KEYS if self.target.own_cluster else {}
        command = [sys.executable, str(script), self.target.with_keys(**keys), *arguments]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": import_path(self.target), **(environment or {})},
            cwd=self.folder,
            start_new_session=True,
        )
        try:
            if meanwhile is not None:
                meanwhile(process)
            output, errors = process.communicate(timeout=_LIMIT)
        except (subprocess.TimeoutExpired, AssertionError) as error:
            output, errors = _kill(process)
            errors += f"\nkilled by the suite: {error}"
        except BaseException:
            _kill(process)
            raise
        return Ended(process.returncode, _said(output), errors[-6000:], output)


def import_path(target: Target) -> str:
    """Give the ``PYTHONPATH`` with which other processes find polyexec and a backend where this one has found them."""
    installed = {*site.getsitepackages(), site.getusersitepackages()}
    modules = [polyexec.__name__, target.backend.__module__.partition(".")[0]]
    folders = [str(Path(sys.modules[name].__file__ or "").parent.parent) for name in modules]
    wanted = [folder for folder in dict.fromkeys(folders) if folder not in installed]
    return os.pathsep.join([*wanted, *filter(None, [os.environ.get("PYTHONPATH", "")])])


def _kill(process: subprocess.Popen[str]) -> tuple[str, str]:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.communicate()


def _said(output: str) -> list[Any]:
    said: list[Any] = []
    for line in output.splitlines():
        try:
            said.append(json.loads(line))
        except ValueError:
            continue
    return said

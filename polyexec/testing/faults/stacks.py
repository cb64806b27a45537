"""Where everybody is when something hangs: the stacks of the driver and of the workers, as far as they can be had."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import time
from pathlib import Path
from typing import TextIO

from polyexec.testing.tools import eventually
from polyexec.testing.watch import LINUX, Process, family, read_process

FOLDER = "POLYEXEC_FAULTS_FOLDER"
"""The variable that says where processes write their stacks."""

_SIGNAL = signal.SIGUSR2
_LENGTH = 20_000


def answer_signals() -> None:
    """Have this process write its stacks when it is asked to; the initializer of workers.

    The file stays open as long as the process lives, because the handler may only use a descriptor.
    """
    if FOLDER in os.environ and not _files:
        _files.append(open(Path(os.environ[FOLDER]) / f"stacks-{os.getpid()}", "a", encoding="utf-8"))  # noqa: SIM115
        faulthandler.register(_SIGNAL, file=_files[-1], all_threads=True)


_files: list[TextIO] = []


def collect(folder: Path) -> str:
    """Ask this process and all that come from it for their stacks.

    Args:
        folder: what ``POLYEXEC_FAULTS_FOLDER`` says.

    Returns:
        What they have answered, and what the kernel says about those that cannot answer.
    """
    own = read_process(os.getpid())
    everyone = sorted([*family(), *([own] if own else [])], key=lambda process: process.pid)
    return "\n".join(_stack(process, folder) for process in everyone)[:_LENGTH]


def _stack(process: Process, folder: Path) -> str:
    head = f"--- {process.pid} (child of {process.parent}) {process.command[:100]}"
    path = folder / f"stacks-{process.pid}"
    if not path.exists() or not _catches(process.pid):
        return f"{head}\n{_kernel(process.pid)}"
    path.write_text("", encoding="utf-8")
    os.kill(process.pid, _SIGNAL)
    with contextlib.suppress(AssertionError):
        eventually(lambda: path.stat().st_size, "it answers", 2.0)
        time.sleep(0.1)  # it may still be writing; what is missing then is only the end
    return f"{head}\n{path.read_text(encoding='utf-8', errors='replace') or _kernel(process.pid)}"


def _catches(pid: int) -> bool:
    """Tell whether a process handles the signal, which would end it otherwise."""
    fields = _kernel_fields(pid, "status")
    caught = next((line.split()[1] for line in fields if line.startswith("SigCgt:")), "0")
    return bool(int(caught, 16) >> (_SIGNAL - 1) & 1)


def _kernel(pid: int) -> str:
    return "\n".join(line for name in ("wchan", "syscall", "stack") for line in _kernel_fields(pid, name)[:20])


def _kernel_fields(pid: int, name: str) -> list[str]:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace").splitlines() if LINUX else []
    except OSError:
        return []

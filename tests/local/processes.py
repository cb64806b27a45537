"""Processes as the tests of the local engine see them: from outside."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from pathlib import Path


class Process:
    """A process that somebody else has started, seen by a descriptor, so that it is never another one."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.descriptor = os.pidfd_open(pid)

    def wait(self) -> None:
        """Wait until it has ended."""
        ended = select.poll()
        ended.register(self.descriptor, select.POLLIN)
        ended.poll()

    def lives(self) -> bool:
        ended = select.poll()
        ended.register(self.descriptor, select.POLLIN)
        return not ended.poll(0)

    def send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.descriptor, number)

    def close(self) -> None:
        """Let nothing be left of a failed test."""
        self.send(signal.SIGKILL)
        os.close(self.descriptor)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def descendants(pid: int) -> set[int]:
    """Give all processes below one, dead ones among them."""
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(name)] = parent_of(int(name))
    found, more = set(), {pid}
    while more:
        more = {child for child, parent in parents.items() if parent in more}
        found |= more
    return found

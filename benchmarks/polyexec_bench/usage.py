"""Processor time and memory of a process and of all that it started. Reads /proc, so Linux only."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")
_PAUSE = 0.05


def _stat(pid: int) -> list[str]:
    """Give the fields of /proc/PID/stat from the third on."""
    return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()


def relatives(pid: int) -> list[int]:
    """Give the processes below a process, and those of the session that it leads, whoever is their parent now."""
    members = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            fields = _stat(int(path.name))
            members[int(path.name)] = int(fields[1]), int(fields[3])
    found = {member for member, (_, session) in members.items() if session == pid}
    below = {pid}
    while below:
        below = {member for member, (parent, _) in members.items() if parent in below}
        found |= below
    return sorted(found - {pid})


def cpu_seconds(pid: int) -> float:
    """Give the processor time of a process, of those below it, and of those of theirs that have ended."""
    ticks = 0
    for member in (pid, *relatives(pid)):
        with contextlib.suppress(OSError, IndexError):
            ticks += sum(int(field) for field in _stat(member)[11:15])
    return ticks / _TICK


def shared_bytes(pid: int) -> int:
    """Give the memory of a process and those below it; what several share is counted once (their PSS)."""
    total = 0
    for member in (pid, *relatives(pid)):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{member}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


class Peak:
    """The highest memory that was seen, in bytes."""

    def __init__(self) -> None:
        self.highest = 0


@contextlib.contextmanager
def peak_memory(pid: int) -> Iterator[Peak]:
    """Look at the memory of a process and those below it now and then, in a thread, until the block ends."""
    peak, over = Peak(), threading.Event()

    def look() -> None:
        while not over.is_set():
            peak.highest = max(peak.highest, shared_bytes(pid))
            over.wait(_PAUSE)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield peak
    finally:
        over.set()
        watcher.join()

"""What a process with one thread needs to look after its children, and theirs.

Linux alone lets a process adopt the orphans among its descendants, and tells its children. Elsewhere orphans go to the
system's first process, and ``children`` gives none.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
from collections.abc import Collection
from typing import Any, NoReturn

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


class ChildSignals:
    """Wakes the process when a child has ended, while it waits for files; it cannot come too early to be noticed."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        # Not ignored, as the driver's program may have it: then there would be nothing to reap.
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        self._poll = select.poll()
        self._poll.register(self._read, select.POLLIN)

    def watch(self, file: Any, events: int) -> None:
        """Wake for these events of a file as well, and when it hangs up."""
        self._poll.register(file, events)

    def wait(self, timeout: float | None = None) -> bool:
        """Block until a child has ended, or something happens to a file.

        Args:
            timeout: seconds to wait at most.

        Returns:
            Whether something has happened to a file.
        """
        ready = {number for number, _ in self._poll.poll(None if timeout is None else timeout * 1000)}
        with contextlib.suppress(BlockingIOError):
            os.read(self._read, 4096)
        return bool(ready - {self._read})

    def close(self) -> None:
        """Undo everything; for a forked child."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.close(self._read)
        os.close(self._write)


def adopt_orphans() -> None:
    """Become the parent of each descendant whose own parent ends."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with(parent: int) -> None:
    """Let this process be killed when its parent ends, however that comes."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def kill_children(spared: Collection[int] = ()) -> None:
    """Kill the children of this process; safe because none of their ids is given away before it is reaped here."""
    for child in children():
        if child not in spared:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(child, signal.SIGKILL)


def children() -> list[int]:
    """Give the children of this process, dead ones among them; one may be overlooked while others come and go."""
    pid = os.getpid()
    try:
        with open(f"/proc/self/task/{pid}/children") as file:
            return [int(word) for word in file.read().split()]
    except OSError:
        return [process for process in _processes() if _parent_of(process) == pid]


def leave(status: int) -> NoReturn:
    """End this process at once; nothing that a module has registered for the end runs."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
    os._exit(status)


def _processes() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []


def _parent_of(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except OSError:
        return None


def _prctl(option: int, value: int) -> None:
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)

"""Processes of this machine: how they ended, what they have started."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import struct
import time
from collections.abc import Iterable, Iterator, Mapping

_INFO_SIZE = 64
_INFO_EXIT = 1 << 3
_GET_INFO = (3 << 30) | (_INFO_SIZE << 16) | (0xFF << 8) | 11
_EXIT_CODE_OFFSET = 60
_END_DELAY = 3.0
_POLL = 0.005
_DEVICES = ("/dev/nvidia", "/dev/kfd", "/dev/dri")


def exit_status(pidfd: int) -> int | None:
    """Give the wait status of a process that has been reaped, None if the kernel does not tell (yet).

    Since Linux 6.15 it can be read from a pidfd, of a process that is not a child, too
    (https://man7.org/linux/man-pages/man2/pidfd_open.2.html, ``PIDFD_GET_INFO`` with ``PIDFD_INFO_EXIT``).
    """
    info = bytearray(_INFO_SIZE)
    struct.pack_into("<Q", info, 0, _INFO_EXIT)
    try:
        fcntl.ioctl(pidfd, _GET_INFO, info)
    except OSError:
        return None
    if not struct.unpack_from("<Q", info)[0] & _INFO_EXIT:
        return None
    status: int = struct.unpack_from("<i", info, _EXIT_CODE_OFFSET)[0]
    return status


def split_status(status: int | None) -> tuple[int | None, int | None]:
    """Give the signal and the exit code of a wait status, one of them None at least."""
    if status is None:
        return None, None
    signal_number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    return signal_number, os.WEXITSTATUS(status) if os.WIFEXITED(status) else None


def zombie_status(pid: int) -> int | None:
    """Give the wait status of a process that is dead and not yet reaped, for kernels without ``PIDFD_GET_INFO``."""
    fields = _stat(pid)
    return int(fields[-1]) if fields is not None and fields[0] in "ZX" else None


def is_stopped(pid: int) -> bool:
    """Tell whether a process does not run: it is stopped, or dead."""
    fields = _stat(pid)
    return fields is None or fields[0] in "TtZX"


def own_memory(pid: int) -> int:
    """Give the bytes of memory that are a process's own, without those of the object store."""
    try:
        with open(f"/proc/{pid}/status") as file:
            lines = [line for line in file if line.startswith("RssAnon:")]
    except OSError:
        return 0
    return int(lines[0].split()[1]) * 1024 if lines else 0


def holds_device() -> bool:
    """Tell whether this process has opened an accelerator, whose choice is final then."""
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if target.startswith(_DEVICES):
            return True
    return False


def descendants(pid: int) -> Iterator[int]:
    """Give the processes that a process has started, and those that they have started."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        fields = _stat(int(name)) if name.isdigit() else None
        if fields is not None:
            children.setdefault(int(fields[1]), []).append(int(name))
    pending = list(children.get(pid, ()))
    while pending:
        child = pending.pop()
        pending += children.get(child, ())
        yield child


def family(pids: Iterable[int]) -> dict[int, str]:
    """Give processes and all that they have started, each with the time of its start, which no other shares."""
    members = {member for pid in pids for member in (pid, *descendants(pid))}
    return {pid: fields[19] for pid in members if (fields := _stat(pid)) is not None}


def end_family(members: Mapping[int, str]) -> None:
    """Wait for the end of processes, and kill those that take too long. Blocks."""
    end = time.monotonic() + _END_DELAY
    while alive := [pid for pid, start in members.items() if _lives(pid, start)]:
        if time.monotonic() > end:
            for pid in alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return
        time.sleep(_POLL)


def _lives(pid: int, start: str) -> bool:
    fields = _stat(pid)
    return fields is not None and fields[19] == start and fields[0] not in "ZX"


def _stat(pid: int) -> list[str] | None:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return None


def end_group(pid: int) -> None:
    """Kill what is left of the process group that a worker led."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return

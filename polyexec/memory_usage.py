"""How much memory tasks and the machine use, and the words for a task that used too much.

All is read from ``/proc`` and ``/sys/fs/cgroup``, which only Linux has: elsewhere nothing is known, and no task is
found to use too much. Nothing here is kept from call to call but where the control groups are; safe from any thread,
and nothing blocks.

Memory counts as a process's own if it is anonymous and in RAM or swap. What is mapped from files or shared, values in
the store of an engine among it, does not count. Processes that were forked share pages: where that matters each page
is counted once, which costs a walk through the page tables, about 10 ms for each GiB.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable

import attrs

CHECK_SECONDS = 0.1
"""How often to look at a task that asked for ``memory=``, where nothing better is known."""

SLACK = 16 * 2**20
"""Bytes that a task may use beyond its ``memory=``: for modules that it is the first to import, and because newer
kernels count to within some megabytes."""

_PROC = "/proc"
_CGROUPS = "/sys/fs/cgroup"


def own_bytes(pid: int) -> int | None:
    """Give the bytes that are a process's own, pages shared by a fork among them; None if there is no such process."""
    found = _numbers(f"{_PROC}/{pid}/status", b"RssAnon:", b"VmSwap:")
    return None if found is None else sum(found) * 1024


def counted_once(pids: Iterable[int]) -> int:
    """Give the bytes that are the own of some processes together.

    A page that they share is counted once, and in part if other processes share it, too.
    """
    total = 0
    for pid in pids:
        # Kept to those who may trace the process, and not known to old kernels.
        found = _numbers(f"{_PROC}/{pid}/smaps_rollup", b"Pss_Anon:", b"SwapPss:")
        total += (own_bytes(pid) or 0) if found is None or len(found) < 2 else sum(found) * 1024
    return total


def family(pid: int) -> tuple[int, ...]:
    """Give a process, what it has started, and so on; what has been left by a parent that died is not found."""
    children = _children if _lists_children() else _scan()
    found = [pid]
    for member in found:
        found += children(member)
    return tuple(found)


def used_by(pid: int) -> int:
    """Give the bytes that are the own of a process and of what it has started; shared pages may count many times."""
    return sum(own_bytes(member) or 0 for member in family(pid))


def outgrown(pid: int, before: int, allowance: int) -> int | None:
    """Say whether a task has outgrown what it asked for, itself and what it has started.

    Args:
        pid: the process that runs it.
        before: what ``used_by`` gave when it began.
        allowance: the bytes that it asked for.

    Returns:
        The bytes that it uses, or None if that is no more than allowed.
    """
    members = family(pid)
    used = sum(own_bytes(member) or 0 for member in members) - before
    if used > allowance + SLACK and len(members) > 1:
        used = counted_once(members) - before
    return used if used > allowance + SLACK else None


def describe(used: int, allowance: int) -> str:
    """Say that a task used too much."""
    return f"out of memory: it used {used} bytes, but asked for memory={allowance}; ask for more, or use less"


KERNEL_KILL = (
    "out of memory: the kernel's OOM killer ended a process here when this one was killed; "
    "give such tasks memory=, so that fewer run at a time"
)
"""Why a worker died by SIGKILL when ``oom_kills`` has grown meanwhile."""


@attrs.frozen
class Machine:
    """The memory that there is for this process, control groups considered.

    Attributes:
        available: bytes that can be had without swapping; memory of files that can be dropped is among them.
        total: bytes in all.
    """

    available: int
    total: int


def machine() -> Machine | None:
    """Look at the machine; None if nothing is known."""
    found = _numbers(f"{_PROC}/meminfo", b"MemAvailable:", b"MemTotal:")
    if found is None or len(found) < 2:
        return None
    available, installed = found[0] * 1024, found[1] * 1024
    total = installed
    for group in _groups():
        limit = group.limit()
        if limit is not None and limit < installed:
            total = min(total, limit)
            available = min(available, max(0, limit - group.unreclaimable()))
    return Machine(available, total)


def total_bytes() -> int:
    """Give the machine's memory in bytes, or the limit of a control group around this process if that is less."""
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [limit for group in _groups() if (limit := group.limit()) is not None]
    return min([installed, *limits])


def oom_kills() -> int:
    """Count what the kernel's OOM killer has killed so far, in this process's control group if there is one.

    It has been counted when the death is seen, so that a comparison with an earlier count tells whether a SIGKILL was
    the kernel's; very likely, for others may be killed at the same time.
    """
    groups = _groups()
    found = groups[0].oom_kills() if groups else None
    if found is None:
        numbers = _numbers(f"{_PROC}/vmstat", b"\noom_kill ")
        found = numbers[0] if numbers else 0
    return found


@attrs.frozen
class _Group:
    """A control group of memory, of either version."""

    folder: str
    version: int

    def limit(self) -> int | None:
        name = "memory.max" if self.version == 2 else "memory.limit_in_bytes"
        text = _read(f"{self.folder}/{name}")
        return int(text) if text is not None and text.strip().isdigit() else None

    def unreclaimable(self) -> int:
        name = "memory.current" if self.version == 2 else "memory.usage_in_bytes"
        used = int(_read(f"{self.folder}/{name}") or 0)
        prefix = b"" if self.version == 2 else b"total_"
        names = [b"\n" + prefix + kind for kind in (b"active_file ", b"inactive_file ")]
        return used - sum(_numbers(f"{self.folder}/memory.stat", *names) or ())

    def oom_kills(self) -> int | None:
        name = "memory.events" if self.version == 2 else "memory.oom_control"
        numbers = _numbers(f"{self.folder}/{name}", b"\noom_kill ")
        return numbers[0] if numbers else None


@functools.cache
def _groups() -> tuple[_Group, ...]:
    """Find the control groups of this process that are visible here, the innermost first."""
    version, path = 2, ""
    for line in (_read(f"{_PROC}/self/cgroup") or b"").decode(errors="replace").splitlines():
        number, controllers, name = line.split(":", 2)
        if "memory" in controllers.split(","):
            version, path = 1, name
        elif number == "0" and version == 2:
            path = name
    root = _CGROUPS if version == 2 else f"{_CGROUPS}/memory"
    parts = [] if ".." in path else path.strip("/").split("/")
    folders = ["/".join([root, *parts[:count]]).rstrip("/") for count in range(len(parts), -1, -1)]
    groups = [_Group(folder, version) for folder in dict.fromkeys(folders)]
    return tuple(group for group in groups if os.path.exists(f"{group.folder}/memory.stat"))


@functools.cache
def _lists_children() -> bool:
    return os.path.exists(f"{_PROC}/thread-self/children")


def _children(pid: int) -> list[int]:
    try:
        threads = os.listdir(f"{_PROC}/{pid}/task")
    except OSError:
        return []
    return [
        int(child) for thread in threads for child in (_read(f"{_PROC}/{pid}/task/{thread}/children") or b"").split()
    ]


def _scan() -> Callable[[int], list[int]]:
    """Look at all processes, on a kernel that does not list children."""
    children: dict[int, list[int]] = {}
    for name in os.listdir(_PROC) if os.path.isdir(_PROC) else ():
        fields = (_read(f"{_PROC}/{name}/stat") or b"").rpartition(b")")[2].split() if name.isdigit() else []
        if len(fields) > 1:
            children.setdefault(int(fields[1]), []).append(int(name))
    return lambda pid: children.get(pid, [])


def _numbers(path: str, *names: bytes) -> list[int] | None:
    """Give the numbers that follow some words in a file, those of words that are missing left out; None if no file."""
    text = _read(path)
    if text is None:
        return None
    found = []
    for name in names:
        place = text.find(name)
        if place >= 0:
            found.append(int(text[place + len(name) :].split(None, 1)[0]))
    return found


def _read(path: str) -> bytes | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        text = b""
        # Such files come in pieces of a page.
        while part := os.read(descriptor, 1 << 16):
            text += part
        return text
    except OSError:
        return None
    finally:
        os.close(descriptor)

"""How many cpus this process may use: its affinity, the quotas of control groups around it, and what the user says.

What is read is from Linux; elsewhere the machine's cpus count. Nothing blocks, and it is safe from any thread.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

from polyexec.errors import SpecificationError

VARIABLE = "LOKY_MAX_CPU_COUNT"
"""Known from loky and joblib, so that one setting holds for all of a program."""

_GROUPS = "/sys/fs/cgroup"
_OWN_GROUPS = "/proc/self/cgroup"


def usable() -> int:
    """Count the cpus that this process may use, at least 1; a part of one that a quota leaves counts as one.

    Raises:
        SpecificationError: ``LOKY_MAX_CPU_COUNT`` is set and not a number.
    """
    counts = [_by_affinity(), *_by_quota()]
    said = os.environ.get(VARIABLE, "").strip()
    if said and not said.isdecimal():
        raise SpecificationError(f"{VARIABLE}={said!r} is not a number of cpus")
    return max(1, min([*counts, int(said)] if said else counts))


def _by_affinity() -> int:
    if sys.version_info >= (3, 13):
        # It knows python -X cpu_count as well.
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _by_quota() -> Iterator[int]:
    """Look at both versions of control groups, at this process's group and all those around it."""
    for line in _read(_OWN_GROUPS).splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root: str = _GROUPS
            names: tuple[str, ...] = ("cpu.max",)
        elif "cpu" in controllers.split(","):
            root, names = f"{_GROUPS}/cpu", ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        else:
            continue
        # In a container the groups outside of it are named, but not visible.
        parts = [] if ".." in path else path.strip("/").split("/")
        for folder in {"/".join([root, *parts[:count]]) for count in range(len(parts) + 1)}:
            words = " ".join(_read(f"{folder}/{name}") for name in names).split()
            if len(words) == 2 and all(word.isdecimal() for word in words):
                yield -(-int(words[0]) // int(words[1]))


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""

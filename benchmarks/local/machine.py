"""What the figures were measured on, and the memory of this process. Reads /proc, so Linux only."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import time
from pathlib import Path

from local.systems import OPENERS

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def single_threaded() -> None:
    """Let linear algebra use one thread, here and in all processes that are started from now on."""
    os.environ.update(dict.fromkeys(THREADS, "1"))


def resident_bytes() -> int:
    """Give the resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def settled_bytes(patience: float = 10.0) -> int:
    """Give the resident memory when it has stopped growing: some systems take in tasks in a thread of their own."""
    end = time.monotonic() + patience
    size = resident_bytes()
    while time.monotonic() < end:
        time.sleep(0.2)
        previous, size = size, resident_bytes()
        if size <= previous:
            break
    return size


def facts() -> dict[str, object]:
    """Describe machine, interpreter and versions."""
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpu": _first("/proc/cpuinfo", "model name"),
            "cpus": len(os.sched_getaffinity(0)),
            "memory": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
            "kernel": f"{platform.system()} {platform.release()}",
            "load": os.getloadavg()[0],
        },
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "commit": _git("rev-parse", "--short=12", "HEAD"),
        "changed": bool(_git("status", "--porcelain", "--", "polyexec", "backends")),
        "versions": {name: opener.version() for name, opener in OPENERS.items() if opener.version()},
        "starts": {name: opener.start for name, opener in OPENERS.items()},
        "threads": {name: os.environ.get(name, "") for name in THREADS},
    }


def _first(path: str, key: str) -> str:
    for row in Path(path).read_text().splitlines():
        name, _, value = row.partition(":")
        if name.strip() == key:
            return value.strip()
    return "unknown"


def _git(*arguments: str) -> str:
    """Ask git about the checkout; nothing where there is no git, or no checkout."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""

"""What the figures were measured on."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polyexec
from polyexec_bench.systems import ENGINES, title_of

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_DISTRIBUTIONS = ("polyexec", "ray", "dask", "distributed", "loky", "cloudpickle", "numpy")


def single_threaded() -> None:
    """Let linear algebra use one thread, here and in all processes that are started from now on."""
    os.environ.update(dict.fromkeys(THREADS, "1"))


def facts(names: Iterable[str]) -> dict[str, Any]:
    """Describe machine, interpreter, versions and settings.

    Args:
        names: of the systems that are compared.
    """
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpu": _first("/proc/cpuinfo", "model name"),
            "cpus": len(os.sched_getaffinity(0)),
            "memory": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
            "shared_memory": _size("/dev/shm"),
            "kernel": f"{platform.system()} {platform.release()}",
            "load_before": os.getloadavg()[0],
        },
        "env": {
            "python": f"{platform.python_implementation()} {platform.python_version()}",
            "polyexec": polyexec.__version__,
            "versions": dict(_versions()),
            "threads": {name: os.environ.get(name, "") for name in THREADS},
        },
        "systems": {name: {"title": title_of(name), "native": name in ENGINES} for name in names},
    }


def _versions() -> Iterable[tuple[str, str]]:
    for name in _DISTRIBUTIONS:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue


def _size(folder: str) -> int:
    try:
        found = os.statvfs(folder)
    except OSError:
        return 0
    return found.f_blocks * found.f_frsize


def _first(path: str, key: str) -> str:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return "unknown"
    found = (value.strip() for name, _, value in (line.partition(":") for line in lines) if name.strip() == key)
    return next(found, "unknown")

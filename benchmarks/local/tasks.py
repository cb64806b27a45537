"""What the tasks do. Importable, so that every system can send the functions by reference.

NumPy is imported by those that need it, so that a worker that needs it not starts without.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

MILLISECOND = 1e-3
_kept: list[Any] = []


def noop(number: int) -> int:
    """Give back the argument, so that a lost or mixed-up result shows."""
    return number


def whoami(number: int) -> int:
    """Give the worker's process id, slowly enough for another worker to take the next task."""
    time.sleep(0.005)
    return os.getpid()


def spin(number: int) -> int:
    """Compute for a millisecond of this thread's processor time, so that time taken away from it is not forgiven."""
    end = time.thread_time() + MILLISECOND
    while time.thread_time() < end:
        pass
    return number


def hold(mark: str, gate: str, limit: float) -> bool:
    """Occupy a worker until a file exists, or for some seconds at most; ``mark`` is made when it begins."""
    Path(mark).touch()
    end = time.monotonic() + limit
    while not (opened := Path(gate).exists()) and time.monotonic() < end:
        time.sleep(0.005)
    return opened


def block(mark: str) -> None:
    """Occupy a worker in a system call for a minute; ``mark`` then holds the worker's process id."""
    partial = Path(mark).with_suffix(".partial")
    partial.write_text(str(os.getpid()))
    partial.rename(mark)
    time.sleep(60)


def identify(number: int) -> tuple[int, int]:
    """Give the worker's process id and the argument."""
    return os.getpid(), number


def sample(array: Any) -> float:
    """Add up some elements from all over an array."""
    return float(array[:: max(1, len(array) // 64)].sum())


def touch(array: Any, number: int) -> float:
    """Read some elements of an array."""
    return sample(array) + number


def resolve(box: list[Any]) -> tuple[float, float]:
    """Time, in seconds, how long the Future in a list takes to be an array whose first element is read."""
    began = time.perf_counter()
    first = box[0].result()[0]
    return time.perf_counter() - began, float(first)


def give(number: int, length: int) -> Any:
    """Return an array of float64, made at the first call; only its first element is new."""
    import numpy as np

    if not _kept:
        _kept.append(np.arange(length, dtype=np.float64))
    _kept[0][0] = number
    return _kept[0]


def blas_threads(number: int) -> int:
    """Give the number of threads that linear algebra would use here."""
    import numpy as np
    import threadpoolctl

    np.ones((2, 2)) @ np.ones((2, 2))
    return max((int(pool["num_threads"]) for pool in threadpoolctl.threadpool_info()), default=1)

"""What a task of a graph does: it checks what it was given, works for a while, and says who it is.

Everything is importable, so that all systems send the function by reference. The body's own time is what the size of a
kernel asks for, whatever the system.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable
from typing import TypeAlias

Kernel: TypeAlias = Callable[[int, int, int], None]

_BLOCK = bytes(1 << 16)
_SPARE = bytearray(1 << 20)
_SOURCE = memoryview(bytes(1 << 20))


class WrongInput(Exception):
    """A task got a value that is not that of the task it depends on."""


def node(kernel: str, size: int, step: int, point: int, wanted: tuple[int, ...], *given: bytes) -> bytes:
    """Be one task of a graph.

    Args:
        kernel: name of the kernel.
        size: how much of it.
        step: where in the graph.
        point: where in the step.
        wanted: the points of the step before that it depends on.
        given: their values.

    Returns:
        Its own value, of 16 bytes.

    Raises:
        WrongInput: a value is another one.
    """
    if given != tuple(value_of(step - 1, other) for other in wanted):
        raise WrongInput(f"task {point} of step {step} got other values than those of {wanted}")
    KERNELS[kernel](size, step, point)
    return value_of(step, point)


def value_of(step: int, point: int) -> bytes:
    """Give the value of a task."""
    return step.to_bytes(8, "little") + point.to_bytes(8, "little")


def compute(size: int, step: int, point: int) -> None:
    """Hash ``size`` bytes; it lets other threads run meanwhile, as numeric libraries do."""
    hashed = hashlib.sha256()
    while size > 0:
        hashed.update(_BLOCK if size >= len(_BLOCK) else _BLOCK[:size])
        size -= len(_BLOCK)


def memory(size: int, step: int, point: int) -> None:
    """Copy ``size`` bytes."""
    while size > 0:
        portion = min(size, len(_SPARE))
        _SPARE[:portion] = _SOURCE[:portion]
        size -= portion


def imbalanced(size: int, step: int, point: int) -> None:
    """Hash between none and twice ``size`` bytes, evenly distributed, the same for a task in all runs."""
    compute(round(2 * size * random.Random(step << 32 | point).random()), step, point)


def sleep(size: int, step: int, point: int) -> None:
    """Sleep for ``size`` microseconds, so that there can be more workers than processors."""
    time.sleep(size * 1e-6)


KERNELS: dict[str, Kernel] = {"compute": compute, "memory": memory, "imbalanced": imbalanced, "sleep": sleep}

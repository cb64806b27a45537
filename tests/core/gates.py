"""Gates that tasks in threads of this process pass through, found by name because arguments are serialised."""

from __future__ import annotations

import itertools
import threading
from typing import Any

LIMIT = 30.0
"""Seconds after which a test that hangs fails."""

_gates: dict[int, Gate] = {}
_numbers = itertools.count()


class Gate:
    """Lets a test know that a task has come, and lets the task go on."""

    def __init__(self) -> None:
        self.number = next(_numbers)
        self.reached = threading.Event()
        self.opened = threading.Event()
        _gates[self.number] = self

    def __reduce__(self) -> tuple[Any, ...]:
        return _found, (self.number,)

    def wait(self) -> None:
        """Let a test see that the gate is reached."""
        assert self.reached.wait(LIMIT)

    def open(self) -> None:
        """Let whoever comes pass."""
        self.opened.set()


def pass_through(gate: Gate, value: Any = None) -> Any:
    """Wait at a gate in Python code, so that the task can be interrupted."""
    gate.reached.set()
    while not gate.opened.wait(0.005):
        pass
    return value


def _found(number: int) -> Gate:
    return _gates[number]

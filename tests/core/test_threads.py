"""The whole core on threads, where one part alone does not show a rule."""

from __future__ import annotations

import dataclasses
from typing import Any

import polyexec
from polyexec import Executor

from .gates import LIMIT, Gate, pass_through


def fail() -> Any:
    raise ValueError("text")


def wait_for(gate: Gate) -> Any:
    """Wait in a task for another one."""
    return polyexec.current().submit(pass_through, gate).result()


def test_a_long_chain_of_values_inside_values_goes(ex: Executor) -> None:
    """O5."""
    outer: Any = None
    for _ in range(1500):
        outer = ex.put([outer])
    del outer
    assert ex.submit(abs, -3).result(LIMIT) == 3


@dataclasses.dataclass(frozen=True)
class RefusesAttributes(Exception):
    """An exception that cannot be given a note."""


def refuse() -> None:
    raise RefusesAttributes

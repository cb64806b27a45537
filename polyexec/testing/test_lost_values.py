"""Chapter O: values whose maker is gone. What becomes of them when a node is lost needs several nodes to be seen."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import polyexec
from polyexec import Executor, Future
from polyexec.testing import bodies
from polyexec.testing.helpers import LIMIT
from polyexec.testing.marks import clause
from polyexec.testing.target import Target
from polyexec.testing.tools import eventually
from polyexec.testing.watch import alive

_COUNT = 2**20


def make(way: str) -> tuple[int, Any]:
    """Give this process and, in one of two ways, a large array."""
    array = np.arange(float(_COUNT))
    return os.getpid(), polyexec.current().put(array) if way == "put" else array


def _made(ex: Executor, way: str) -> tuple[int, Future[Any]]:
    if way == "put":
        pid, stored = ex.submit(make, way).result(LIMIT)
        return pid, stored
    parts: Any = ex.options(num_returns=2).submit(make, way)
    ex.wait(parts, timeout=LIMIT)
    return parts[0].result(LIMIT), parts[1]


@clause("O7")
@pytest.mark.parametrize("way", ["put", "result"])
def test_a_value_outlives_the_worker_that_made_it(
    ex: Executor, target: Target, note: Callable[[str], None], way: str
) -> None:
    """O7 What a task has returned or put is still there when its worker has been killed, and nothing is made again."""
    pid, stored = _made(ex, way)
    if target.capabilities.processes and target.own_cluster:
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: not alive(pid), "the worker is dead")
    else:
        note("trivially: no worker can be killed")
    expected = float(_COUNT) * (_COUNT - 1) / 2
    readers = [ex.submit(bodies.total_of, stored) for _ in range(2)]
    assert [reader.result(LIMIT) for reader in readers] == [expected] * 2
    assert bodies.total_of(stored.result(LIMIT)) == expected
    assert stored.attempts in (0, 1)

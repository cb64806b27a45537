"""R11, F9 What becomes of reservations when the executor is closed around them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import polyexec
from polyexec.testing import bodies
from polyexec.testing.tools import Gate, Marks, eventually

LIMIT = 30.0


@pytest.fixture(params=["threads?workers=1", "process?workers=1"])
def ex(request: pytest.FixtureRequest) -> Iterator[polyexec.Executor]:
    executor = polyexec.connect(request.param)
    yield executor
    executor.close(cancel_pending=True)


def _coordinate(group: polyexec.Reservation, gate: Gate, marks: Marks) -> int:
    marks.add("start")
    gate.wait()
    return int(group[0].submit(bodies.add, 1, 1).result())


@pytest.mark.timeout(LIMIT)
def test_what_waits_for_a_forgotten_reservation_runs(ex: polyexec.Executor) -> None:
    """The driver can close it no more; the task, plain or not, runs before ``close`` returns."""
    ex.reserve([{"cpus": 1}])
    futures = [ex.submit(bodies.add, 1, 1), ex.options(priority=1).submit(bodies.add, 1, 1)]
    ex.close()
    assert [future.result(0) for future in futures] == [2, 2]


@pytest.mark.timeout(LIMIT)
def test_what_waits_in_a_reservation_runs(ex: polyexec.Executor, tmp_path: Path) -> None:
    """``close`` waits for it."""
    marks, gate = Marks(str(tmp_path / "marks")), Gate(str(tmp_path / "gate"))
    group = ex.reserve([{"cpus": 1}])
    first = group[0].submit(bodies.pass_gate, marks, gate)
    second = group[0].submit(bodies.add, 1, 1)
    marks.wait_for("start")
    closing = threading.Thread(target=ex.close)
    closing.start()
    gate.open()
    closing.join(LIMIT)
    assert (first.result(0), second.result(0)) == ("", 2)


@pytest.mark.timeout(LIMIT)
def test_a_running_task_may_use_it_until_it_ends(ex: polyexec.Executor, tmp_path: Path) -> None:
    """Though nothing was in the reservation when ``close`` began."""
    marks, gate = Marks(str(tmp_path / "marks")), Gate(str(tmp_path / "gate"))
    group = ex.reserve([{"cpus": 1}])
    future = ex.options(cpus=0).submit(_coordinate, group, gate, marks)
    marks.wait_for("start")
    closing = threading.Thread(target=ex.close)
    closing.start()
    gate.open()
    closing.join(LIMIT)
    assert future.result(0) == 2


@pytest.mark.timeout(LIMIT)
@pytest.mark.parametrize("cancel_pending", [False, True])
def test_a_thread_that_waits_for_bundles_is_told(ex: polyexec.Executor, cancel_pending: bool) -> None:
    group = ex.reserve([{"cpus": 1}])
    before = threading.active_count()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ex.reserve, [{"cpus": 1}])
        eventually(lambda: threading.active_count() > before or waiting.running(), "the thread waits")
        ex.close(cancel_pending=cancel_pending)
        assert isinstance(waiting.exception(LIMIT), polyexec.ExecutorClosed)
    group.close()
    with pytest.raises(polyexec.ExecutorClosed):
        group[0].submit(bodies.add, 1, 1)
    with pytest.raises(polyexec.ExecutorClosed):
        ex.reserve([{"cpus": 1}])

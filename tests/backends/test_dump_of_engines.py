"""``dump`` where workers are an engine's: on this machine, and as if they were on another."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import polyexec
from polyexec.dump import Dump, WorkerDump
from polyexec.testing.tools import Gate, Marks

LIMIT = 60.0


@pytest.fixture(scope="module", params=["dask", "ray"])
def ex(request: pytest.FixtureRequest) -> Iterator[polyexec.Executor]:
    with polyexec.connect(f"{request.param}?workers=2") as executor:
        yield executor


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    made = Gate(str(tmp_path / "gate"))
    yield made
    made.open()


def hold(gate: Gate, marks: Marks) -> int:
    marks.add(f"pid {os.getpid()}")
    gate.wait(LIMIT)
    return os.getpid()


def nested(gate: Gate, marks: Marks) -> int:
    return polyexec.current().submit(hold, gate, marks).result()


def count_in_c(marks: Marks) -> None:
    marks.add(f"pid {os.getpid()}")
    # For half an hour, without ever giving up the interpreter's lock.
    sum(range(10**11))


def pid_in(marks: Marks) -> int:
    marks.wait_for("pid ")
    return int(marks.values("pid ")[-1])


def worker_in(found: Dump, pid: int) -> WorkerDump:
    return next(worker for worker in found.workers if worker.pid == pid)


def functions(worker: WorkerDump) -> list[str]:
    return [frame.rpartition(" in ")[2] for thread in worker.threads for frame in thread.frames]


def test_names_the_worker_and_shows_its_stack(ex: polyexec.Executor, gate: Gate, tmp_path: Path) -> None:
    marks = Marks(str(tmp_path / "marks"))
    future = ex.submit(nested, gate, marks)
    pid = pid_in(marks)
    found = ex.dump(timeout=LIMIT)
    assert found.unknown == ()
    inner, outer = (next(task for task in found.tasks if task.name == name) for name in ("hold", "nested"))
    assert (inner.state, inner.pid, outer.state) == ("running", pid, "blocked")
    worker = worker_in(found, pid)
    assert worker.status == ""
    assert f"hold #{inner.id >> 20}" in worker.runs
    assert "hold" in functions(worker)
    assert "nested" in functions(worker_in(found, outer.pid or 0))
    gate.open()
    assert future.result(LIMIT) == pid


def test_shows_the_stack_of_a_worker_that_is_in_c_code(ex: polyexec.Executor, tmp_path: Path) -> None:
    marks = Marks(str(tmp_path / "marks"))
    future = ex.submit(count_in_c, marks)
    pid = pid_in(marks)
    assert "count_in_c" in functions(worker_in(ex.dump(timeout=LIMIT), pid))
    assert ex.cancel(future, force=True)


def test_the_engine_brings_the_stacks_of_other_machines(
    ex: polyexec.Executor, gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend: Any = ex._session._backend  # type: ignore[attr-defined]
    marks = Marks(str(tmp_path / "marks"))
    future = ex.submit(hold, gate, marks)
    pid = pid_in(marks)
    if ex.info.backend == "dask":
        for remote in backend._cluster.dispatcher.remotes.values():
            monkeypatch.setattr(remote, "shares_memory", False)
    else:
        monkeypatch.setattr(backend._engine, "own", False)
    found = ex.dump(timeout=LIMIT / 2)
    monkeypatch.undo()
    assert worker_in(found, pid).status == ""
    assert "hold" in functions(worker_in(found, pid))
    gate.open()
    assert future.result(LIMIT) == pid

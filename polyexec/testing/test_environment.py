"""Chapter D: the surroundings of a task."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import polyexec
from polyexec import Executor
from polyexec.testing import bodies, skew
from polyexec.testing.drivers import Driver
from polyexec.testing.helpers import LIMIT, require
from polyexec.testing.marks import alone, clause, deviation
from polyexec.testing.target import Target
from polyexec.testing.tools import Gate, Marks

_NAME = "POLYEXEC_TESTING_VALUE"


@clause("D1")
def test_env_is_for_the_task_alone(ex: Executor) -> None:
    """D1 ``env`` sets variables for the task alone: no other task sees them, nor does the driver."""
    for value in ("one", "two"):
        assert ex.options(env={_NAME: value}).submit(bodies.variables, _NAME).result(LIMIT) == [value]
        others = [ex.submit(bodies.variables, _NAME) for _ in range(4)]
        assert [future.result(LIMIT) for future in others] == [[None]] * 4
    assert _NAME not in os.environ


@clause("D1")
def test_env_overrides_and_is_restored(ex: Executor) -> None:
    """D1 A variable that a worker has already is overridden for the task, and is what it was afterwards."""
    before = {tuple(ex.submit(bodies.variables, "PATH", "HOME").result(LIMIT)) for _ in range(4)}
    changed = ex.options(env={"PATH": "/elsewhere"}).submit(bodies.variables, "PATH").result(LIMIT)
    assert changed == ["/elsewhere"]
    after = {tuple(ex.submit(bodies.variables, "PATH", "HOME").result(LIMIT)) for _ in range(4)}
    assert after == before


@clause("D1")
def test_env_of_a_failing_task_is_restored(ex: Executor) -> None:
    """D1 It is taken back too if the task fails, exits, or changes its environment itself."""

    def body() -> None:
        os.environ[_NAME] = "changed by the task"
        raise ValueError("failed")

    failing = ex.options(env={_NAME: "value"})
    assert isinstance(failing.submit(body).exception(LIMIT), ValueError)
    assert isinstance(failing.submit(bodies.leave, 1).exception(LIMIT), polyexec.TaskExited)
    assert [ex.submit(bodies.variables, _NAME).result(LIMIT) for _ in range(4)] == [[None]] * 4


@clause("D1")
def test_env_of_tasks_at_the_same_time(ex: Executor, gate: Gate, marks: Marks, target: Target) -> None:
    """D1 Tasks that run at the same time each see their own."""
    require(ex, cpus=2)

    def body(name: str) -> tuple[str | None, str | None]:
        before = os.environ.get(_NAME)
        marks.add(f"start {name}")
        gate.wait()
        return before, os.environ.get(_NAME)

    futures = [ex.options(env={_NAME: name}).submit(body, name) for name in ("left", "right")]
    marks.wait_for("start", 2)
    gate.open()
    assert [future.result(LIMIT) for future in futures] == [("left", "left"), ("right", "right")]


@clause("D1")
def test_a_task_beside_one_with_env(ex: Executor, gate: Gate, marks: Marks, target: Target) -> None:
    """D1 A task that runs beside one that was given a variable does not see it."""
    require(ex, cpus=2)

    def body() -> str | None:
        marks.add("start")
        gate.wait()
        return os.environ.get(_NAME)

    given, plain = ex.options(env={_NAME: "given"}).submit(body), ex.submit(body)
    marks.wait_for("start", 2)
    gate.open()
    assert given.result(LIMIT) == "given"
    assert plain.result(LIMIT) is None


@deviation("D1")
def test_env_is_seen_by_tasks_beside(ex: Executor, gate: Gate, marks: Marks, target: Target) -> None:
    """D1 (declared) Variables are set while the task runs; tasks beside it see them, later ones do not."""

    def body() -> str | None:
        marks.add("start")
        gate.wait()
        return os.environ.get(_NAME)

    given = ex.options(env={_NAME: "given"}).submit(body)
    marks.wait_for("start")
    beside = ex.submit(bodies.variables, _NAME).result(LIMIT)
    assert target.capabilities.inline or beside == ["given"]
    gate.open()
    assert given.result(LIMIT) == "given"
    assert ex.submit(bodies.variables, _NAME).result(LIMIT) == [None]
    assert _NAME not in os.environ


@clause("D1")
def test_env_reaches_what_the_task_starts(ex: Executor) -> None:
    """D1 Programs that the task starts see it."""

    def body() -> str:
        import subprocess
        import sys

        code = f"import os; print(os.environ.get({_NAME!r}))"
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()

    assert ex.options(env={_NAME: "inherited"}).submit(body).result(LIMIT) == "inherited"


@alone
@clause("D3")
def test_a_worker_of_another_version_is_refused(
    driver: Driver, tmp_path: Path, target: Target, note: Callable[[str], None]
) -> None:
    """D3 A worker with another polyexec version than the driver's is refused, with both versions named."""
    answer = skew.told(driver, tmp_path)
    if not target.capabilities.processes:
        note("trivially: workers are the driver's own process")
        assert answer == {"error": None}
        return
    assert answer["error"] == "BackendBroken"
    assert answer["version"] in answer["text"]
    assert skew.VERSION in answer["text"]


@clause("D1")
def test_env_takes_texts_only(ex: Executor) -> None:
    """D1 A value that is not a text is refused at once."""
    with pytest.raises(polyexec.SpecificationError, match="env"):
        ex.options(env={_NAME: 1})

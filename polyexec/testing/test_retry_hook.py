"""Chapter F: the hook that decides about another attempt."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

import polyexec
from polyexec import Executor, TaskOptions
from polyexec.testing import bodies
from polyexec.testing.helpers import LIMIT, assert_cancelled, causes_of, require, require_processes, text_of
from polyexec.testing.marks import clause
from polyexec.testing.target import Target
from polyexec.testing.tools import Gate, Marks


def fail_until(marks: Marks, count: int) -> list[str | None]:
    """Fail in all attempts but the last, and give what that finds in its environment."""
    marks.add(f"start {os.getpid()}")
    if marks.count("start") < count:
        raise ConnectionError(f"attempt {marks.count('start')}")
    return bodies.variables("ATTEMPT", "CUDA_VISIBLE_DEVICES")


def submit_with_a_hook(marks: Marks, told: Marks) -> Any:
    """Submit from a task what fails twice, with a hook that says who asks it."""

    def hook(error: BaseException, attempt: int, options: TaskOptions) -> TaskOptions | None:
        told.add(f"asked {os.getpid()} {attempt} {type(error).__name__} {error} {options.env.get('ATTEMPT')}")
        return options.evolve(env={"ATTEMPT": str(attempt)})

    patient = polyexec.current().options(retries=5, retry_on=ConnectionError, retry=hook)
    return patient.submit(fail_until, marks, 3)


@clause("F5")
def test_a_hook_that_a_task_gives(ex: Executor, marks: Marks, tmp_path: Any) -> None:
    """F5 A task may give a hook too; it is asked where the driver is, and what it has changed it is told next time."""
    told = Marks(str(tmp_path / "told"))
    future = ex.submit(submit_with_a_hook, marks, told).result(LIMIT)
    assert future.result(LIMIT)[0] == "2"
    assert future.attempts == 3
    driver = os.getpid()
    assert told.lines() == [
        f"asked {driver} 1 ConnectionError attempt 1 None",
        f"asked {driver} 2 ConnectionError attempt 2 1",
    ]


@clause("F5", "W6")
def test_a_hook_waits_for_a_task_with_a_hook(ex: Executor, marks: Marks, tmp_path: Any) -> None:
    """F5, W6 A hook may wait for a task that waits for its own hook."""
    told: list[str] = []
    inner = Marks(str(tmp_path / "inner"))

    def again(error: BaseException, attempt: int, options: TaskOptions) -> TaskOptions:
        told.append(f"inner {error}")
        return options

    def hook(error: BaseException, attempt: int, options: TaskOptions) -> TaskOptions:
        ex.options(retries=1, retry_on=ConnectionError, retry=again).submit(fail_until, inner, 2).result(LIMIT)
        told.append(f"outer {error}")
        return options

    ex.options(retries=1, retry_on=ConnectionError, retry=hook).submit(fail_until, marks, 2).result(LIMIT)
    assert told == ["inner attempt 1", "outer attempt 1"]


@clause("F5")
def test_a_hook_changes_what_a_task_holds(ex: Executor, marks: Marks) -> None:
    """F5 The next attempt has the resources that the hook asks for, as few attempts, and is asked by another hook."""
    require(ex, gpus=1, license=1)
    asked: list[str] = []

    def first(error: BaseException, attempt: int, options: TaskOptions) -> TaskOptions:
        asked.append("first")
        return options.evolve(gpus=1, resources={"license": 1}, priority=3, retries=2, retry=second)

    def second(error: BaseException, attempt: int, options: TaskOptions) -> TaskOptions:
        asked.append(f"second {options.gpus:g} {options.priority:g} {options.retries}")
        return options

    def body() -> None:
        available = polyexec.current().resources().available
        marks.add(f"free {available.gpus:g} {available.custom.get('license', 0):g}")
        raise ConnectionError

    total = ex.resources().total
    future = ex.options(retries=9, retry_on=ConnectionError, retry=first).submit(body)
    assert isinstance(future.exception(LIMIT), ConnectionError)
    assert asked == ["first", "second 1 3 2"]
    gpus, licenses = total.gpus, total.custom["license"]
    assert marks.values("free") == [f"{gpus:g} {licenses:g}"] + [f"{gpus - 1:g} {licenses - 1:g}"] * 2
    assert future.attempts == 3


@clause("F5")
def test_a_hook_gives_more_time(ex: Executor, marks: Marks, tmp_path: Any) -> None:
    """F5 The hook sees ``TaskTimeout``, and may change the limit."""
    asked: list[Any] = []
    gate = Gate(str(tmp_path / "opened by the hook"))

    def more(error: BaseException, attempt: int, options: TaskOptions) -> TaskOptions:
        asked.append((type(error), options.timeout))
        gate.open()
        return options.evolve(timeout=None)

    slow = ex.options(timeout=0.2, retries=1, retry_on=TimeoutError, retry=more)
    assert slow.submit(bodies.pass_gate, marks, gate, "slow").result(LIMIT) == "slow"
    assert asked == [(polyexec.TaskTimeout, 0.2)]


@clause("F5")
def test_a_hook_sees_how_a_worker_died(ex: Executor, marks: Marks, target: Target) -> None:
    """F5 The hook sees ``WorkerDied``, with all that is known about it."""
    require_processes(target)
    asked: list[Any] = []

    def hook(error: BaseException, attempt: int, options: TaskOptions) -> TaskOptions:
        assert isinstance(error, polyexec.WorkerDied)
        asked.append((error.task, error.exit_code, error.pid, bool(error.cause)))
        return options

    def body() -> int:
        marks.add(f"start {os.getpid()}")
        if marks.count("start") == 1:
            os._exit(7)
        return 3

    assert ex.options(name="dies", retries=1, retry=hook).submit(body).result(LIMIT) == 3
    assert asked == [("dies", 7, int(marks.values("start")[0]), True)]


@clause("F5")
def test_a_hook_is_asked_only_where_another_attempt_is_allowed(ex: Executor, marks: Marks) -> None:
    """F5 Without ``retries``, for other exceptions, and when the attempts are used up nobody asks it."""

    def never_asked(*_: Any) -> None:
        raise AssertionError("asked")

    for options in ({}, {"retries": 3}, {"retries": 3, "retry_on": KeyError}):
        future = ex.options(retry=never_asked, **options).submit(bodies.fail, ConnectionError("own"))
        assert isinstance(future.exception(LIMIT), ConnectionError)
        assert future.attempts == 1


def _failing(kind: str) -> Callable[..., Any]:
    def hook(error: BaseException, attempt: int, options: TaskOptions) -> Any:
        if kind == "infeasible":
            return options.evolve(cpus=10**6)
        if kind == "raises":
            raise LookupError("hook")
        if kind == "exits":
            raise SystemExit(3)
        return 5 if kind == "nonsense" else options.evolve(num_returns=2)

    return hook


@clause("F5")
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("infeasible", polyexec.InfeasibleResources),
        ("raises", LookupError),
        ("exits", polyexec.RemoteError),
        ("nonsense", polyexec.SpecificationError),
        ("more values", polyexec.SpecificationError),
    ],
)
def test_a_hook_that_fails(ex: Executor, kind: str, expected: type[BaseException]) -> None:
    """F5 It fails the task with an error that names the hook and the task, and has the task's own error as cause."""
    patient = ex.options(name="train", retries=3, retry_on=ConnectionError, retry=_failing(kind))
    future = patient.submit(bodies.fail, ConnectionError("own"))
    error = future.exception(LIMIT)
    assert type(error) is expected
    assert any(isinstance(cause, ConnectionError) for cause in causes_of(error))
    assert "retry hook of task 'train'" in text_of(error)
    assert future.attempts == 1
    assert ex.submit(bodies.add, 1, 1).result(LIMIT) == 2


@clause("F5")
def test_a_task_is_cancelled_while_its_hook_is_asked(ex: Executor, target: Target) -> None:
    """F5 A hook that takes long holds nothing up: other tasks run, and the task can be cancelled."""
    if target.capabilities.inline:
        pytest.skip("submit returns when the task has ended")
    asked, release = threading.Event(), threading.Event()

    def hook(error: BaseException, attempt: int, options: TaskOptions) -> TaskOptions:
        asked.set()
        release.wait(LIMIT)
        return options

    future = ex.options(retries=1, retry_on=ConnectionError, retry=hook).submit(bodies.fail, ConnectionError())
    try:
        assert asked.wait(LIMIT)
        assert ex.submit(bodies.add, 1, 1).result(LIMIT) == 2
        assert ex.cancel(future)
        assert_cancelled(future)
    finally:
        release.set()
    assert ex.submit(bodies.add, 2, 1).result(LIMIT) == 3

"""What several chapters of tests share."""

from __future__ import annotations

import concurrent.futures
import traceback
from typing import Any

import pytest

import polyexec
from polyexec import Executor, Future
from polyexec.testing import bodies
from polyexec.testing.target import Target
from polyexec.testing.tools import PATIENCE, Gate, Marks

LIMIT = PATIENCE
"""Seconds within which whatever is waited for must come; generous, never a measure."""


def hold(ex: Executor, marks: Marks, gate: Gate, count: int) -> list[Future[Any]]:
    """Occupy cpus with tasks that wait for a gate, and wait until they run."""
    held = [ex.submit(bodies.pass_gate, marks, gate, f"held {number}") for number in range(count)]
    marks.wait_for("start held", count)
    return held


def text_of(error: BaseException | None) -> str:
    """Give what a user sees of an error: its traceback, causes and notes."""
    assert error is not None
    notes = "\n".join(getattr(error, "__notes__", []))
    return "".join(traceback.format_exception(type(error), error, error.__traceback__)) + notes


def error_of(future: Future[Any]) -> BaseException | None:
    """Give the error of a Future, that of a cancelled one too, which ``exception`` would raise."""
    try:
        return future.exception(LIMIT)
    except polyexec.TaskCancelled as error:
        return error


def assert_cancelled(future: Future[Any], name: str = "") -> None:
    """Check that a Future is cancelled, says so in every way, and names a task in its error."""
    for ask in (future.result, future.exception):
        with pytest.raises(polyexec.TaskCancelled) as caught:
            ask(LIMIT)
        assert isinstance(caught.value, concurrent.futures.CancelledError)
        assert name in text_of(caught.value)
    assert (future.cancelled(), future.done(), future.running()) == (True, True, False)


def causes_of(error: BaseException) -> list[BaseException]:
    """Give the errors that an error was caused by, itself first."""
    found: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in found:
        found.append(current)
        current = current.__cause__ or current.__context__
    return found


def require(ex: Executor, **amounts: float) -> None:
    """Skip the test if the cluster, which is not the suite's own, has less than the amounts."""
    total = ex.resources().total
    have = {"cpus": total.cpus, "gpus": total.gpus, **total.custom}
    missing = [f"{amount:g} {name}" for name, amount in amounts.items() if have.get(name, 0) < amount]
    if missing:
        pytest.skip(f"the cluster has no {', '.join(missing)}")


def require_processes(target: Target) -> None:
    """Skip the test if tasks have no processes of their own."""
    if not target.capabilities.processes:
        pytest.skip("tasks run in the driver's own process")


def require_shared_memory(target: Target) -> None:
    """Skip the test if tasks do not share memory, or may run on another machine than the caller."""
    if target.capabilities.processes and not target.capabilities.shares_memory:
        pytest.skip("tasks share no memory with others")
    if not target.own_cluster:
        pytest.skip("needs workers on this machine")

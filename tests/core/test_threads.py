"""The whole core on threads, where one part alone does not show a rule."""

from __future__ import annotations

import dataclasses
from typing import Any

import polyexec
from polyexec import Executor, Future

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


def test_a_cancelled_task_that_had_not_started_was_never_attempted(ex: Executor, gate: Gate) -> None:
    """C1, F5."""
    running = [ex.submit(pass_through, gate) for _ in range(2)]
    waiting = ex.submit(abs, -3)
    assert waiting.cancel()
    assert waiting.attempts == 0
    gate.open()
    assert [future.result(LIMIT) for future in running] == [None, None]


def test_force_reaches_a_task_that_waits_for_another(ex: Executor, gate: Gate) -> None:
    """C2, C3: its wait does not go on until the other one ends."""
    parent = ex.submit(wait_for, gate)
    gate.wait()
    assert ex.cancel(parent, force=True, recursive=False)
    ex.wait([parent], timeout=LIMIT)
    assert parent.cancelled()


def test_a_time_limit_reaches_a_task_that_waits_for_another(ex: Executor, gate: Gate) -> None:
    """F6."""
    parent = ex.options(timeout=0.2).submit(wait_for, gate)
    assert isinstance(parent.exception(LIMIT), polyexec.TaskTimeout)


def test_a_long_chain_of_dependents_fails(ex: Executor) -> None:
    """S6: however long it is."""
    future: Future[Any] = ex.submit(fail)
    for _ in range(1500):
        future = ex.submit(abs, future)
    assert isinstance(future.exception(LIMIT), ValueError)


def test_resources_while_a_part_of_a_gpu_is_held(gate: Gate) -> None:
    """R2, R4."""
    with polyexec.connect("threads?workers=2&gpus=2") as ex:
        future = ex.options(gpus=0.25).submit(pass_through, gate)
        gate.wait()
        assert ex.resources().available.gpus == 1.75
        gate.open()
        future.result(LIMIT)


def test_a_dependent_fails_with_an_error_that_refuses_notes(ex: Executor) -> None:
    """S6, F12."""
    assert isinstance(ex.submit(abs, ex.submit(refuse)).exception(LIMIT), RefusesAttributes)

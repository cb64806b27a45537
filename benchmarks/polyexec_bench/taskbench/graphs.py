"""Running a graph on a system."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any

from polyexec_bench.checks import expect
from polyexec_bench.systems import System
from polyexec_bench.taskbench.kernels import node, value_of
from polyexec_bench.taskbench.patterns import Graph


def run(system: System, graph: Graph, kernel: str, size: int) -> float:
    """Run a graph, and check what comes out of it.

    Args:
        system: where.
        graph: which.
        kernel: what each task does.
        size: how much of it.

    Returns:
        The seconds from the first submission until the caller has all values that no task takes.

    Raises:
        WrongResult: a value is not the right one.
    """
    needs = [{point: tuple(graph.needs(step, point)) for point in graph.points(step)} for step in range(graph.steps)]
    walk = _linked if system.links else _stepwise
    began = perf_counter()
    found = walk(system, needs, kernel, size)
    seconds = perf_counter() - began
    expect(found, {place: value_of(*place) for place in found})
    return seconds


def _linked(
    system: System, needs: Sequence[dict[int, tuple[int, ...]]], kernel: str, size: int
) -> dict[tuple[int, int], bytes]:
    """Let the system itself wait for what tasks depend on; take what no task does."""
    submit = system.submit
    unread: dict[tuple[int, int], Any] = {}
    before: dict[int, Any] = {}
    for step, points in enumerate(needs):
        now = {}
        for point, wanted in points.items():
            now[point] = unread[step, point] = submit(
                node, kernel, size, step, point, wanted, *[before[other] for other in wanted]
            )
            for other in wanted:
                unread.pop((step - 1, other), None)
        before = now
    return dict(zip(unread, system.take(list(unread.values())), strict=True))


def _stepwise(
    system: System, needs: Sequence[dict[int, tuple[int, ...]]], kernel: str, size: int
) -> dict[tuple[int, int], bytes]:
    """Wait for what a task depends on before it is submitted, as users of a plain pool must."""
    submit, take = system.submit, system.take
    values: dict[tuple[int, int], bytes] = {}
    pending: dict[tuple[int, int], Any] = {}
    for step, points in enumerate(needs):
        for point, wanted in points.items():
            missing = [(step - 1, other) for other in wanted if (step - 1, other) in pending]
            values.update(zip(missing, take([pending.pop(place) for place in missing]), strict=True))
            given = [values[step - 1, other] for other in wanted]
            pending[step, point] = submit(node, kernel, size, step, point, wanted, *given)
    values.update(zip(pending, take(list(pending.values())), strict=True))
    return values

"""Graphs of tasks: their patterns, that they run right, and the metric. No figure decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from polyexec_bench.checks import WrongResult
from polyexec_bench.systems import System, open_system
from polyexec_bench.taskbench import graphs
from polyexec_bench.taskbench.kernels import KERNELS, WrongInput, node, value_of
from polyexec_bench.taskbench.metg import Level, metg, steps_for
from polyexec_bench.taskbench.patterns import PATTERNS, Graph

WIDTH, STEPS = 8, 10


@pytest.mark.parametrize("pattern", PATTERNS)
def test_tasks_need_tasks_that_exist(pattern: str) -> None:
    graph = Graph(pattern, WIDTH, STEPS)
    assert graph.task_count == sum(1 for step in range(STEPS) for _ in graph.points(step))
    for step in range(STEPS):
        for point in graph.points(step):
            needs = graph.needs(step, point)
            assert needs == sorted(set(needs))
            assert set(needs) <= (set(graph.points(step - 1)) if step else set())
            assert needs == Graph(pattern, WIDTH, STEPS).needs(step, point)


@pytest.mark.parametrize(
    ("pattern", "step", "point", "needs"),
    [
        ("trivial", 3, 2, []),
        ("no_comm", 3, 2, [2]),
        ("stencil_1d", 3, 0, [0, 1]),
        ("stencil_1d", 3, 4, [3, 4, 5]),
        ("stencil_1d_periodic", 3, 0, [0, 1, 7]),
        ("dom", 5, 3, [2, 3]),
        ("tree", 2, 3, [1]),
        ("tree", 5, 3, [3]),
        ("fft", 1, 4, [3, 4, 5]),
        ("fft", 3, 1, [1, 5]),
        ("nearest", 3, 4, [2, 3, 4, 5, 6]),
        ("spread", 3, 0, [0, 1, 6]),
    ],
)
def test_what_a_task_needs(pattern: str, step: int, point: int, needs: list[int]) -> None:
    assert Graph(pattern, WIDTH, STEPS).needs(step, point) == needs


def test_a_triangle_and_a_diamond() -> None:
    assert [len(Graph("tree", 4, 4).points(step)) for step in range(4)] == [1, 2, 4, 4]
    assert [len(Graph("dom", 3, 6).points(step)) for step in range(6)] == [1, 2, 3, 3, 2, 1]


@pytest.mark.parametrize("name", ["serial", "threads", "native:threadpool", "native:processpool"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_all_patterns_run(name: str, kernel: str) -> None:
    system = open_system(name, 2)
    try:
        assert all(graphs.run(system, Graph(pattern, 4, 6), kernel, 10) > 0 for pattern in PATTERNS)
    finally:
        system.close()


def _system(submit: Callable[..., Any]) -> System:
    def take(values: Sequence[Any]) -> Sequence[Any]:
        return values

    return System(None, submit, take, True, lambda: None)


def test_a_wrong_value_is_found() -> None:
    wrong = _system(lambda *arguments: value_of(7, 7))
    with pytest.raises(WrongResult):
        graphs.run(wrong, Graph("trivial", 2, 2), "compute", 0)
    with pytest.raises(WrongInput, match="task 1 of step 2"):
        node("compute", 0, 2, 1, (0,), value_of(1, 1))


def test_the_smallest_granularity() -> None:
    """Where each task costs 100 us besides its work, half of the time is work when the work takes 100 us, too."""
    levels = [Level.of(1, 100, (work + 1e-4) * 100, 1, work) for work in (8e-4, 4e-4, 2e-4, 1e-4, 5e-5, 2.5e-5)]
    found = metg(levels)
    assert found is not None
    assert found == pytest.approx(2e-4, rel=0.02)
    assert metg(levels, 0.95) is None


def test_how_many_steps() -> None:
    assert steps_for(1e-3, width=4, workers=2, target=0.2) == 100
    assert steps_for(1.0, width=4, workers=2, target=0.2) == 6

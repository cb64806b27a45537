"""The ten patterns: which tasks of a step exist, and which tasks of the step before each needs.

After Task Bench's description of its dependence types (Slaughter et al., SC 2020, and its core library's README).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import TypeAlias

import attrs

Wanted: TypeAlias = Callable[["Graph", int, int], Iterable[int]]

_RADIX = 5
_SPREAD_RADIX = 3
_FRACTION = 0.5


@attrs.frozen
class Graph:
    """A graph of tasks: ``width`` points in each of ``steps`` steps.

    Attributes:
        pattern: name of the pattern.
        width: points in a step at most; for ``fft`` and ``tree`` a power of two.
        steps: number of steps.
    """

    pattern: str = attrs.field()
    width: int
    steps: int

    @pattern.validator
    def _is_known(self, attribute: object, value: str) -> None:
        if value not in PATTERNS:
            raise ValueError(f"there is no pattern {value!r}; there are {', '.join(PATTERNS)}")

    def points(self, step: int) -> range:
        """Give the points that have a task in a step."""
        if self.pattern == "tree":
            return range(min(self.width, 1 << min(step, 62)))
        if self.pattern == "dom":
            first = max(0, step + self.width - self.steps)
            return range(first, min(self.width, step + 1))
        return range(self.width)

    def needs(self, step: int, point: int) -> list[int]:
        """Give the points of the step before whose values a task takes, in order; none in the first step."""
        if step == 0:
            return []
        there = self.points(step - 1)
        return sorted({other for other in PATTERNS[self.pattern](self, step, point) if other in there})

    @property
    def task_count(self) -> int:
        """Number of tasks in all."""
        return sum(len(self.points(step)) for step in range(self.steps))


def _trivial(graph: Graph, step: int, point: int) -> Iterable[int]:
    return ()


def _no_comm(graph: Graph, step: int, point: int) -> Iterable[int]:
    return (point,)


def _stencil(graph: Graph, step: int, point: int) -> Iterable[int]:
    return range(point - 1, point + 2)


def _periodic(graph: Graph, step: int, point: int) -> Iterable[int]:
    return ((point + shift) % graph.width for shift in (-1, 0, 1))


def _dom(graph: Graph, step: int, point: int) -> Iterable[int]:
    return (point - 1, point)


def _tree(graph: Graph, step: int, point: int) -> Iterable[int]:
    return (point // 2,) if 1 << min(step, 62) <= graph.width else (point,)


def _fft(graph: Graph, step: int, point: int) -> Iterable[int]:
    levels = max(1, graph.width.bit_length() - 1)
    distance = 1 << ((step - 1) % levels)
    return (point - distance, point, point + distance)


def _nearest(graph: Graph, step: int, point: int) -> Iterable[int]:
    return range(point - (_RADIX - 1) // 2, point + _RADIX // 2 + 1)


def _spread(graph: Graph, step: int, point: int) -> Iterable[int]:
    stride = -(-graph.width // _SPREAD_RADIX)
    return ((point + number * stride + (step if number else 0)) % graph.width for number in range(_SPREAD_RADIX))


def _random_nearest(graph: Graph, step: int, point: int) -> Iterable[int]:
    # Of this graph alone, whatever else asks for random numbers and in whatever order its tasks are made.
    chance = random.Random(f"{graph.width} {step} {point}")
    return [other for other in _nearest(graph, step, point) if other == point or chance.random() < _FRACTION]


PATTERNS: dict[str, Wanted] = {
    "trivial": _trivial,
    "no_comm": _no_comm,
    "stencil_1d": _stencil,
    "stencil_1d_periodic": _periodic,
    "dom": _dom,
    "tree": _tree,
    "fft": _fft,
    "nearest": _nearest,
    "spread": _spread,
    "random_nearest": _random_nearest,
}

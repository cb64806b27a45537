"""What has changed between two runs, beyond what each of them scatters by itself.

A figure has changed if the values of one run lie apart from those of the other by so much that chance would do it
once in a hundred times (Mann and Whitney's test), and their medians by at least five in a hundred. Figures of systems
that were measured beside each other are compared as ratios to a bare engine of the same round as well, so that a
machine that was slower as a whole is not taken for a slower library.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import attrs

from polyexec_bench.results import Group, Run, groups

LEAST = 0.05
"""Share by which medians must differ to be told at all."""

CHANCE = 0.01
"""Probability below which a difference is not taken for chance."""

LESS_IS_BETTER = {"seconds": True, "metg50": True, "peak_bytes": True, "cpu_seconds": True, "rate": False}
"""Which way a figure should go; others are not compared."""


@attrs.frozen
class Change:
    """One figure of one system in both runs.

    Attributes:
        label: benchmark and parameters.
        system: name of the system.
        figure: which figure.
        before: median in the first run.
        after: median in the second.
        ratio: of the two, or of their ratios to a bare engine where there is one.
        against: name of the bare engine, nothing if there is none.
        chance: probability that chance alone does as much.
        verdict: ``slower``, ``faster`` (more or less memory likewise), or ``same``.
    """

    label: str
    system: str
    figure: str
    before: float
    after: float
    ratio: float
    against: str
    chance: float
    verdict: str


def changes(before: Run, after: Run) -> Iterator[Change]:
    """Compare all figures that both runs have.

    Args:
        before: the earlier run.
        after: the later one.

    Yields:
        One change for each; most of them say ``same``.
    """
    old, new = _by_key(before), _by_key(after)
    for key, group in new.items():
        for figure, less in LESS_IS_BETTER.items():
            if key in old and old[key].values(figure) and group.values(figure):
                against = _reference(key, old, new, figure)
                yield _change(old, new, key, figure, against, less=less)


_Key = tuple[str, str]


def _by_key(run: Run) -> dict[_Key, Group]:
    return {(group.label, group.system): group for group in groups(run.rows)}


def _reference(key: _Key, old: Mapping[_Key, Group], new: Mapping[_Key, Group], figure: str) -> str:
    """Name the bare engine whose values stand beside these in every round of both runs, nothing if there is none."""
    label, system = key
    if system.startswith("native:"):
        return ""
    for name in (f"native:{system.partition('?')[0]}", "native:processpool"):
        place = label, name
        sides = [(old, old[key]), (new, new[key])]
        if all(place in side and len(side[place].values(figure)) == len(group.values(figure)) for side, group in sides):
            return name
    return ""


def _change(
    old: Mapping[_Key, Group], new: Mapping[_Key, Group], key: _Key, figure: str, against: str, *, less: bool
) -> Change:
    before, after = old[key].values(figure), new[key].values(figure)
    first, second = before, after
    if against:
        first = _ratios(before, old[key[0], against].values(figure))
        second = _ratios(after, new[key[0], against].values(figure))
    ratio = statistics.median(second) / statistics.median(first)
    chance = chance_of(first, second)
    verdict = "same"
    if chance <= CHANCE and abs(math.log(ratio)) >= math.log(1 + LEAST):
        verdict = "slower" if (ratio > 1) == less else "faster"
    return Change(*key, figure, statistics.median(before), statistics.median(after), ratio, against, chance, verdict)


def _ratios(values: Sequence[float], others: Sequence[float]) -> list[float]:
    return [value / other for value, other in zip(values, others, strict=True)]


def chance_of(first: Sequence[float], second: Sequence[float]) -> float:
    """Give the probability that two samples of one distribution lie as far apart as these, or further, either way.

    Args:
        first: some values.
        second: some others.

    Returns:
        Mann and Whitney's exact two-sided probability, for up to a few thousand ways to part the values; beyond that
        by the normal approximation.
    """
    m, n = len(first), len(second)
    centre = m * n / 2
    found = abs(_wins(first, second) - centre)
    ways = math.comb(m + n, m)
    if ways > 20_000:
        return math.erfc(found / math.sqrt(m * n * (m + n + 1) / 12) / math.sqrt(2))
    values = [*first, *second]
    places = set(range(m + n))
    as_far = 0
    for chosen in combinations(range(m + n), m):
        others = [values[place] for place in places.difference(chosen)]
        as_far += abs(_wins([values[place] for place in chosen], others) - centre) >= found
    return as_far / ways


def _wins(first: Sequence[float], second: Sequence[float]) -> float:
    return sum((one > other) + (one == other) / 2 for one in first for other in second)

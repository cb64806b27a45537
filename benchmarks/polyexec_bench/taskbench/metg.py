"""The smallest granularity at which a system is still efficient: METG, after Task Bench.

The granularity of a run is the time that a worker has for each task: seconds times workers by tasks. Its efficiency is
the share of that which the same kernel takes in bare processes that run at the same time. As tasks get smaller, what a
system costs per task weighs more; METG(50%) is the granularity at which half of the time is work.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import attrs

LEVELS = (8.0, 4.0, 2.0, 1.0, 0.5, 0.25)
"""Sizes of the kernel that are tried, in units of what an empty task costs; at 1 the efficiency is about a half."""

MOST_STEPS = 2_000
LEAST_STEPS = 6


@attrs.frozen
class Level:
    """One run of a graph.

    Attributes:
        size: of the kernel.
        tasks: number of tasks.
        seconds: that all of them took.
        granularity: seconds that a worker had for each.
        efficiency: share of them that was work.
    """

    size: int
    tasks: int
    seconds: float
    granularity: float
    efficiency: float

    @classmethod
    def of(cls, size: int, tasks: int, seconds: float, workers: int, work: float) -> Level:
        """Describe a run whose tasks take ``work`` seconds each in a bare process."""
        granularity = seconds * workers / tasks
        return cls(size, tasks, seconds, granularity, work / granularity)


def steps_for(granularity: float, width: int, workers: int, target: float) -> int:
    """Say how many steps take about ``target`` seconds."""
    by_step = granularity * width / workers
    return min(MOST_STEPS, max(LEAST_STEPS, round(target / by_step)))


def metg(levels: Sequence[Level], share: float = 0.5) -> float | None:
    """Find the granularity at which the efficiency is a share.

    Args:
        levels: runs of one sweep.
        share: of the time.

    Returns:
        Seconds, between the two neighbouring runs on either side, on logarithmic scales; None if all runs are on one
        side. Where noise lets the curve cross more than once it is the smallest granularity with a crossing that is
        taken, for all systems alike.
    """
    ordered = sorted(levels, key=lambda level: level.granularity)
    for low, high in itertools.pairwise(ordered):
        if low.efficiency < share <= high.efficiency:
            weight = math.log(share / low.efficiency) / math.log(high.efficiency / low.efficiency)
            return float(low.granularity * (high.granularity / low.granularity) ** weight)
    return None

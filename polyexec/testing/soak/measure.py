"""Memory, sampled while something is done again and again, and how fast it grows."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs

from polyexec.testing.soak.records import Slope
from polyexec.testing.watch import family

SAMPLES = 50
"""How often memory is looked at in one case."""

_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_SURE = 1.96
"""Standard deviations to either side that hold 95 % of a normal distribution."""


def slope(xs: Sequence[float], ys: Sequence[float], per: int) -> Slope:
    """Estimate how fast something grows, so that single values, however wrong, change little.

    The median of the slopes between all pairs of points, and the interval that goes with Kendall's test: Theil (1950)
    and Sen, Estimates of the regression coefficient based on Kendall's tau, JASA 63 (1968).

    Args:
        xs: where it was looked at; all different.
        ys: what was seen.
        per: for how many units of ``xs`` the growth is given.

    Returns:
        The slope; all zero if there are fewer than two points.
    """
    count = len(xs)
    pairs = sorted((ys[j] - ys[i]) / (xs[j] - xs[i]) * per for i in range(count) for j in range(i + 1, count))
    if not pairs:
        return Slope(per, 0.0, 0.0, 0.0)
    spread = _SURE * math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    low = max(0, int((len(pairs) - spread) / 2))
    high = min(len(pairs) - 1, int((len(pairs) + spread) / 2))
    return Slope(per, statistics.median(pairs), pairs[low], pairs[high])


def resident(pid: int) -> int:
    """Give the memory of a process in bytes, without what it shares with others by files; 0 if there is none."""
    try:
        fields = Path(f"/proc/{pid}/statm").read_text().split()
    except OSError:
        return 0
    return (int(fields[1]) - int(fields[2])) * _PAGE


def _trim() -> None:
    """Let the C library give back what it keeps for later, if it can."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


@attrs.frozen
class Sample:
    """What was seen at one time.

    Attributes:
        done: units that had been done.
        driver: bytes of this process.
        others: bytes of all processes that come from it.
        blocks: that Python has allocated here.
    """

    done: int
    driver: int
    others: int
    blocks: int


@attrs.define
class Sampler:
    """Looks at memory now and then.

    Attributes:
        total: units that will be done.
        samples: what was seen.
    """

    total: int
    samples: list[Sample] = attrs.field(factory=list)
    _next: int = 0

    def at(self, done: int) -> None:
        """Look if it is time; to be called often."""
        if done >= self._next:
            self._next = done + max(1, self.total // SAMPLES)
            gc.collect()
            _trim()
            others = sum(resident(process.pid) for process in family())
            self.samples.append(Sample(done, resident(os.getpid()), others, sys.getallocatedblocks()))

    def slopes(self) -> dict[str, Slope]:
        """Give how fast everything has grown, of what was seen after the first fifth."""
        settled = [sample for sample in self.samples if sample.done >= self.total / 5]
        xs = [float(sample.done) for sample in settled]
        per = 10 ** max(0, min(5, round(math.log10(max(1, self.total)))))
        looks: dict[str, Callable[[Sample], int]] = {
            "driver": lambda sample: sample.driver,
            "others": lambda sample: sample.others,
            "blocks": lambda sample: sample.blocks,
        }
        return {name: slope(xs, [float(look(sample)) for sample in settled], per) for name, look in looks.items()}

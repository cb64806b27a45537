"""Sweeping the granularity on several systems, in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs

from polyexec_bench.player import Player, company, in_turn
from polyexec_bench.results import Measurement
from polyexec_bench.taskbench.metg import LEVELS, Level, metg, steps_for
from polyexec_bench.taskbench.patterns import Graph

GRAPH = f"{__package__}.cases:graph"
BARE = f"{__package__}.cases:bare"
LIMIT = 60.0
"""Seconds that one run may take; it is planned to take less than one."""

_FIRST_STEPS = 8
_CONTROL_SECONDS = 0.05
_PROBE = 1 << 20


@attrs.frozen
class Plan:
    """What is swept.

    Attributes:
        patterns: which graphs.
        kernel: what the tasks do.
        workers: how many.
        width: points in a step.
        sweeps: how often everything is done.
        target: seconds that a run should take.
    """

    patterns: Sequence[str]
    kernel: str = "compute"
    workers: int = 2
    width: int = 4
    sweeps: int = 3
    target: float = 0.3


class Control:
    """What the machine itself does, measured beside each run: seconds of a kernel in bare processes."""

    def __init__(self, player: Player, kernel: str) -> None:
        self._player = player
        self._kernel = kernel
        self._per_unit = self._measure(1000 if kernel == "sleep" else _PROBE)

    def _measure(self, size: int) -> float:
        """Give the seconds of one unit of size, for runs of about ``_CONTROL_SECONDS``."""
        repeats = 4 if not hasattr(self, "_per_unit") else max(1, round(_CONTROL_SECONDS / (size * self._per_unit)))
        figures = self._player.play(LIMIT, kernel=self._kernel, size=size, repeats=repeats)
        if figures is None:
            raise RuntimeError(f"the bare processes are lost: {self._player.trouble}")
        return float(figures["seconds"]) / size

    def size_of(self, seconds: float) -> int:
        """Give the size of a kernel that takes about so many seconds."""
        return max(1, round(seconds / self._per_unit))

    def seconds(self, size: int) -> float:
        """Give the seconds that a kernel takes now."""
        self._per_unit = self._measure(size)
        return size * self._per_unit


class Sweep:
    """All sweeps of one system over one pattern."""

    def __init__(self, player: Player, plan: Plan, pattern: str, control: Control) -> None:
        self._player = player
        self._plan = plan
        self._pattern = pattern
        self._control = control
        self._overhead = 0.0
        self._levels: list[Level] = []

    def probe(self) -> None:
        """Find out what an empty task costs."""
        self._levels = []
        steps = _FIRST_STEPS
        for _ in range(2):
            figures = self._run(steps, 0)
            if figures is None:
                return
            self._overhead = figures["seconds"] * self._plan.workers / figures["tasks"]
            steps = steps_for(self._overhead, self._plan.width, self._plan.workers, self._plan.target)

    def run(self, factor: float) -> None:
        """Run with tasks of so many times what an empty one costs."""
        size = self._control.size_of(factor * self._overhead)
        work = self._control.seconds(size)
        granularity = work + self._overhead
        figures = self._run(steps_for(granularity, self._plan.width, self._plan.workers, self._plan.target), size)
        if figures is not None:
            seconds, tasks = figures["seconds"], figures["tasks"]
            self._levels.append(Level.of(size, tasks, seconds, self._plan.workers, work))

    def _run(self, steps: int, size: int) -> dict[str, Any] | None:
        plan = self._plan
        # A diamond is not whole unless there are as many steps as points.
        steps = max(steps, plan.width)
        return self._player.play(
            LIMIT, pattern=self._pattern, width=plan.width, steps=steps, kernel=plan.kernel, size=size
        )

    def result(self, number: int) -> Measurement:
        """Give what came of the latest sweep."""
        plan, trouble = self._plan, self._player.trouble
        figures: dict[str, Any] = {"rate": plan.workers / self._overhead if self._overhead else None}
        figures["levels"] = [attrs.asdict(level) for level in self._levels]
        for name, share in (("metg50", 0.5), ("metg90", 0.9)):
            figures[name] = metg(self._levels, share)
        return Measurement(
            bench="graph.metg",
            params={"pattern": self._pattern, "kernel": plan.kernel, "width": plan.width, "workers": plan.workers},
            system=self._player.name,
            repeat=number,
            figures=figures,
            status=trouble.status if trouble else "ok",
            error=trouble.error if trouble else "",
        )


def sweep(plan: Plan, names: Sequence[str], tell: Callable[[str], object]) -> Iterator[Measurement]:
    """Sweep all patterns on all systems.

    Args:
        plan: what.
        names: of the systems.
        tell: takes a line that says how far this is.

    Yields:
        What came of each system, pattern and sweep.
    """
    with company([(BARE, ""), *((GRAPH, name) for name in names)], plan.workers) as (bare, *players):
        control = Control(bare, plan.kernel)
        for pattern in plan.patterns:
            Graph(pattern, plan.width, plan.width)
            sweeps = {player.name: Sweep(player, plan, pattern, control) for player in players}
            for number in range(plan.sweeps):
                tell(f"graph.metg {pattern}: sweep {number + 1} of {plan.sweeps}")
                for player in in_turn(players, number):
                    sweeps[player.name].probe()
                for turn, factor in enumerate(LEVELS):
                    for player in in_turn(players, number + turn):
                        sweeps[player.name].run(factor)
                yield from (one.result(number) for one in sweeps.values())

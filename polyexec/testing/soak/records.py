"""What a soak is asked to do, and what it has found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs

SPARE = 16
"""How much more of anything an open executor may hold than after the warm-up: spare workers, and what serves them."""


@attrs.frozen
class Sizes:
    """How much of everything; the defaults are those of a long run of a fast backend.

    Attributes:
        tasks: calls that do nothing.
        outstanding: how many of them at most have not been read.
        kills: workers killed.
        executors: opened and closed, one after the other.
        objects: of one MB, stored, read by a task and here, and dropped.
        calls: of one actor.
        actors: made, called once and ended.
        streams: left before their end.
        seconds: of everything at once.
    """

    tasks: int = 1_000_000
    outstanding: int = 10_000
    kills: int = 10_000
    executors: int = 1_000
    objects: int = 10_000
    calls: int = 10_000
    actors: int = 1_000
    streams: int = 1_000
    seconds: int = 600

    def warm_up(self) -> Sizes:
        """Give how much is done before anything is measured: enough to fill caches and pools."""
        return Sizes(
            tasks=max(200, min(20_000, self.tasks // 20)),
            outstanding=self.outstanding,
            kills=max(2, min(20, self.kills // 20)),
            executors=max(2, min(20, self.executors // 20)),
            objects=max(16, min(200, self.objects // 20)),
            calls=max(50, min(500, self.calls // 20)),
            actors=max(2, min(20, self.actors // 20)),
            streams=max(2, min(20, self.streams // 20)),
            seconds=max(1, min(10, self.seconds // 20)),
        )


@attrs.frozen
class Slope:
    """How fast something grows; see ``polyexec.testing.soak.measure.slope``.

    Attributes:
        per: number of units for which the growth is given.
        middle: the estimate.
        low: the lower end of its interval of 95 %.
        high: the upper end.
    """

    per: int
    middle: float
    low: float
    high: float


@attrs.frozen
class Result:
    """What one case has found on one backend.

    Attributes:
        backend: its specification.
        engine: name and version of the engine.
        case: name of the case.
        done: what was done, by name: ``{"tasks": 1000000}``.
        seconds: that it took, warm-up not among them.
        slopes: of the memory of this process (``driver``), of all processes that it has started (``others``), in bytes,
            and of the number of blocks that Python has allocated here (``blocks``).
        grown: what there was more of than after the warm-up, while the executor was open, and how much.
        left: what there was more of than before, when it was closed.
        failure: what went wrong otherwise, empty if nothing did.
        seed: of what was drawn by chance.
    """

    backend: str
    engine: str
    case: str
    done: dict[str, int]
    seconds: float
    slopes: dict[str, Slope]
    grown: dict[str, int]
    left: tuple[str, ...]
    failure: str = ""
    seed: int = 0

    @property
    def is_clean(self) -> bool:
        """Whether all was right, and nothing was left."""
        return not (self.left or self.failure) and all(count <= SPARE for count in self.grown.values())


def save(results: Sequence[Result], path: Path) -> None:
    """Write results as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([attrs.asdict(result) for result in results], indent=1) + "\n")


def load(path: Path) -> list[Result]:
    """Read results from JSON."""
    return [_result(found) for found in json.loads(path.read_text())]


def _result(found: dict[str, Any]) -> Result:
    slopes = {name: Slope(**slope) for name, slope in found["slopes"].items()}
    return Result(**{**found, "slopes": slopes, "left": tuple(found["left"])})

"""What the layer costs: no-op tasks through polyexec against the bare engine, side by side in one run.

Raw engine and polyexec take turns, and who begins changes from round to round, so that whatever else the machine does
hits both. Each round gives a ratio of tasks per second; the medians over the rounds are printed. Two patterns: ``bulk``
submits all tasks and then takes all results, ``single`` waits for each task before the next.

    python benchmarks/layer_cost.py ray dask --rounds 7
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import attrs

import polyexec

WORKERS = 2
Run: TypeAlias = Callable[[int], None]


def noop() -> None:
    """Do nothing."""


@attrs.frozen
class Contest:
    """The two ways to run ``count`` no-op tasks, in both patterns."""

    raw: dict[str, Run]
    layer: dict[str, Run]


@attrs.frozen
class Score:
    """Medians over the rounds.

    Attributes:
        engine: name of the backend.
        pattern: ``bulk`` or ``single``.
        raw: tasks per second of the bare engine.
        layer: tasks per second through polyexec.
        ratio: of the two, median of the rounds' ratios.
        spread: smallest and largest ratio of a round.
    """

    engine: str
    pattern: str
    raw: float
    layer: float
    ratio: float
    spread: tuple[float, float]


def through_polyexec(executor: polyexec.Executor) -> dict[str, Run]:
    """Give the patterns for an executor."""

    def bulk(count: int) -> None:
        for future in [executor.submit(noop) for _ in range(count)]:
            future.result()

    def single(count: int) -> None:
        for _ in range(count):
            executor.submit(noop).result()

    return {"bulk": bulk, "single": single}


@contextmanager
def ray_contest() -> Iterator[Contest]:
    """Run both on one Ray instance, which polyexec starts."""
    with polyexec.connect(f"ray?workers={WORKERS}") as executor:
        import ray

        remote: Any = ray.remote(noop)

        def bulk(count: int) -> None:
            ray.get([remote.remote() for _ in range(count)])

        def single(count: int) -> None:
            for _ in range(count):
                ray.get(remote.remote())

        yield Contest({"bulk": bulk, "single": single}, through_polyexec(executor))


@contextmanager
def dask_contest() -> Iterator[Contest]:
    """Run each on a cluster of its own, alike in size: one idles while the other works."""
    from distributed import Client, LocalCluster

    with (
        polyexec.connect(f"dask?workers={WORKERS}") as executor,
        LocalCluster(n_workers=WORKERS, threads_per_worker=1, host="127.0.0.1", dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):

        def bulk(count: int) -> None:
            client.gather([client.submit(noop, pure=False) for _ in range(count)])

        def single(count: int) -> None:
            for _ in range(count):
                client.submit(noop, pure=False).result()

        yield Contest({"bulk": bulk, "single": single}, through_polyexec(executor))


CONTESTS = {"ray": ray_contest, "dask": dask_contest}


def seconds(run: Run, count: int) -> float:
    """Time one run."""
    began = time.perf_counter()
    run(count)
    return time.perf_counter() - began


def compare(engine: str, contest: Contest, pattern: str, count: int, rounds: int) -> Score:
    """Let both run in turn."""
    raw, layer = contest.raw[pattern], contest.layer[pattern]
    for run in (raw, layer):
        run(max(10, count // 4))
    times: list[tuple[float, float]] = []
    for number in range(rounds):
        if number % 2:
            ours, theirs = seconds(layer, count), seconds(raw, count)
        else:
            theirs, ours = seconds(raw, count), seconds(layer, count)
        times.append((theirs, ours))
    ratios = [theirs / ours for theirs, ours in times]
    return Score(
        engine,
        pattern,
        count / statistics.median(theirs for theirs, _ in times),
        count / statistics.median(ours for _, ours in times),
        statistics.median(ratios),
        (min(ratios), max(ratios)),
    )


def main() -> int:
    """Print the scores, as a table or as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("engines", nargs="*", choices=[*CONTESTS, []], help="default: all")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--bulk", type=int, default=1000, help="tasks in a round of the bulk pattern")
    parser.add_argument("--single", type=int, default=200, help="tasks in a round of the single pattern")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    scores = []
    for engine in options.engines or CONTESTS:
        with CONTESTS[engine]() as contest:
            for pattern in ("bulk", "single"):
                count = getattr(options, pattern)
                scores.append(compare(engine, contest, pattern, count, options.rounds))
    if options.json:
        json.dump([attrs.asdict(score) for score in scores], sys.stdout, indent=2)
        return 0
    print(f"{'engine':8}{'pattern':9}{'raw/s':>9}{'polyexec/s':>12}{'ratio':>8}   rounds")
    for score in scores:
        low, high = score.spread
        row = f"{score.engine:8}{score.pattern:9}{score.raw:9.0f}{score.layer:12.0f}{score.ratio:8.2f}"
        print(f"{row}   {low:.2f} - {high:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What recording costs: no-op tasks in bulk, with and without it, in turns on the same machine.

``make bench-events`` runs it. Pairs of rounds follow each other closely and change their order, so that whatever else
the machine does meets both alike; the median of their ratios is reported.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import statistics
import time
from collections.abc import Callable

import polyexec


def seconds_per_task(ex: polyexec.Executor, nothing: Callable[[], None], count: int) -> tuple[float, float]:
    """Run no-op tasks in bulk; give seconds and cpu seconds of this process, for one of them."""
    gc.collect()
    began, cpu = time.perf_counter(), time.process_time()
    for future in [ex.submit(nothing) for _ in range(count)]:
        future.result()
    return (time.perf_counter() - began) / count, (time.process_time() - cpu) / count


def compare(specification: str, pairs: int, count: int) -> None:
    """Measure one backend, and print the ratio of with to without."""
    with contextlib.ExitStack() as stack:
        off = stack.enter_context(polyexec.connect(specification, events=False))
        on = stack.enter_context(polyexec.connect(specification, events=True))
        # Nothing but its code, so that it is sent once; with a name of this script's it would go with each call.
        nothing = lambda: None  # noqa: E731
        for ex in (off, on):
            seconds_per_task(ex, nothing, count)
        found: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
        for pair in range(pairs):
            for recorded in (pair % 2 == 0, pair % 2 == 1):
                found[recorded].append(seconds_per_task(on if recorded else off, nothing, count))
    for index, what in enumerate(("time", "cpu of the driver")):
        plain, recorded = ([values[index] for values in found[key]] for key in (False, True))
        ratios = sorted(with_it / without for with_it, without in zip(recorded, plain, strict=True))
        quarter = len(ratios) // 4
        print(
            f"{specification:22} {what:18} off {statistics.median(plain) * 1e6:8.2f} us, "
            f"on {statistics.median(recorded) * 1e6:8.2f} us, ratio {statistics.median(ratios):.3f} "
            f"(half of {len(ratios)} between {ratios[quarter]:.3f} and {ratios[-1 - quarter]:.3f})"
        )


def main() -> None:
    """Measure the backends that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backends", nargs="*", default=["process?workers=2", "threads?workers=2"])
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--count", type=int, default=2000)
    arguments = parser.parse_args()
    for specification in arguments.backends:
        compare(specification, arguments.pairs, arguments.count)


if __name__ == "__main__":
    main()

"""What actors and streams cost, beside what the engines' own actors and a bare pipe do in the same run.

    python benchmarks/primitives.py [--items N] [--rounds N] [BACKEND...]

Each round takes all rows in turn; what is shown is the median over the rounds, and the lowest and the highest.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeAlias

import polyexec
from polyexec import ActorHandle, Executor

CALLS = 2_000
Row: TypeAlias = Callable[[], float]
"""Gives operations each second."""


class Counter:
    """Counts its calls."""

    def __init__(self) -> None:
        self.count = 0

    def add(self) -> int:
        """Count."""
        self.count += 1
        return self.count


def count_to(number: int) -> Iterator[int]:
    """Give numbers."""
    yield from range(number)


def rate(operations: int, work: Callable[[], object]) -> float:
    """Time some work."""
    began = time.perf_counter()
    work()
    return operations / (time.perf_counter() - began)


def one_by_one(counter: ActorHandle) -> float:
    """Wait for each call before the next."""
    return rate(CALLS, lambda: [counter.add().result() for _ in range(CALLS)])


def at_once(counter: ActorHandle) -> float:
    """Wait when all have been made."""

    def work() -> None:
        futures = [counter.add() for _ in range(5 * CALLS)]
        for future in futures:
            future.result()

    return rate(5 * CALLS, work)


def streamed(ex: Executor, items: int) -> float:
    """Read items."""

    def work() -> None:
        for future in ex.options(buffer=1000).stream(count_to, items):
            future.result()

    return rate(items, work)


def echo(connection: Connection) -> None:
    """Send back what comes."""
    while (item := connection.recv()) is not None:
        connection.send(item)


class Pipe:
    """A process that answers over a pipe: what nothing with features can be faster than."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=echo, args=(theirs,), daemon=True)
        self.process.start()

    def measure(self) -> float:
        """Go there and back."""

        def work() -> None:
            for number in range(CALLS):
                self.connection.send(number)
                self.connection.recv()

        return rate(CALLS, work)

    def close(self) -> None:
        """End the process."""
        self.connection.send(None)
        self.process.join()


def ray_rows() -> dict[str, Row]:
    """Give Ray's own actors, in the instance that the backend has started."""
    import ray

    counter: Any = ray.remote(Counter).options(num_cpus=0).remote()
    ray.get(counter.add.remote())
    return {
        "raw ray: actor, one by one": lambda: rate(
            CALLS // 4, lambda: [ray.get(counter.add.remote()) for _ in range(CALLS // 4)]
        ),
        "raw ray: actor, at once": lambda: rate(
            5 * CALLS, lambda: ray.get([counter.add.remote() for _ in range(5 * CALLS)])
        ),
    }


def rows_of(backend: str, ex: Executor, items: int) -> dict[str, Row]:
    """Give the rows of a backend."""
    counter = ex.actor(Counter)
    counter.add().result()
    rows: dict[str, Row] = {
        f"{backend}: actor, one by one": lambda: one_by_one(counter),
        f"{backend}: actor, at once": lambda: at_once(counter),
        f"{backend}: stream, buffer=1000": lambda: streamed(ex, items),
    }
    return rows | (ray_rows() if backend == "ray" else {})


def memory() -> float:
    """Give the resident memory of this process in MiB (Linux)."""
    fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * 4096 / 2**20


def main() -> int:
    """Run the rounds, and show a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("backends", nargs="*", default=["process"])
    parser.add_argument("--items", type=int, default=100_000, help="items of a stream")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    pipe = Pipe()
    for backend in arguments.backends:
        with polyexec.connect(backend) as ex:
            rows = {"bare pipe, there and back": pipe.measure, **rows_of(backend, ex, arguments.items)}
            found: dict[str, list[float]] = {name: [] for name in rows}
            before = memory()
            for _ in range(arguments.rounds):
                for name, row in rows.items():
                    found[name].append(row())
            for name, rates in found.items():
                print(f"{name:36} {statistics.median(rates):10,.0f}/s  ({min(rates):,.0f} - {max(rates):,.0f})")
            print(f"{backend}: memory of the driver {before:.1f} MiB before, {memory():.1f} MiB after")
            del rows
    pipe.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The cases with small tasks. Each takes a bench, prepares, and gives the function that runs one round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from local import tasks
from local.bench import PATIENCE, WORKERS, Bench, Metrics, Round, WrongResult, await_file, expect
from local.machine import resident_bytes, settled_bytes
from local.systems import System

LONG_TASK = 5.0
"""Seconds that the long task of ``line`` takes at most."""


def timed(function: Callable[..., Any], *args: Any) -> tuple[float, Any]:
    """Call a function; give the seconds that it took, and what it returned."""
    began = perf_counter()
    result = function(*args)
    return perf_counter() - began, result


def rate(many: Callable[..., Sequence[Any]], function: Callable[..., Any], items: range) -> float:
    """Give the tasks per second of one run, whose results must be the items."""
    seconds, results = timed(many, function, items)
    expect(list(results), list(items))
    return len(items) / seconds


def bulk(bench: Bench) -> Round:
    """Submit all, then take all."""
    system = bench.open()
    return lambda: {"rate": rate(system.many, tasks.noop, bench.numbers(bench.sizes["count"]))}


def bulk_lambda(bench: Bench) -> Round:
    """Submit all, then take all; the function is sent by value."""
    system = bench.open()
    return lambda: {"rate": rate(system.many, lambda number: number, bench.numbers(bench.sizes["count"]))}


def single(bench: Bench) -> Round:
    """Take each result before the next task is submitted."""
    system = bench.open()
    submit, take = system.submit, system.take

    def one_at_a_time(function: Callable[..., Any], items: range) -> list[Any]:
        return [take(submit(function, item)) for item in items]

    return lambda: {"rate": rate(one_at_a_time, tasks.noop, bench.numbers(bench.sizes["count"]))}


def mapped(bench: Bench) -> Round:
    """Map over all."""
    system = bench.open()

    def results(function: Callable[..., Any], items: range) -> list[Any]:
        return list(system.map(function, items))

    return lambda: {"rate": rate(results, tasks.noop, bench.numbers(bench.sizes["count"]))}


def milliseconds(bench: Bench) -> Round:
    """Run tasks of a millisecond; the efficiency is the share of the time that two processors need."""
    system = bench.open()
    return lambda: efficiency(rate(system.many, tasks.spin, bench.numbers(bench.sizes["count"])))


def efficiency(tasks_per_second: float) -> Metrics:
    """Compare a rate of tasks of a millisecond with what the workers could do without any overhead."""
    return {"rate": tasks_per_second, "efficiency": tasks_per_second * tasks.MILLISECOND / WORKERS}


def flat(bench: Bench) -> Round:
    """Compare the rate of a large number of tasks with that of small numbers."""
    system = bench.open()

    def run() -> Metrics:
        few, repeats, many = (bench.sizes[name] for name in ("few", "repeats", "many"))
        small = statistics.median(rate(system.many, tasks.noop, bench.numbers(few)) for _ in range(repeats))
        large = rate(system.many, tasks.noop, bench.numbers(many))
        return {"small": small, "large": large, "flatness": large / small}

    return run


def completed(bench: Bench) -> Round:
    """Drain ``as_completed`` while the tasks complete; twice as many should take twice as long."""
    system = bench.open()

    def drain(items: range) -> list[Any]:
        futures = [system.submit(tasks.noop, item) for item in items]
        return [system.take(future) for future in as_completed(system)(futures)]

    return lambda: growing(bench, drain)


def loop(bench: Bench) -> Round:
    """Wait for one of the remaining futures, again and again."""
    system = bench.open()
    wait_for_one = waiter(system)

    def drain(items: range) -> list[Any]:
        pending = [system.submit(tasks.noop, item) for item in items]
        results = []
        while pending:
            done, pending = wait_for_one(pending)
            results += [system.take(future) for future in done]
        return results

    return lambda: growing(bench, drain)


def growing(bench: Bench, drain: Callable[[range], list[Any]]) -> Metrics:
    """Time a drain at each size; the growth is from the last but one to the last, which is twice as large."""
    sizes = [bench.sizes["most"] >> shift for shift in range(bench.sizes["doublings"], -1, -1)]
    seconds = []
    for size in sizes:
        items = bench.numbers(size)
        took, results = timed(drain, items)
        expect(sorted(results), list(items))
        seconds.append(took)
    named = {f"seconds_{size}": took for size, took in zip(sizes, seconds, strict=True)}
    return {**named, "seconds": seconds[-1], "growth": seconds[-1] / seconds[-2]}


def as_completed(system: System) -> Callable[..., Any]:
    """Give the function that goes with the system's futures."""
    import concurrent.futures

    own: Callable[..., Any] | None = getattr(system.native, "as_completed", None)
    return own or concurrent.futures.as_completed


def waiter(system: System) -> Callable[[list[Any]], tuple[Sequence[Any], list[Any]]]:
    """Give a function that splits futures into at least one that is done and the others."""
    import concurrent.futures

    own: Callable[..., Any] | None = getattr(system.native, "wait", None)
    if own is not None:
        return lambda pending: own(pending, num_returns=1)

    def first_completed(pending: list[Any]) -> tuple[list[Any], list[Any]]:
        done, others = concurrent.futures.wait(pending, return_when=concurrent.futures.FIRST_COMPLETED)
        return list(done), list(others)

    return first_completed


def start(bench: Bench) -> Round:
    """Open the system, in a fresh interpreter, and take a first result."""
    bench.load()

    def first_result(number: int) -> Any:
        system = bench.open(warm=False)
        return system.take(system.submit(tasks.noop, number))

    def run() -> Metrics:
        (number,) = bench.numbers(1)
        seconds, result = timed(first_result, number)
        expect(result, number)
        return {"seconds": seconds}

    return run


def line(bench: Bench) -> Round:
    """Time short tasks that share two workers with a long one, which comes before them or among them."""
    system = bench.open()

    def short_ones(before: int) -> float:
        items = bench.numbers(bench.sizes["count"])
        gate = bench.path("gate")
        began = perf_counter()
        handles = [system.submit(tasks.spin, item) for item in items[:before]]
        long = system.submit(tasks.hold, str(bench.path("held")), str(gate), LONG_TASK)
        handles += [system.submit(tasks.spin, item) for item in items[before:]]
        results = [system.take(handle) for handle in handles]
        seconds = perf_counter() - began
        gate.touch()
        expect(results, list(items))
        system.take(long)
        return seconds

    def run() -> Metrics:
        system.many(tasks.noop, bench.numbers(bench.sizes["before"]))
        return {"first": short_ones(0), "among": short_ones(bench.sizes["count"] // 2)}

    return run


def kill(bench: Bench) -> Round:
    """Kill a running task; time until the only worker's successor has run the task behind it."""
    system = bench.open(1)
    end_by_force = system.kill
    if end_by_force is None:
        raise WrongResult("a running task cannot be killed")

    def once() -> float:
        mark = bench.path("blocked")
        blocked = system.submit(tasks.block, str(mark))
        await_file(mark)
        (number,) = bench.numbers(1)
        following = system.submit(tasks.identify, number)
        began = perf_counter()
        end_by_force(blocked)
        pid, result = system.take(following)
        seconds = perf_counter() - began
        expect(result, number)
        expect(blocked.cancelled(), True, "cancelled()")
        expect(pid != int(mark.read_text()), True, "another worker")
        return seconds

    def run() -> Metrics:
        return {"seconds": statistics.median(once() for _ in range(bench.sizes["kills"]))}

    return run


def memory(bench: Bench) -> Round:
    """Measure the driver's growth by tasks that are pending, because all workers are held."""
    system = bench.open()

    def run() -> Metrics:
        gate, items = bench.path("gate"), bench.numbers(bench.sizes["count"])
        system.many(tasks.noop, bench.numbers(bench.sizes["before"]))
        holding = hold_all(bench, system, gate)
        before = resident_bytes()
        handles = [system.submit(tasks.noop, item) for item in items]
        growth = settled_bytes() - before
        gate.touch()
        expect([system.take(handle) for handle in holding], [True] * len(holding), "the gate was seen")
        expect([system.take(handle) for handle in handles], list(items))
        return {"bytes": growth / len(items)}

    return run


def hold_all(bench: Bench, system: System, gate: Path) -> list[Any]:
    """Occupy all workers; with tasks to spare, since some systems queue a second one behind the first."""
    marks = [bench.path("held") for _ in range(4 * WORKERS)]
    holding = [system.submit(tasks.hold, str(mark), str(gate), 10 * PATIENCE) for mark in marks]
    end = time.monotonic() + PATIENCE
    while sum(mark.exists() for mark in marks) < WORKERS:
        if time.monotonic() > end:
            raise WrongResult(f"not all workers were held within {PATIENCE:g} s")
        time.sleep(0.001)
    return holding

"""The cases with a large array of float64."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial
from time import perf_counter
from typing import Any

from local import tasks
from local.bench import Bench, Metrics, Round, expect
from local.cases import timed

PAGE = 512
"""Elements in a page of memory."""


def an_array(bench: Bench) -> Any:
    """Make the array: 0, 1, 2 and so on."""
    import numpy as np

    return np.arange(bench.sizes["bytes"] // 8, dtype=np.float64)


def put(bench: Bench) -> Round:
    """Put an array and drop it, again and again, so that memory can be used again."""
    executor, array = bench.open().native, an_array(bench)

    def put_and_drop(number: int) -> None:
        array[0] = number
        executor.put(array)

    def run() -> Metrics:
        numbers = bench.numbers(bench.sizes["puts"])
        seconds = [timed(put_and_drop, number)[0] for number in numbers]
        last = executor.put(array)
        expect(last.result()[0], numbers[-1], "the array")
        return {"rate": array.nbytes / statistics.median(seconds)}

    return run


def read(bench: Bench) -> Round:
    """Let two tasks of the same worker resolve a Future of an array, one after the other."""
    executor, array = bench.open(1).native, an_array(bench)

    def run() -> Metrics:
        (array[0],) = bench.numbers(1)
        box = [executor.put(array)]
        (first, one), (again, two) = (executor.submit(tasks.resolve, box).result() for _ in range(2))
        expect((one, two), (array[0], array[0]), "the first element")
        return {"first": first, "again": again}

    return run


def share_put(bench: Bench) -> Round:
    """Put an array once, and let all tasks read it."""
    executor, array = bench.open().native, an_array(bench)

    def all_tasks(items: Sequence[int]) -> list[float]:
        stored = executor.put(array)
        futures = [executor.submit(tasks.touch, stored, item) for item in items]
        return [future.result() for future in futures]

    return lambda: _shared(bench, array, all_tasks, bench.sizes["count"])


def share_value(bench: Bench) -> Round:
    """Send the array with each task. Few tasks, since each takes long and all take the same."""
    system, array = bench.open(), an_array(bench)
    bench.notes["blas_threads"] = system.take(system.submit(tasks.blas_threads, 0))
    return lambda: _shared(bench, array, partial(system.many, partial(tasks.touch, array)), bench.sizes["by_value"])


def share_joblib(bench: Bench) -> Round:
    """Let joblib, which writes a large argument to a file and maps it, send the array with all tasks."""
    system, array = bench.open(), an_array(bench)
    return lambda: _shared(bench, array, partial(system.many, partial(tasks.touch, array)), bench.sizes["count"])


def _shared(bench: Bench, array: Any, all_tasks: Any, count: int) -> Metrics:
    items = bench.numbers(count)
    array[0] = items[0]
    seconds, results = timed(all_tasks, items)
    base = tasks.sample(array)
    expect(list(results), [base + item for item in items])
    return {"seconds": seconds / count}


def give_back(bench: Bench) -> Round:
    """Take the arrays that tasks return, and read one element of each page."""
    system, expected = bench.open(), an_array(bench)

    def one(number: int) -> float:
        began = perf_counter()
        array = system.take(system.submit(tasks.give, number, len(expected)))
        total = float(array[::PAGE].sum())
        seconds = perf_counter() - began
        expected[0] = number
        expect(total, float(expected[::PAGE].sum()), "the sum")
        return seconds

    # A worker makes its array at its first call.
    system.many(partial(tasks.give, length=len(expected)), bench.numbers(4))

    def run() -> Metrics:
        return {"seconds": statistics.median(one(number) for number in bench.numbers(bench.sizes["count"]))}

    return run

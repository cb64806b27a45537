"""The object store behind the process backend, through the public API; what it takes is seen from outside, in /proc."""

from __future__ import annotations

import gc
import os
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_peer import bytes_in, descriptor_count, memory

import polyexec
from polyexec import Executor
from polyexec.testing.tools import Gate, Marks, eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

LIMIT = 60.0
MB = 1_000_000
kept: list[Any] = []
"""What a worker keeps from task to task."""


@pytest.fixture
def ex() -> Iterator[Executor]:
    """An executor of two workers that have started."""
    with opened("process?workers=2") as executor:
        yield executor


@contextmanager
def opened(specification: str) -> Iterator[Executor]:
    with polyexec.connect(specification) as executor:
        for future in [executor.submit(np.ones, 10) for _ in range(4)]:
            future.result(LIMIT)
        yield executor


def made(number: float, size: int) -> Any:
    """Make an array of so many bytes that has a number everywhere."""
    return np.full(size // 8, number)


def only_number(array: Any) -> float:
    """Say which array this is, having read all of it."""
    assert (array == array[0]).all()
    return float(array[0])


def plus_one(array: Any) -> Any:
    return array + 1


def no_memory() -> None:
    """Wait until the store takes no memory any more."""
    gc.collect()
    eventually(lambda: memory() == 0, lambda: f"the store takes {memory()} bytes")


def test_very_many_values_take_no_descriptors(ex: Executor) -> None:
    """O1, O5: 10 000 values of 300 kB that live at the same time, where a process may have 256 descriptors."""
    before = descriptor_count()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        array = np.zeros(300_000 // 8)
        stored = []
        for number in range(10_000):
            array[0] = number
            stored.append(ex.put(array))
        looked_at = [ex.submit(np.max, stored[number]) for number in range(0, 10_000, 500)]
        assert [future.result(LIMIT) for future in looked_at] == list(range(0, 10_000, 500))
        assert [stored[number].result(LIMIT)[0] for number in range(7, 10_000, 500)] == list(range(7, 10_000, 500))
        stored.clear()
        no_memory()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert descriptor_count() <= before + 4


def test_memory_of_results_is_used_again(ex: Executor) -> None:
    """O5: a hundred results of 50 MB, one after the other, take the memory of a few, and none in the end."""
    size = 50 * MB
    for number in range(100):
        future = ex.submit(made, number, size)
        assert future.result(LIMIT)[-1] == number
        del future
        assert memory() <= 4 * size
    no_memory()


@pytest.mark.parametrize("by_hand", [False, True])
def test_memory_of_what_only_tasks_use_is_used_again(ex: Executor, by_hand: bool) -> None:
    """O4, O5: so do the results of a long chain, whether passed as arguments or asked for by the tasks."""
    size = 20 * MB
    step = (lambda futures: futures[0].result() + 1) if by_hand else plus_one
    last = ex.submit(made, 0, size)
    for _ in range(60):
        last = ex.submit(step, [last] if by_hand else last)
        ex.wait([last], timeout=LIMIT)
        assert memory() <= 6 * size
    assert only_number(last.result(LIMIT)) == 60
    del last
    no_memory()


def keep(array: Any) -> None:
    kept.append(array)


def number_of_kept() -> float:
    return only_number(kept[0])


def test_what_a_worker_keeps_never_changes() -> None:
    """O2, O5: an array that a task has left in its worker's memory stays as it is, whatever is stored meanwhile."""
    size = 4 * MB
    with opened("process?workers=1") as ex:
        ex.submit(keep, ex.put(made(-1, size))).result(LIMIT)
        gc.collect()
        for number in range(60):
            assert only_number(ex.submit(plus_one, ex.put(made(number, size))).result(LIMIT)) == number + 1
            assert ex.submit(number_of_kept).result(LIMIT) == -1
            assert memory() <= 8 * size
        ex.submit(kept_clear).result(LIMIT)
        no_memory()


def kept_clear() -> None:
    kept.clear()


def test_what_the_driver_keeps_never_changes() -> None:
    """O2, O5: nor does an array that the caller keeps when its Future is gone, not even when the executor is closed."""
    size = 4 * MB
    with opened("process?workers=2") as ex:
        arrays = [ex.put(made(-1, size)).result(), ex.submit(made, -2, size).result(LIMIT)]
        for number in range(60):
            assert ex.submit(only_number, ex.put(made(number, size))).result(LIMIT) == number
            assert [only_number(array) for array in arrays] == [-1, -2]
    assert [only_number(array) for array in arrays] == [-1, -2]


def test_a_chain_of_tasks_in_a_small_store(tmp_path: Path) -> None:
    """O6: the results of a chain that live all together are several times what the store may have in memory."""
    size, count = 8 * MB, 24
    with opened(f"process?workers=2&store_limit={4 * size}&spill_folder={tmp_path}") as ex:
        futures = [ex.submit(made, 0, size)]
        for _ in range(count):
            futures.append(ex.submit(plus_one, futures[-1]))
            ex.wait([futures[-1]], timeout=LIMIT)
            assert memory() <= 8 * size
        assert bytes_in(str(tmp_path)) >= (count - 8) * size
        for _ in range(2):
            assert [ex.submit(only_number, future).result(LIMIT) for future in futures] == list(range(count + 1))
        sums = [ex.submit(np.add, futures[n], futures[-1 - n]) for n in range(count)]
        assert [only_number(sums.pop(0).result(LIMIT)) for _ in range(count)] == [count] * count
        futures.clear()
        no_memory()
        eventually(lambda: bytes_in(str(tmp_path)) == 0, "the file on disk is empty")
    assert list(tmp_path.iterdir()) == []


def put_again_and_again(marks: Marks, size: int) -> None:
    array = made(1, size)
    while True:
        polyexec.current().put(array)
        marks.add("put")


def test_a_task_that_is_cancelled_while_it_puts(ex: Executor, tmp_path: Path) -> None:
    """C2, O5: whenever the interrupt comes, nothing of what the task was storing is left."""
    for number in range(12):
        marks = Marks(str(tmp_path / f"marks-{number}"))
        future = ex.submit(put_again_and_again, marks, (1 + number) * MB)
        marks.wait_for("put", 1 + number % 3)
        assert ex.cancel(future)
        with pytest.raises(polyexec.TaskCancelled):
            future.result(LIMIT)
    no_memory()


def test_a_worker_that_is_killed_while_it_writes(ex: Executor, tmp_path: Path) -> None:
    """F13, O5: it costs its own task at most, and its half-written value goes with it."""
    size = 400 * MB
    marks = Marks(str(tmp_path / "marks"))
    future = ex.submit(made_by, marks, size)
    other = ex.submit(made, 3, MB)
    eventually(lambda: memory() > size // 8, "the worker writes")
    os.kill(int(marks.values("pid")[0]), signal.SIGKILL)
    # The machine may be so busy that it is too late.
    with suppress(polyexec.WorkerDied):
        assert future.result(LIMIT)[-1] == 1
    assert only_number(other.result(LIMIT)) == 3
    assert ex.submit(only_number, ex.submit(made, 5, MB)).result(LIMIT) == 5
    del future, other
    no_memory()


def made_by(marks: Marks, size: int) -> Any:
    marks.add(f"pid {os.getpid()}")
    return made(1, size)


def held_by_a_thread(array: Any, gate: Gate) -> None:
    """Let a thread of the worker look at an array when the task has ended, until a gate opens."""
    threading.Thread(target=lambda: (gate.wait(), array), daemon=True).start()


def test_what_an_idle_worker_lets_go(ex: Executor, tmp_path: Path) -> None:
    """O5: memory is back soon when the last look at it ends in a worker that has nothing to do."""
    gate = Gate(str(tmp_path / "gate"))
    ex.submit(held_by_a_thread, ex.put(made(1, 10 * MB)), gate).result(LIMIT)
    gc.collect()
    assert memory() >= 10 * MB
    gate.open()
    no_memory()


def held_by_garbage(array: Any) -> None:
    cycle: list[Any] = [array]
    cycle.append(cycle)


def test_garbage_in_an_idle_worker_holds_no_memory(ex: Executor) -> None:
    """O5: nor does it take memory for long that what the task has left refers to itself."""
    ex.submit(held_by_garbage, ex.put(made(1, 10 * MB))).result(LIMIT)
    no_memory()


def resubmitted(size: int) -> float:
    """Pass a large argument from a task to another, and a value that the other has put."""
    ex = polyexec.current()
    array = made(2, size)
    stored = ex.put(array)
    future = ex.submit(np.add, array, stored)
    array[:] = 7
    return only_number(future.result())


def test_what_tasks_pass_on_is_taken_at_once(ex: Executor) -> None:
    """S2, O4: a task may change an array that it has stored or submitted as soon as the call returns."""
    for size in (10_000, 1_000_000, 40_000_000):
        assert ex.submit(resubmitted, size).result(LIMIT) == 4
        array = made(3, size)
        stored = ex.put(array)
        array[:] = 8
        assert only_number(stored.result(LIMIT)) == 3
    del stored
    no_memory()


def overwritten(array: Any) -> float:
    array[:] = 9
    return only_number(array)


def test_large_arguments_belong_to_the_task(ex: Executor) -> None:
    """S2: a task may write into its arguments, again and again, and nobody else sees it."""
    array = made(1, 10 * MB)
    assert [ex.submit(overwritten, array).result(LIMIT) for _ in range(5)] == [9] * 5
    assert only_number(array) == 1
    no_memory()


@pytest.mark.parametrize("key", ["store_limit=lots", "spill_folder=/nowhere/at/all", "spill_folder="])
def test_bad_keys(key: str) -> None:
    with pytest.raises(polyexec.SpecificationError, match=key.partition("=")[0]):
        polyexec.connect(f"process?{key}")

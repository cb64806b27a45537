"""Chapter O: where large values lie, and which way they take. It is seen in ``/proc``, on Linux."""

from __future__ import annotations

import gc
import os
from typing import Any

import numpy as np
import pytest

import polyexec
from polyexec import Executor, Future
from polyexec.testing import bodies
from polyexec.testing.helpers import LIMIT, require_shared_memory
from polyexec.testing.marks import clause, deviation
from polyexec.testing.places import Place, held_for, place_of, read_and_written, transported
from polyexec.testing.target import Target
from polyexec.testing.tools import Gate, Marks
from polyexec.testing.watch import LINUX, family, memory

pytestmark = pytest.mark.skipif(not LINUX, reason="reads /proc")

_SIZE = 64 * 2**20
_COUNT = _SIZE // 8
_READERS = 4
_TRIES = 5

WAYS = ["put", "put-in-a-task", "result", "result-of-a-child"]


def put_here(count: int) -> Future[Any]:
    """Store an array from inside a task."""
    return polyexec.current().put(np.arange(float(count)))


def made_by_child(count: int) -> Future[Any]:
    """Let another task make an array."""
    return polyexec.current().submit(np.arange, float(count))


def stored_by(ex: Executor, way: str, count: int) -> Future[Any]:
    """Give a Future of an array that is stored in one of the ways in which values come to be."""
    if way == "put":
        return ex.put(np.arange(float(count)))
    if way == "result":
        return ex.submit(np.arange, float(count))
    future: Future[Any] = ex.submit(put_here if way == "put-in-a-task" else made_by_child, count).result(LIMIT)
    return future


def place_among(array: Any, marks: Marks, readers: int) -> Place:
    """Give the place of an array, while as many readers have it as were promised."""
    marks.add(f"reads {os.getpid()}")
    marks.wait_for("reads", readers)
    return place_of(array)


def _readers(ex: Executor, target: Target) -> int:
    return 1 if target.capabilities.inline else min(_READERS, 2 * int(ex.resources().total.cpus))


def _places(ex: Executor, target: Target, marks: Marks, stored: Future[Any]) -> list[Place]:
    """Let several readers look at the same time, then one more, then the caller."""
    count = _readers(ex, target)
    reader = ex.options(cpus=0.5)
    found = [reader.submit(place_among, stored, marks, count) for _ in range(count)]
    places = [future.result(LIMIT) for future in found]
    return [*places, ex.submit(place_of, stored).result(LIMIT), place_of(stored.result(LIMIT))]


@clause("O3")
@pytest.mark.parametrize("way", WAYS)
def test_all_readers_see_the_same_memory(ex: Executor, target: Target, marks: Marks, way: str) -> None:
    """O3 Tasks that read an array at the same time, in any worker, and the caller have it at one place, uncopied."""
    require_shared_memory(target)
    places = _places(ex, target, marks, stored_by(ex, way, _COUNT))
    assert len({place.identity for place in places}) == 1, places
    assert [place.copied for place in places] == [0] * len(places)
    if target.capabilities.processes:
        assert all(place.file for place in places)
        assert os.getpid() not in {place.pid for place in places[:-1]}


@deviation("O3")
def test_only_what_a_task_puts_is_copied(ex: Executor, target: Target, marks: Marks) -> None:
    """O3 (declared) Readers have copies of what a task has put; all else that is stored is not copied."""
    require_shared_memory(target)
    for number, way in enumerate(WAYS):
        own_marks = Marks(f"{marks.path}-{number}")
        places = _places(ex, target, own_marks, stored_by(ex, way, _COUNT))
        count = len({place.identity for place in places})
        assert (count > 1) if way == "put-in-a-task" else (count == 1), (way, places)


def parts_of(value: dict[str, Any]) -> list[Place]:
    """Give the places of the arrays of a nested value."""
    return [place_of(array) for array in (*value["list"], value["deep"]["fortran"].T)]


@clause("O3")
def test_arrays_inside_a_value_are_not_copied_either(ex: Executor, target: Target) -> None:
    """O3 The same holds for each of several arrays inside one value, of any order in memory."""
    require_shared_memory(target)
    arrays = [np.full(_COUNT // 16, number, dtype=float) for number in range(3)]
    stored = ex.put({"list": arrays, "deep": {"fortran": np.asfortranarray(np.ones((512, 512)))}})
    views = [parts_of(stored.result(LIMIT)), *(ex.submit(parts_of, stored).result(LIMIT) for _ in range(2))]
    for places in zip(*views, strict=True):
        assert len({place.identity for place in places}) == 1, places
        assert {place.copied for place in places} == {0}


def sum_among(array: Any, marks: Marks, gate: Gate) -> float:
    """Read all of an array, and keep it until a gate opens."""
    total = float(array.sum())
    marks.add("read")
    gate.wait()
    return total


def _read_together(ex: Executor, stored: Future[Any], readers: int, folder: Any) -> int:
    """Let readers have an array all at the same time; give the memory that everything takes then."""
    marks, gate = Marks(str(folder / f"marks-{os.urandom(4).hex()}")), Gate(str(folder / f"gate-{os.urandom(4).hex()}"))
    if readers == 1:
        gate.open()
    reader = ex.options(cpus=0.5)
    futures = [reader.submit(sum_among, stored, marks, gate) for _ in range(readers)]
    try:
        marks.wait_for("read", readers)
        return memory()
    finally:
        gate.open()
        for future in futures:
            future.result(LIMIT)


@clause("O3")
@pytest.mark.parametrize("way", WAYS)
def test_many_readers_take_the_memory_of_one_array(ex: Executor, target: Target, tmp_path: Any, way: str) -> None:
    """O3 While several tasks have read all of an array, there is one array more in memory than before, not several."""
    require_shared_memory(target)
    readers = _readers(ex, target)
    before = _read_together(ex, stored_by(ex, way, 10), readers, tmp_path)
    stored = stored_by(ex, way, _COUNT)
    gc.collect()
    grown = _read_together(ex, stored, readers, tmp_path) - before
    assert grown < 2 * _SIZE, f"{readers} readers of {_SIZE >> 20} MiB take {grown >> 20} MiB"


def cost_of_reading(futures: list[Future[Any]]) -> tuple[int, bool]:
    """Give the memory that this process takes to get a value whose first element it looks at."""
    array, held = held_for(lambda: futures[0].result(LIMIT))
    return held, bool(array[1] == 1)


@clause("O3")
@pytest.mark.parametrize("way", ["put", "result"])
def test_reading_touches_only_what_is_used(ex: Executor, target: Target, way: str) -> None:
    """O3 To get an array costs a process no memory of the array's size, neither in a task nor at the caller."""
    require_shared_memory(target)
    stored = stored_by(ex, way, _COUNT)
    ex.wait([stored], timeout=LIMIT)
    held, right = ex.submit(cost_of_reading, [stored]).result(LIMIT)
    assert right
    assert held < _SIZE // 2, f"a task took {held >> 20} MiB to get {_SIZE >> 20} MiB"
    held, right = cost_of_reading([stored])
    assert right
    assert held < _SIZE // 2, f"the caller took {held >> 20} MiB to get {_SIZE >> 20} MiB"


@clause("O4")
def test_a_result_for_other_tasks_does_not_pass_through_the_driver(ex: Executor, target: Target, note: Any) -> None:
    """O4 The driver neither holds nor reads nor writes a large result that only other tasks use."""
    require_shared_memory(target)
    if target.capabilities.processes:
        _check_passage(ex)
    else:
        note("trivially: tasks run in the driver's own process")
        assert _used_by_tasks(ex) == [_COUNT, _COUNT, _COUNT, 2 * _COUNT]


def _used_by_tasks(ex: Executor) -> list[float]:
    made = ex.submit(np.ones, _COUNT)
    used = [ex.submit(bodies.total_of, made) for _ in range(3)]
    both = ex.submit(bodies.add, used[0], used[1])
    return [future.result(LIMIT) for future in (*used, both)]


def _check_passage(ex: Executor) -> None:
    ex.submit(bodies.total_of, ex.submit(np.ones, 10)).result(LIMIT)
    before = read_and_written()
    sums, held = held_for(lambda: _used_by_tasks(ex))
    moved = read_and_written() - before
    assert sums == [_COUNT, _COUNT, _COUNT, 2 * _COUNT]
    assert held < _SIZE // 2, f"the driver held {held >> 20} MiB of a result of {_SIZE >> 20} MiB"
    assert moved < _SIZE // 2, f"the driver read and wrote {moved >> 20} MiB for a result of {_SIZE >> 20} MiB"


def give_place(*arrays: Any, **named: Any) -> tuple[Place, float]:
    """Give the place of the only array among the arguments, and what it has in the end."""
    (array,) = (*arrays, *named.values())
    array = array[0] if isinstance(array, list) else array
    return place_of(array), float(array[-1])


def submit_here(count: int) -> tuple[Place, float]:
    """Pass a large argument from a task to a task."""
    found: tuple[Place, float] = polyexec.current().submit(give_place, np.arange(float(count))).result()
    return found


def _submitted(ex: Executor, how: str) -> tuple[Place, float]:
    array = np.arange(float(_COUNT))
    calls: dict[str, Any] = {
        "positional": lambda: ex.submit(give_place, array),
        "keyword": lambda: ex.submit(give_place, named=array),
        "inside": lambda: ex.submit(give_place, [array]),
        "closure": lambda: ex.submit(lambda: give_place(array)),
        "from-a-task": lambda: ex.submit(submit_here, _COUNT),
    }
    found: tuple[Place, float] = calls[how]().result(LIMIT)
    return found


ARGUMENTS = ["positional", "keyword", "inside", "closure", "from-a-task"]


def _sent_for(ex: Executor, how: str) -> tuple[Place, int]:
    """Pass a large argument; give its place, and what was sent meanwhile through pipes and the network."""
    pids = [os.getpid(), *(process.pid for process in family())]
    before = transported(pids)
    place, last = _submitted(ex, how)
    assert last == _COUNT - 1
    return place, transported(pids) - before


@clause("O4")
@pytest.mark.parametrize("how", ARGUMENTS)
def test_a_large_argument_goes_by_shared_memory(ex: Executor, target: Target, how: str) -> None:
    """O4 A large argument lies in shared memory; at least it has gone neither through a pipe nor over the network."""
    require_shared_memory(target)
    sent = []
    # What others send over this machine's network counts too, so one time in several must do.
    for _ in range(_TRIES):
        place, size = _sent_for(ex, how)
        sent.append(size)
        if place.file or not target.capabilities.processes or size < _SIZE // 2:
            return
    raise AssertionError(f"{min(sent) >> 20} MiB were sent for an argument of {_SIZE >> 20} MiB")


@deviation("O4")
@pytest.mark.parametrize("how", ARGUMENTS)
def test_a_large_argument_goes_by_the_engines_connection(ex: Executor, target: Target, how: str) -> None:
    """O4 (declared) A large argument is sent to the task's worker; a result for other tasks is not sent at all."""
    require_shared_memory(target)
    places, sizes = zip(*(_sent_for(ex, how) for _ in range(_TRIES)), strict=True)
    assert min(sizes) >= _SIZE
    assert not any(place.file for place in places)
    _check_passage(ex)

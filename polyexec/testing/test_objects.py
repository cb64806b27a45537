"""Chapter O: values that are stored once and used many times."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from polyexec import Executor, Future
from polyexec.testing import bodies
from polyexec.testing.helpers import LIMIT
from polyexec.testing.marks import clause
from polyexec.testing.tools import Gate, Marks
from polyexec.testing.watch import LINUX, memory

_LARGE = 2_000_000
_ROUND = 32 * 2**20
_ROUNDS = 40


class Witness:
    """Leaves a mark each time it is serialised and each time it is rebuilt."""

    def __init__(self, marks: Marks, value: int, note: str = "") -> None:
        self.marks = marks
        self.value = value
        if note:
            marks.add(note)

    def __reduce__(self) -> Any:
        self.marks.add("serialised")
        return Witness, (self.marks, self.value, "rebuilt")


def value_of(*witnesses: Any) -> int:
    """Add up what witnesses hold."""
    return sum(witness.value for witness in witnesses)


@clause("O1")
def test_put_serialises_once(ex: Executor, marks: Marks) -> None:
    """O1 A value is serialised once per ``put``, however many tasks use it."""
    stored = ex.put(Witness(marks, 5))
    futures = [ex.submit(value_of, stored) for _ in range(4)]
    futures += [ex.submit(value_of, stored, stored) for _ in range(4)]
    assert [future.result(LIMIT) for future in futures] == [5] * 4 + [10] * 4
    assert marks.count("serialised") == 1


@clause("O1")
def test_a_result_is_serialised_once(ex: Executor, marks: Marks) -> None:
    """O1 So is a result that other tasks and the caller use."""
    result = ex.submit(Witness, marks, 3)
    futures = [ex.submit(value_of, result) for _ in range(4)]
    assert [future.result(LIMIT) for future in futures] == [3] * 4
    assert result.result(LIMIT).value == 3
    assert marks.count("serialised") == 1


@clause("O1")
def test_put_gives_a_future_that_is_done(ex: Executor) -> None:
    """O1 ``put`` gives a Future that is done, and whose value comes back."""
    stored = ex.put({"key": [1, 2]})
    assert isinstance(stored, Future)
    assert (stored.done(), stored.cancelled(), stored.running()) == (True, False, False)
    assert stored.result() == {"key": [1, 2]}
    nothing = ex.put(None)
    assert nothing.result() is None
    assert ex.submit(bodies.give, nothing).result(LIMIT) is None


@clause("O2")
@pytest.mark.parametrize("count", [10, _LARGE])
def test_arrays_from_an_object_are_read_only(ex: Executor, count: int) -> None:
    """O2 A write into an array that was put raises, in a task and at the caller; the array itself stays writable."""
    mine = np.zeros(count)
    stored = ex.put(mine)
    for _ in range(2):
        assert "refused" in ex.submit(bodies.overwrite, stored).result(LIMIT)
        assert "refused" in bodies.overwrite(stored.result(LIMIT))
    assert ex.submit(bodies.total_of, stored).result(LIMIT) == 0
    mine[0] = 5
    assert mine.flags.writeable


@clause("O2")
@pytest.mark.parametrize("count", [10, _LARGE])
def test_a_result_of_ones_own_can_be_changed(ex: Executor, count: int) -> None:
    """O2 ``result(writable=True)`` gives a copy each time, which nobody else sees changed."""
    made: Any = ex.submit(lambda size: {"deep": [np.zeros(size)]}, count)
    first, second = (made.result(LIMIT, writable=True)["deep"][0] for _ in range(2))
    first += 1
    assert (first.sum(), second.sum()) == (count, 0)
    assert second.flags.writeable
    assert "refused" in bodies.overwrite(made.result(LIMIT)["deep"][0])
    assert made.result(LIMIT)["deep"][0].sum() == 0
    stored = ex.put(np.zeros(count))
    stored.result(LIMIT, writable=True)[0] = 7
    assert ex.submit(bodies.total_of, stored).result(LIMIT) == 0


@clause("O2")
@pytest.mark.parametrize("count", [10, _LARGE])
def test_arrays_from_a_task_are_read_only_for_other_tasks(ex: Executor, count: int) -> None:
    """O2 So are arrays that one task hands to others by its Future, alone or in containers."""
    made = ex.submit(np.zeros, count)
    for _ in range(2):
        assert "refused" in ex.submit(bodies.overwrite, made).result(LIMIT)
    nested: Any = ex.submit(lambda size: {"deep": [np.zeros(size)]}, count)
    assert "refused" in ex.submit(lambda value: bodies.overwrite(value["deep"][0]), nested).result(LIMIT)
    assert ex.submit(bodies.total_of, made).result(LIMIT) == 0


@clause("O2")
@pytest.mark.parametrize("kind", ["F", "strided", "zero", "structured", "object", "empty"])
def test_arrays_of_all_kinds_come_back_equal(ex: Executor, kind: str) -> None:
    """O2 Arrays of any order, stride, shape and type come back equal."""
    made: dict[str, Callable[[], Any]] = {
        "F": lambda: np.asfortranarray(np.arange(_LARGE // 10).reshape(100, -1)),
        "strided": lambda: np.arange(_LARGE)[::7],
        "zero": lambda: np.array(4.5),
        "structured": lambda: np.array([(1, 2.5)], dtype=[("left", "i4"), ("right", "f8")]),
        "object": lambda: np.array([{"a": 1}, None], dtype=object),
        "empty": lambda: np.empty((0, 3)),
    }
    array = made[kind]()
    stored = ex.put(array)
    for found in (stored.result(LIMIT), ex.submit(bodies.give, stored).result(LIMIT)):
        assert found.dtype == array.dtype
        assert found.shape == array.shape
        assert (found == array).all()


@clause("O5")
@pytest.mark.skipif(not LINUX, reason="reads /proc")
@pytest.mark.timeout(120, method="signal")
@pytest.mark.parametrize("how", ["put", "result"])
def test_memory_is_back_when_the_last_future_goes(ex: Executor, how: str, gate: Gate) -> None:
    """O5 Storing and dropping arrays again and again takes no more memory in the end than doing so a few times."""

    def round_trip() -> int:
        array = np.ones(_ROUND // 8)
        stored = ex.put(array) if how == "put" else ex.submit(np.ones, _ROUND // 8)
        del array
        assert ex.submit(bodies.total_of, stored).result(LIMIT) == _ROUND // 8
        del stored
        gc.collect()
        ex.submit(bodies.add, 1, 1).result(LIMIT)
        return memory()

    # A store may keep the pages of values that it has freed; then it takes some rounds until they are used again.
    sizes: list[int] = []
    while len(sizes) < _ROUNDS and not _is_level(sizes[-6:]):
        sizes.append(round_trip())
    assert _is_level(sizes[-6:]), f"each array of {_ROUND >> 20} MiB leaves something: {[n >> 20 for n in sizes]} MiB"


def _is_level(sizes: list[int]) -> bool:
    return len(sizes) == 6 and max(sizes) - sizes[0] < _ROUND


@clause("O5")
def test_a_value_lives_as_long_as_one_future(ex: Executor) -> None:
    """O5 A value is not freed while a Future, a task or another stored value still refers to it."""
    stored = ex.put(np.ones(_LARGE))
    inside: Any = ex.put([stored])
    queued = ex.submit(bodies.total_of, stored)
    del stored
    gc.collect()
    for _ in range(5):
        ex.put(np.zeros(_LARGE))
    assert queued.result(LIMIT) == _LARGE
    assert ex.submit(lambda items: items[0].result().sum(), inside).result(LIMIT) == _LARGE
    assert inside.result(LIMIT)[0].result(LIMIT).sum() == _LARGE

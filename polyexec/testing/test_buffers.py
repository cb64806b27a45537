"""Chapter O: values with the buffer protocol, from the standard library and from others as far as they are installed.

Out of band means that their bytes are no part of a pickle: where a kind of value can live in memory that it does not
own, it does so in the store's; where it cannot, as ``bytes``, there is one copy in who reads it and no other.
"""

from __future__ import annotations

import array
import importlib
import importlib.util
import os
import pickle
import zlib
from collections.abc import Callable
from typing import Any

import attrs
import numpy as np
import pytest

from polyexec import Executor, Future
from polyexec.testing import bodies
from polyexec.testing.helpers import LIMIT, require_shared_memory
from polyexec.testing.marks import clause
from polyexec.testing.places import Place, allocated_for, place_of
from polyexec.testing.target import Target
from polyexec.testing.watch import LINUX

_SMALL = 800
_LARGE = 64 * 2**20


class Carrier:
    """A class of a user's own that says how its memory can travel."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Carrier, (pickle.PickleBuffer(self.data),)


def _package(name: str) -> Any:
    return importlib.import_module(name)


def numbers(size: int) -> Any:
    """Make an array of so many bytes."""
    return np.arange(size // 8, dtype=float)


def _array_of_numbers(size: int) -> Any:
    made = array.array("d")
    made.frombytes(memoryview(numbers(size)).cast("B"))
    return made


def _pairs(size: int) -> Any:
    made = np.zeros(size // 16, dtype=[("left", "i8"), ("right", "f8")])
    made["right"] = numbers(size // 2)
    return made


def _arrow(size: int) -> Any:
    return _package("pyarrow").array(numbers(size))


def _arrow_table(size: int) -> Any:
    return _package("pyarrow").table({"left": numbers(size // 2), "right": numbers(size // 2)})


def _frame(size: int) -> Any:
    return _package("pandas").DataFrame({"left": numbers(size // 2), "right": numbers(size // 2)})


def _tensor(size: int) -> Any:
    return _package("torch").from_numpy(numbers(size))


@attrs.frozen
class Kind:
    """A kind of value.

    Attributes:
        make: makes one of so many bytes in all.
        buffer: gives the memory, or a part of it, in which a value's bytes lie.
        package: what it needs.
    """

    make: Callable[[int], Any]
    buffer: Callable[[Any], Any]
    package: str = "numpy"


def _itself(value: Any) -> Any:
    return value


SHARING = {
    "numpy": Kind(numbers, _itself),
    "numpy-fortran": Kind(lambda size: np.asfortranarray(numbers(size).reshape(4, -1)), lambda value: value.T),
    "numpy-structured": Kind(_pairs, _itself),
    "own-class": Kind(lambda size: Carrier(bytearray(numbers(size))), lambda value: value.data),
    "arrow": Kind(_arrow, lambda value: value.buffers()[1], "pyarrow"),
    "arrow-table": Kind(_arrow_table, lambda value: value["right"].chunk(0).buffers()[1], "pyarrow"),
    "pandas": Kind(_frame, lambda value: value["right"].to_numpy(), "pandas"),
}
"""Kinds of values that can live in memory that they do not own."""

OWNING = {
    "bytes": Kind(lambda size: numbers(size).tobytes(), _itself),
    "bytearray": Kind(lambda size: bytearray(numbers(size)), _itself),
    "array": Kind(_array_of_numbers, _itself),
    "torch": Kind(_tensor, lambda value: value.numpy(), "torch"),
    "inside": Kind(lambda size: {"deep": [bytearray(numbers(size))]}, lambda value: value["deep"][0]),
}
"""Kinds of values that always own their memory; tensors, because they cannot be read-only."""

KINDS = {**SHARING, **OWNING}


def _installed(kinds: dict[str, Kind]) -> list[str]:
    return [name for name, kind in kinds.items() if importlib.util.find_spec(kind.package) is not None]


def of_kind(name: str, size: int) -> Any:
    """Make a value of a kind."""
    return KINDS[name].make(size)


def seen(name: str, value: Any) -> tuple[str, int]:
    """Give the type of a value, and a sum over its bytes."""
    view = memoryview(KINDS[name].buffer(value)).cast("B")
    return type(value).__qualname__, zlib.crc32(view)


def place_in(name: str, value: Any) -> Place:
    """Give the place of a value's memory."""
    return place_of(KINDS[name].buffer(value))


def cost_of(name: str, futures: list[Future[Any]]) -> tuple[int, tuple[str, int]]:
    """Give the bytes that are allocated in this process to get a value, and what it got."""
    value, held = allocated_for(lambda: futures[0].result(LIMIT))
    return held, seen(name, value)


def _stored(ex: Executor, way: str, name: str, size: int) -> Future[Any]:
    stored = ex.put(of_kind(name, size)) if way == "put" else ex.submit(of_kind, name, size)
    ex.wait([stored], timeout=LIMIT)
    return stored


@clause("O8")
@pytest.mark.parametrize("size", [_SMALL, _LARGE // 16], ids=["small", "large"])
@pytest.mark.parametrize("name", _installed(KINDS))
def test_buffers_come_back_as_they_were(ex: Executor, name: str, size: int) -> None:
    """O8 Each kind arrives with its type and its bytes: stored, returned, given by value, and given by the caller."""
    mine = of_kind(name, size)
    expected = seen(name, mine)
    for stored in (ex.put(mine), ex.submit(of_kind, name, size), ex.submit(bodies.give, mine)):
        assert ex.submit(seen, name, stored).result(LIMIT) == expected
        assert seen(name, stored.result(LIMIT)) == expected
    assert ex.submit(seen, name, mine).result(LIMIT) == expected


@clause("O8")
@pytest.mark.skipif(not LINUX, reason="reads /proc")
@pytest.mark.parametrize("way", ["put", "result"])
@pytest.mark.parametrize("name", _installed(SHARING))
def test_values_live_in_memory_that_is_not_theirs(ex: Executor, target: Target, name: str, way: str) -> None:
    """O8 What can live in memory that it does not own is not copied: it lies in memory that all readers share."""
    require_shared_memory(target)
    stored = _stored(ex, way, name, _LARGE // 4)
    places = [ex.submit(place_in, name, stored).result(LIMIT) for _ in range(2)]
    places.append(place_in(name, stored.result(LIMIT)))
    if target.capabilities.processes:
        assert all(place.file for place in places), places
        assert [place.copied for place in places] == [0] * len(places)
    else:
        assert {place.pid for place in places} == {os.getpid()}
        assert len({place.address for place in places}) == 1, places


@clause("O8")
@pytest.mark.parametrize("way", ["put", "result"])
@pytest.mark.parametrize("name", _installed(OWNING))
def test_values_that_own_their_memory_are_copied_once(ex: Executor, target: Target, name: str, way: str) -> None:
    """O8 To get a value that owns its memory, a process allocates that memory and nothing else of this size."""
    require_shared_memory(target)
    stored = _stored(ex, way, name, _LARGE)
    for size, found in (ex.submit(cost_of, name, [stored]).result(LIMIT), cost_of(name, [stored])):
        assert found == seen(name, of_kind(name, _LARGE))
        assert size < 1.5 * _LARGE, f"{size >> 20} MiB for {_LARGE >> 20} MiB"


@clause("O8")
@pytest.mark.parametrize("name", _installed(KINDS))
def test_storing_makes_no_pickle_of_the_bytes(ex: Executor, name: str) -> None:
    """O8 To store a value, the caller allocates one copy of its bytes at most, that nobody can change."""
    mine = of_kind(name, _LARGE)
    ex.put(of_kind(name, _SMALL))
    stored, size = allocated_for(lambda: ex.put(mine))
    assert ex.submit(seen, name, stored).result(LIMIT) == seen(name, mine)
    assert size < 1.5 * _LARGE, f"{size >> 20} MiB for {_LARGE >> 20} MiB"

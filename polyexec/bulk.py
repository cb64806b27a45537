"""Large ``bytes``, ``bytearray``, ``array`` and torch tensors on the CPU out of band (O8).

Pickle protocol 5 lets NumPy and others keep their memory out of the pickle, but these types are written into it. So
those that are large are replaced, while a value is pickled, by something that comes back as what it was.
"""

from __future__ import annotations

import pickle
import sys
from array import array
from typing import Any

LARGE = 64 * 1024
"""Bytes from which on it pays."""

_DEPTH = 4
_LOOKS = 1000
"""How deep in lists, tuples and dicts large bytes are looked for, and at how many values; others stay in the pickle."""


class _Bulk:
    """Stands for bytes whose memory is not to be copied into a pickle."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes | bytearray) -> None:
        self._value = value

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return type(self._value), (pickle.PickleBuffer(self._value),)


def lifted(value: Any) -> Any:
    """Give a value to pickle instead of another; the value itself if there are no large bytes in it.

    Args:
        value: any object; not changed.

    Returns:
        The value, or a copy of its lists, tuples and dicts down to where the large bytes are.
    """
    return _Search().lifted(value, _DEPTH)


class _Search:
    def __init__(self) -> None:
        self._looks = _LOOKS
        self._found: dict[int, _Bulk] = {}

    def lifted(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if kind is bytes or kind is bytearray:
            # One that occurs twice stays one.
            return self._found.setdefault(id(value), _Bulk(value)) if len(value) > LARGE else value
        if not depth or self._looks <= 0:
            return value
        if kind is tuple or kind is list:
            items = self._items(value, depth)
            return value if items is None else kind(items)
        if kind is dict:
            items = self._items(list(value.values()), depth)
            return value if items is None else dict(zip(value, items, strict=True))
        return value

    def _items(self, values: Any, depth: int) -> list[Any] | None:
        """Give what the items of a container are replaced by, None if all of them stay."""
        if len(values) > self._looks:
            return None
        self._looks -= len(values)
        items = [self.lifted(value, depth - 1) for value in values]
        return None if all(new is old for new, old in zip(items, values, strict=True)) else items


def reduced(value: Any) -> tuple[Any, ...] | None:
    """Give how a large array or tensor comes out of its pickle, for ``reducer_override``.

    Args:
        value: any object.

    Returns:
        As ``__reduce__`` does; None if its own way is to be taken.
    """
    kind = type(value)
    if kind is array:
        return (_array, (value.typecode, pickle.PickleBuffer(value))) if len(value) * value.itemsize > LARGE else None
    if kind.__module__ == "torch" and kind.__qualname__ == "Tensor":
        return _reduced_tensor(value)
    return None


def _reduced_tensor(value: Any) -> tuple[Any, ...] | None:
    try:
        return (_tensor, (type(value), value.numpy())) if value.nbytes > LARGE else None
    except (TypeError, RuntimeError):
        # It is on a device, part of a graph of gradients, or of a type that NumPy does not have.
        return None


def _array(typecode: str, buffer: Any) -> array[Any]:
    made: array[Any] = array(typecode)
    made.frombytes(buffer)
    return made


def _tensor(kind: type[Any], memory: Any) -> Any:
    # To load the type its package has been imported. A tensor cannot be read-only.
    torch: Any = sys.modules[kind.__module__]
    return torch.from_numpy(memory if memory.flags.writeable else memory.copy())

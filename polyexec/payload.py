"""Turning values into ``Stored`` and back: cloudpickle with out-of-band buffers of pickle protocol 5."""

from __future__ import annotations

import io
import pickle
import sys
import types
from collections.abc import Iterable, Sequence
from typing import Any

import cloudpickle

from polyexec import bulk
from polyexec.errors import SerializationError
from polyexec.stored import Buffer, Stored

_REASON_LIMIT = 500
_DEPTH_LIMIT = 8
_SHOWN_LIMIT = 100
_ADVICE: dict[type, str] = {
    types.GeneratorType: "; stream runs a generator and gives its items, num_returns takes a known number of them",
    types.CoroutineType: "; a task may run it by asyncio.run, and actors have async methods",
}


class Reference:
    """Base of what stands for a value kept elsewhere; pickling notes those that it meets."""

    __slots__ = ()
    reference_id: int


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no type information
    """Refuses what cannot come back as it was, and collects the out-of-band buffers."""

    def __init__(
        self, file: io.BytesIO, buffers: list[pickle.PickleBuffer] | None, references: list[Reference]
    ) -> None:
        super().__init__(file, protocol=5, buffer_callback=None if buffers is None else buffers.append)
        self._references = references

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Reference):
            self._references.append(obj)
            return NotImplemented
        if isinstance(obj, io.IOBase) and not isinstance(obj, (io.BytesIO, io.StringIO)):
            raise pickle.PicklingError(f"cannot pickle {type(obj).__name__!r} object: an open or closed file")
        if isinstance(obj, types.MethodType) and _is_found_by_name(obj):
            # cloudpickle sends such a function's code, without the place of its source.
            return getattr, (obj.__self__, obj.__name__)
        reduced = bulk.reduced(obj)
        if reduced is not None:
            return reduced
        return super().reducer_override(obj)


def dump(value: Any, references: list[Reference] | None = None, *, snapshot: bool = True) -> Stored:
    """Serialise a value.

    Args:
        value: any object.
        references: gets the references inside the value.
        snapshot: copy the buffers that may change later; without it they are views of the value's own memory.

    Returns:
        The serialised value.

    Raises:
        Exception: whatever the value's own serialisation raises.
    """
    file = io.BytesIO()
    found: list[pickle.PickleBuffer] = []
    _Pickler(file, found, [] if references is None else references).dump(bulk.lifted(value))
    return Stored(file.getvalue(), tuple(_flat(buffer, snapshot) for buffer in found))


def _is_found_by_name(method: types.MethodType) -> bool:
    """Say whether this is a method of a class, which a worker can import with it."""
    owner = method.__self__
    if not isinstance(owner, type) or owner.__module__ == "__main__":
        return False
    found: Any = sys.modules.get(owner.__module__)
    for name in owner.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is owner and getattr(owner, method.__name__, None) == method


def dump_bytes(value: Any) -> bytes:
    """Serialise a value into one piece of bytes; raises what its own serialisation raises."""
    file = io.BytesIO()
    _Pickler(file, None, []).dump(value)
    return file.getvalue()


def load(data: Buffer, buffers: Iterable[Buffer] = ()) -> Any:
    """Deserialise a value.

    Args:
        data: the pickle.
        buffers: its out-of-band buffers; arrays over read-only ones are read-only.

    Returns:
        The value.

    Raises:
        BaseException: whatever the value's own deserialisation raises.
    """
    return pickle.loads(data, buffers=buffers)


def read_only(buffers: Sequence[Buffer]) -> list[memoryview]:
    """Give views that nobody can write through."""
    return [memoryview(buffer).toreadonly() for buffer in buffers]


def writable(buffers: Sequence[Buffer]) -> list[Buffer]:
    """Give buffers that their receiver may write into, copied where they are shared or read-only."""
    return [buffer if _is_private(buffer) else bytearray(buffer) for buffer in buffers]


def _is_private(buffer: Buffer) -> bool:
    return not memoryview(buffer).readonly


def _flat(buffer: pickle.PickleBuffer, snapshot: bool) -> Buffer:
    raw = buffer.raw()
    if isinstance(raw.obj, bytes) and len(raw.obj) == raw.nbytes:
        return raw.obj
    return bytes(raw) if snapshot else raw


def serialization_error(
    stage: str, task: str, roots: Sequence[tuple[str, Any]], error: BaseException
) -> SerializationError:
    """Describe a failed serialisation, with the path to the object that is at fault.

    Args:
        stage: see ``SerializationError``.
        task: name of the task.
        roots: names and values of what was to be serialised.
        error: what the serialiser raised.

    Returns:
        The error to raise; its cause is not set.
    """
    for name, value in roots:
        if _fails(value):
            advice = _ADVICE.get(type(value), "") if stage == "result" else ""
            return SerializationError(stage, task, _path(name, value), _reason(error) + advice)
    return SerializationError(stage, task, " and ".join(name for name, _ in roots) or "value", _reason(error))


def _reason(error: BaseException) -> str:
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:
        text = type(error).__name__
    return text if len(text) <= _REASON_LIMIT else f"{text[:_REASON_LIMIT]}... ({len(text)} characters in all)"


def _fails(value: Any) -> bool:
    try:
        dump(value, snapshot=False)
    except Exception:
        return True
    return False


def _path(name: str, value: Any) -> str:
    try:
        return _culprit(name, value, _DEPTH_LIMIT)
    except Exception:
        # Looking for the culprit calls code of its own; whatever that raises, the error must name the root at least.
        return f"{name} ({type(value).__qualname__})"


def _culprit(path: str, value: Any, depth: int) -> str:
    if depth and not _refuses(value):
        for step, part in _parts(value):
            if _fails(part):
                return _culprit(path + step, part, depth - 1)
    return f"{path} ({type(value).__qualname__})"


def _refuses(value: Any) -> bool:
    """Say whether a class has a way of its own to be serialised, and this very object does not go that way."""
    reduce: Any = type(value).__reduce__
    if reduce is object.__reduce__:
        return False
    try:
        value.__reduce__()
    except Exception:
        return True
    return False


def _parts(value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from ((f"[{_shown(key)}]", item) for key, item in list(value.items()))
        yield from ((f" key {_shown(key)}", key) for key in list(value))
    elif isinstance(value, (list, tuple)):
        yield from ((f"[{index}]", item) for index, item in enumerate(value))
    elif isinstance(value, (set, frozenset)):
        yield from ((f" element {_shown(item)}", item) for item in value)
    yield from _members(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_LIMIT else f"{text[:_SHOWN_LIMIT]}..."


def _members(value: Any) -> Iterable[tuple[str, Any]]:
    code = getattr(value, "__code__", None)
    if code is not None:
        cells = getattr(value, "__closure__", None) or ()
        for name, cell in zip(code.co_freevars, cells, strict=False):
            yield from _part(f" variable {name!r}", cell, "cell_contents")
        names = [name for name in code.co_names if name in value.__globals__]
        yield from ((f" global {name!r}", value.__globals__[name]) for name in names)
        yield from _part(".__self__", value, "__self__")
    elif not isinstance(value, type):
        for name in ("func", "args", "keywords", "__self__", *getattr(type(value), "__slots__", ())):
            yield from _part(f".{name}", value, name)
        yield from ((f".{name}", item) for name, item in list(getattr(value, "__dict__", {}).items()))


def _part(step: str, owner: Any, name: str) -> Iterable[tuple[str, Any]]:
    try:
        part = getattr(owner, name)
    except (AttributeError, ValueError):
        return
    yield step, part

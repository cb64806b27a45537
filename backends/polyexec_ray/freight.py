"""How values and calls travel: as plain bytes where they are small, with their buffers out of band where not."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Sequence
from typing import Any

import attrs
import ray

from polyexec.spi import Call, Head, Stored

LARGE = 100 * 1024
"""Bytes from which a value goes to Ray's object store by itself; Ray's own limit for inlining."""

_FRAME = struct.Struct("<QI")


@attrs.frozen
class Parked:
    """A large outcome that waits on its worker until the driver lets Ray's object store take it.

    Attributes:
        head: the outcome's head.
    """

    head: bytes


@attrs.frozen
class Worn:
    """What a worker returns that must not be used again.

    Attributes:
        cargo: an outcome, or ``Parked``.
    """

    cargo: Any


@attrs.define(eq=False)
class Kept:
    """A value in Ray's object store; the core's handle for it.

    Attributes:
        reference: Ray's, None once the value is freed.
    """

    reference: Any


def frame(call: Call) -> bytes:
    """Give a call's id, head and pickle as one piece, the cheapest argument that Ray knows."""
    return _FRAME.pack(call.id, len(call.head)) + call.head + call.body.data


def unframe(data: bytes) -> tuple[int, bytes, bytes]:
    """Give the id, the head and the pickle of what ``frame`` made."""
    call_id, length = _FRAME.unpack_from(data)
    begin = _FRAME.size
    return call_id, data[begin : begin + length], data[begin + length :]


def load(stored: Stored, *, copy: bool = False) -> Any:
    """Give a value in the form in which Ray carries it: bytes, or a tuple with buffers that Ray does not copy.

    Args:
        stored: the value.
        copy: give the buffers as bytes, for Ray Client, which cannot carry others to the driver.
    """
    if not stored.buffers:
        return stored.data
    return stored.data, tuple(map(bytes, stored.buffers)) if copy else load_buffers(stored)


def load_buffers(stored: Stored) -> tuple[Any, ...]:
    """Give the buffers of a value in the form in which Ray carries them."""
    return tuple(pickle.PickleBuffer(buffer) for buffer in stored.buffers)


def unload(cargo: Any) -> Stored:
    """Give back what ``load`` was given; the buffers are read-only views of Ray's memory."""
    if isinstance(cargo, bytes):
        return Stored(cargo)
    data, buffers = cargo
    return Stored(data, unload_buffers(buffers))


def unload_buffers(buffers: Sequence[Any]) -> tuple[Any, ...]:
    """Give back what ``load_buffers`` was given."""
    return tuple(memoryview(buffer).cast("B") for buffer in buffers)


def head_of(outcome: Stored) -> bytes:
    """Cut the head off an outcome."""
    return outcome.data[: Head.decode(outcome.data)[1]]


def arguments(call: Call) -> list[Any]:
    """Give the arguments of the Ray call for a call; references, which Ray resolves, among them."""
    if not call.values and not call.body.buffers and call.body_handle is None:
        return [frame(call)]
    values = [load(value.stored) if value.stored is not None else reference_of(value.handle) for value in call.values]
    body = load_buffers(call.body) if call.body_handle is None else reference_of(call.body_handle)
    return [frame(call), body, *values]


def body_of(data: bytes, rest: Any) -> Stored:
    """Give the body of a call from its two first arguments.

    Args:
        data: its pickle; empty if Ray has kept all of the body.
        rest: its buffers, or all of it.
    """
    return Stored(data, unload_buffers(rest)) if data else unload(rest)


def is_somewhere(reference: Any) -> bool:
    """Tell whether a value lies in Ray's object store on some node. Blocks; not for Ray Client.

    Ray calls an object ready also if its maker has died or failed; but then it is nowhere.
    """
    return bool(ray.experimental.get_object_locations([reference])[reference]["node_ids"])


def lost_of(call: Call, name: str) -> list[Kept]:
    """Give what a call needs, of what Ray keeps, that is lost. Blocks; not for Ray Client.

    Args:
        call: the call.
        name: what Ray calls the one that it has missed.
    """
    handles = [call.body_handle, *(value.handle for value in call.values if value.stored is None)]
    kept = [handle for handle in handles if isinstance(handle, Kept)]
    return [handle for handle in kept if _is_lost(handle.reference, name)]


def _is_lost(reference: Any, name: str) -> bool:
    return reference is None or reference.hex() == name or not is_somewhere(reference)


def reference_of(handle: object) -> Any:
    """Give Ray's reference to a value that Ray keeps."""
    if not isinstance(handle, Kept):
        raise TypeError(f"{handle!r} is not a handle of this backend")
    return handle.reference

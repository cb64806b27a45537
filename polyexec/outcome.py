"""Encoding how a task ended, on the worker, and decoding it where somebody asks for it."""

from __future__ import annotations

import contextlib
import itertools
import traceback
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import attrs

from polyexec import payload
from polyexec.errors import (
    PolyexecError,
    RemoteError,
    RemoteTraceback,
    SerializationError,
    TaskCancelled,
)
from polyexec.payload import Reference
from polyexec.stored import VALUE_MARK, VALUE_SECONDS, Buffer, Flag, Head, Stored, Tag, process_id

CHAIN_LIMIT = 16
FRAME_LIMIT = 200
MESSAGE_LIMIT = 64 * 1024
TRACEBACK_LIMIT = 256 * 1024
_OWN_FRAMES = ("polyexec.envelope", "polyexec.chunks", "polyexec.actor_host", "polyexec.actor_methods")
_PICKLE_LIMIT = 1024 * 1024


@attrs.frozen
class _Link:
    """One exception of a chain of causes, in up to three forms: the best that works at the other end is used."""

    type_name: str
    message: str
    whole: bytes | None
    parts: bytes | None
    notes: tuple[str, ...]


def encode_value(
    task: str, value: Any, *, duration: float = 0.0, snapshot: bool = False, stage: str = "result"
) -> Stored:
    """Encode a value.

    Args:
        task: name of the task, for errors.
        value: what it returned, or what was put.
        duration: seconds that the body ran.
        snapshot: copy buffers that may change.
        stage: for errors.

    Returns:
        The outcome.

    Raises:
        SerializationError: the value cannot be serialised; names the culprit.
    """
    references: list[Reference] = []
    try:
        stored = payload.dump(value, references, snapshot=snapshot)
    except Exception as error:
        raise payload.serialization_error(stage, task, [(stage, value)], error) from error
    ids = tuple(reference.reference_id for reference in references)
    head = Head(Tag.VALUE, duration=duration, references=ids, pid=process_id(), size=stored.nbytes)
    return Stored(head.encode() + stored.data, stored.buffers)


def encode_error(
    error: BaseException, *, tag: Tag = Tag.ERROR, flags: Flag = Flag.NONE, duration: float = 0.0
) -> Stored:
    """Encode an exception with its causes, notes and traceback, each capped.

    Args:
        error: what was raised.
        tag: ``ERROR``, ``CANCELLED`` or ``BROKEN``.
        flags: for the driver.
        duration: seconds that the body ran.

    Returns:
        The outcome.
    """
    chain = _chain(error)
    links = tuple(attrs.astuple(_link(link), recurse=False) for link in chain)
    head = Head(tag, flags, duration, summary=f"{links[0][0]}: {links[0][1]}"[:300], pid=process_id())
    body = payload.dump((links, _traceback_text(chain)))
    return Stored(head.encode() + body.data, body.buffers)


def decode(stored: Stored, task: str, *, stage: str = "result-load", buffers: Sequence[Buffer] | None = None) -> Any:
    """Give the value of an outcome, or raise its error.

    Args:
        stored: the outcome.
        task: name of the task, for errors.
        stage: for errors.
        buffers: to use instead of read-only views of the outcome's own.

    Returns:
        The value.

    Raises:
        BaseException: the error that the outcome holds.
        SerializationError: the value cannot be deserialised.
    """
    if stored.data.startswith(VALUE_MARK):
        offset = VALUE_SECONDS.size
    else:
        head, offset = Head.decode(stored.data)
        if head.tag != Tag.VALUE:
            raise decode_error(stored)
    body = memoryview(stored.data)[offset:]
    try:
        return payload.load(body, payload.read_only(stored.buffers) if buffers is None else buffers)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        reason = capped(f"{type(error).__name__}: {text_of(error)}", MESSAGE_LIMIT)
        raise SerializationError(stage, task, "the value", reason) from error


def decode_error(stored: Stored) -> BaseException:
    """Rebuild the exception of an outcome, with its causes and its remote traceback."""
    _, offset = Head.decode(stored.data)
    links, text = payload.load(memoryview(stored.data)[offset:], stored.buffers)
    errors = [_rebuild(_Link(*link), text) for link in links]
    for error, cause in itertools.pairwise(errors):
        _set_cause(error, cause)
    if text and errors[-1].__cause__ is None:
        _set_cause(errors[-1], RemoteTraceback(text))
    return errors[0]


def _set_cause(error: BaseException, cause: BaseException) -> None:
    # Some exceptions, frozen data classes among them, refuse to have attributes set.
    object.__setattr__(error, "__cause__", cause)


def cancelled(task: str, reason: str = "") -> Stored:
    """Encode that a task was cancelled."""
    return encode_error(TaskCancelled(task, reason), tag=Tag.CANCELLED)


def capped(text: str, limit: int) -> str:
    """Cut a text, and say how much was left out."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]}... ({len(text) - limit} bytes omitted)"


def _chain(error: BaseException) -> list[BaseException]:
    chain = [error]
    while len(chain) < CHAIN_LIMIT:
        following = chain[-1].__cause__
        if following is None or any(following is link for link in chain):
            break
        chain.append(following)
    return chain


def _link(error: BaseException) -> _Link:
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    noted = getattr(error, "__notes__", ())
    found = noted if isinstance(noted, (list, tuple)) else ()
    notes = tuple(capped(note, MESSAGE_LIMIT) for note in found if isinstance(note, str))
    message = capped(text_of(error), MESSAGE_LIMIT)
    if not isinstance(error, Exception):
        return _Link(name, message, None, None, notes)
    whole = _attempt(_whole, error)
    return _Link(name, message, whole, None if whole else _attempt(_parts, error), notes)


def text_of(error: BaseException) -> str:
    """Give an exception's text, even if its ``__str__`` raises."""
    try:
        return str(error)
    except BaseException as failure:
        return f"<its __str__ raised {type(failure).__name__}>"


def _attempt(encode: Any, error: BaseException) -> bytes | None:
    try:
        data: bytes | None = encode(error)
    except BaseException:
        # Whatever a task's own exception does while it is pickled, the next, simpler form is tried.
        return None
    return data


def _whole(error: BaseException) -> bytes | None:
    data = payload.dump_bytes(error) if _is_small(error) else b""
    if not 0 < len(data) <= _PICKLE_LIMIT:
        return None
    copy = payload.load(data)
    return data if type(copy) is type(error) and _same(copy.args, error.args) else None


def _same(copied: tuple[Any, ...], original: tuple[Any, ...]) -> bool:
    with contextlib.suppress(Exception):  # some values, arrays among them, do not compare to a single truth
        if bool(copied == original):
            return True
    return payload.dump_bytes(copied) == payload.dump_bytes(original)


def _is_small(error: BaseException) -> bool:
    values = [*error.args, *getattr(error, "__dict__", {}).values()]
    return all(len(value) <= MESSAGE_LIMIT for value in values if isinstance(value, (str, bytes, bytearray)))


def _parts(error: BaseException) -> bytes | None:
    state = {name: _shortened(value) for name, value in getattr(error, "__dict__", {}).items()}
    args = tuple(_shortened(value) for value in error.args)
    data = payload.dump_bytes((type(error), args, state))
    if len(data) > _PICKLE_LIMIT:
        return None
    _from_parts(data)
    return data


def _shortened(value: Any) -> Any:
    if isinstance(value, str):
        return capped(value, MESSAGE_LIMIT)
    if isinstance(value, (bytes, bytearray)) and len(value) > MESSAGE_LIMIT:
        return bytes(value[:MESSAGE_LIMIT]) + f"... ({len(value) - MESSAGE_LIMIT} bytes omitted)".encode()
    return value


def _from_parts(data: bytes) -> BaseException:
    kind, args, state = payload.load(data)
    error: BaseException = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


def _rebuild(link: _Link, text: str) -> BaseException:
    for data, build in ((link.whole, payload.load), (link.parts, _from_parts)):
        if data is None:
            continue
        try:
            error = build(data)
        except KeyboardInterrupt:
            raise
        except BaseException:
            # The type does not exist here, or does not want to be built: the plain form always works.
            continue
        if isinstance(error, Exception):
            return error
    remote = RemoteError(link.type_name, link.message, text)
    for note in link.notes:
        remote.add_note(note)
    return remote


def _traceback_text(chain: Sequence[BaseException]) -> str:
    if isinstance(chain[0], PolyexecError) and chain[0].__traceback__ is None and len(chain) == 1:
        return ""
    separator = "\nThe above exception was the direct cause of the following exception:\n\n"
    parts = [_one_traceback(error) for error in reversed(chain)]
    if len(chain) == CHAIN_LIMIT and chain[-1].__cause__ is not None:
        parts.insert(0, f"({_further_causes(chain[-1])} further causes omitted)\n")
    return capped(separator.join(parts), TRACEBACK_LIMIT)


def _further_causes(error: BaseException) -> str:
    count, seen = 0, {id(error)}
    while (cause := error.__cause__) is not None and id(cause) not in seen:
        seen.add(id(cause))
        error, count = cause, count + 1
    return str(count)


def _one_traceback(error: BaseException) -> str:
    frames = list(traceback.walk_tb(_user_part(error.__traceback__)))
    stack = traceback.StackSummary.extract(iter(frames[: FRAME_LIMIT // 2]), lookup_lines=False)
    if len(frames) > FRAME_LIMIT:
        rest = traceback.StackSummary.extract(iter(frames[-FRAME_LIMIT // 2 :]), lookup_lines=False)
        middle = [f"  ... ({len(frames) - FRAME_LIMIT} frames omitted)\n"]
    else:
        rest = traceback.StackSummary.extract(iter(frames[FRAME_LIMIT // 2 :]), lookup_lines=False)
        middle = []
    name = type(error).__qualname__
    last = f"{name}: {capped(text_of(error), MESSAGE_LIMIT)}\n"
    return "".join(["Traceback (most recent call last):\n", *stack.format(), *middle, *rest.format(), last])


def _user_part(trace: TracebackType | None) -> TracebackType | None:
    own = trace
    while own is not None and own.tb_frame.f_globals.get("__name__") in _OWN_FRAMES:
        own = own.tb_next
    return own if own is not None else trace

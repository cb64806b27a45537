"""Plain calls: those with default options and small, simple arguments, which take a short way to a worker.

A plain call means the same as any other. What makes it quick is what it does not have: dependencies, Futures inside
its arguments, options that somebody must watch. Whenever something unusual happens to it, such as a cancel, a request
of its own or the death of its worker, the core turns it into an ordinary task.

``FunctionTable`` may be used from any thread: its dict is changed by atomic operations only, and two threads that meet
a function for the first time may both describe it.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import count
from opcode import opmap
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any

import cloudpickle

from polyexec import payload
from polyexec.payload import Reference

if TYPE_CHECKING:
    from polyexec.session import Entry

ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes})
"""Types whose values are pickled the same way by everybody, hold nothing else, and cannot change."""

SIZE_LIMIT = 64 * 1024
"""Bytes of arguments from which on a call takes the usual way."""

_TABLE_LIMIT = 4096
_SIZED = frozenset({str, bytes})


class PlainFunction:
    """A function that workers keep once they have it.

    Attributes:
        key: identifies it; 0 for what comes with each call's own arguments.
        data: the pickled function; empty if the key is 0.
        name: of the tasks.
        seconds: estimate of how long a call takes, None as long as nothing is known.
    """

    __slots__ = ("data", "key", "name", "seconds")

    def __init__(self, key: int, data: bytes, name: str) -> None:
        self.key = key
        self.data = data
        self.name = name
        self.seconds: float | None = None


class PlainCall:
    """One plain call.

    Attributes:
        id: unique in its executor; that of its value.
        function: what to call.
        data: pickled arguments and keyword arguments; with the function before them if that has no key.
        entry: its value.
        submitted: when it was made, by the monotonic clock; 0.0 if no record is made of it.
        seat: where it has been handed to, 0 if nowhere.
        cost: seconds that it counts there.
        dropped: it is not waiting any more, wherever it is found.
    """

    __slots__ = ("cost", "data", "dropped", "entry", "function", "id", "seat", "submitted")

    def __init__(self, entry: Entry, function: PlainFunction, data: bytes, submitted: float = 0.0) -> None:
        self.id = entry.id
        self.entry = entry
        self.function = function
        self.data = data
        self.submitted = submitted
        self.seat = 0
        self.cost = 0.0
        self.dropped = False


class FunctionTable:
    """Describes functions, and remembers those that can be sent once."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, str | None], _Known] = {}
        self._by_data: dict[tuple[bytes, str], PlainFunction] = {}
        self._keys = count(1)

    def find(self, function: Callable[..., Any], name: str | None) -> PlainFunction | None:
        """Give the description of a function that workers may keep.

        Args:
            function: what to call.
            name: of the task, None for the function's own.

        Returns:
            The description, or None if the function must be pickled for each call, because it has state of its own or
            refers to what may change.
        """
        known = self._known.get((id(function), name))
        if known is not None and known.holds(function):
            return known.plain
        if type(function) is not FunctionType or not (_namespace(function) is not None or _is_stateless(function)):
            return None
        plain = self._describe(payload.dump_bytes(function), name or function.__name__)
        self._known[id(function), name] = _Known(function, plain)
        return plain

    def _describe(self, data: bytes, name: str) -> PlainFunction:
        """Give one description to all functions that are pickled alike, such as a lambda that is made in a loop."""
        if len(self._known) >= _TABLE_LIMIT:
            self._known.clear()
            self._by_data.clear()
        key = next(self._keys) if data else 0
        return self._by_data.setdefault((data, name), PlainFunction(key, data, name))

    def unnamed(self, name: str) -> PlainFunction:
        """Give the description that stands for all functions of a name that are pickled with their calls."""
        return self._describe(b"", name)


class _Known:
    """What a description rests on; kept with the function itself, so that no other gets its id."""

    __slots__ = ("code", "function", "namespace", "plain")

    def __init__(self, function: FunctionType, plain: PlainFunction) -> None:
        self.function = function
        self.code = function.__code__
        self.namespace = _namespace(function)
        self.plain = plain

    def holds(self, function: Callable[..., Any]) -> bool:
        if function is not self.function:
            return False
        if self.namespace is None:
            return _is_stateless(self.function, self.code)
        return not _by_value and self.namespace.get(self.function.__qualname__) is function


_by_value: Collection[str] = getattr(cloudpickle.cloudpickle, "_PICKLE_BY_VALUE_MODULES", ("unknown",))
"""Modules whose functions, and those of whose submodules, travel as their code; the set itself, which may change."""


def _namespace(function: FunctionType) -> Mapping[str, Any] | None:
    """Give the namespace of the module if a pickle of the function is no more than where to import it from."""
    name = function.__module__
    module = None if name is None or name == "__main__" or _by_value else sys.modules.get(name)
    if module is None or module.__dict__.get(function.__qualname__) is not function:
        return None
    return module.__dict__


def _is_stateless(function: FunctionType, code: CodeType | None = None) -> bool:
    """Say whether the function is nothing but its code, so that every copy of it behaves the same for ever."""
    if code is not None and function.__code__ is not code:
        return False
    if function.__closure__ or function.__defaults__ or function.__kwdefaults__ or function.__dict__:
        return False
    if function.__annotations__ or (code is None and _writes_globals(function.__code__)):
        return False
    return _refers_to_nothing(function.__code__, function.__globals__)


_WRITING = {opmap[name] for name in ("STORE_GLOBAL", "DELETE_GLOBAL")}


def _writes_globals(code: CodeType) -> bool:
    if not _WRITING.isdisjoint(code.co_code[::2]):
        return True
    return any(type(constant) is CodeType and _writes_globals(constant) for constant in code.co_consts)


def _refers_to_nothing(code: CodeType, known: Mapping[str, Any]) -> bool:
    for name in code.co_names:
        if name in known:
            return False
    for constant in code.co_consts:
        if type(constant) is CodeType and not _refers_to_nothing(constant, known):
            return False
    return True


def is_small_atom(value: Any) -> bool:
    """Say whether a value is so simple that any pickler will do."""
    kind = type(value)
    return kind in ATOMS and not (kind in _SIZED and len(value) > SIZE_LIMIT)


def dump_arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes | None:
    """Pickle the arguments of a plain call.

    Args:
        args: positional arguments.
        kwargs: keyword arguments.

    Returns:
        The pickle, or None if these arguments need the usual way.

    Raises:
        Exception: whatever their own serialisation raises.
    """
    for value in (*args, *kwargs.values()) if kwargs else args:
        kind = type(value)
        if kind not in ATOMS:
            return _dumped((args, kwargs))
        if kind in _SIZED and len(value) > SIZE_LIMIT:
            return None
    data = pickle.dumps((args, kwargs), 5)
    return data if len(data) <= SIZE_LIMIT else None


def dump_call(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes | None:
    """Pickle a function with the arguments of a plain call; see ``dump_arguments``."""
    return _dumped((function, args, kwargs))


def _dumped(value: Any) -> bytes | None:
    references: list[Reference] = []
    stored = payload.dump(value, references, snapshot=False)
    if references or stored.buffers or len(stored.data) > SIZE_LIMIT:
        return None
    return stored.data


class _Joined:
    """Comes out of its pickle as what the two pickles in it hold: a function, and its arguments."""

    def __init__(self, function: bytes, arguments: bytes) -> None:
        self._parts = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return _join, self._parts


def _join(function: bytes, arguments: bytes) -> tuple[Any, ...]:
    return pickle.loads(function), *pickle.loads(arguments)


def joined(call: PlainCall) -> bytes:
    """Give function and arguments of a plain call in one pickle, as ordinary tasks have them; nothing is unpickled."""
    if not call.function.key:
        return call.data
    return pickle.dumps(_Joined(call.function.data, call.data), 5)

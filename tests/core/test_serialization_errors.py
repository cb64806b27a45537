"""S4: errors of serialisation name the argument and the path to the culprit."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import pytest

import polyexec
from polyexec import payload
from polyexec.options import DEFAULT_OPTIONS
from polyexec.prepare import prepare_task


class Holder:
    """Has an attribute that cannot be serialised."""

    def __init__(self, lock: Any) -> None:
        self.fine = [1, 2]
        self.lock = lock

    def method(self) -> None:
        """Do nothing."""


class Slotted:
    """Has it in a slot."""

    __slots__ = ("lock",)

    def __init__(self, lock: Any) -> None:
        self.lock = lock


class BadRepr:
    """Cannot be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class HostileAttributes:
    """Raises for each attribute, and cannot be serialised."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("no attributes")

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("no")


def closure() -> Any:
    """Give a function that has captured a lock."""
    lock = threading.Lock()
    return lambda: lock


def iter_nothing() -> Any:
    """Give a generator."""
    yield


def prepare(function: Any, *args: Any, **kwargs: Any) -> None:
    prepare_task("here", function, args, kwargs, DEFAULT_OPTIONS, snapshot=True, keep_hook=True)


CASES: dict[str, Callable[[], tuple[Any, ...]]] = {
    "argument 0 (lock)": lambda: (print, threading.Lock()),
    "argument 1[2] (lock)": lambda: (print, 0, [0, 1, threading.Lock()]),
    "argument 0['a'][1].lock (lock)": lambda: (print, {"a": (0, Holder(threading.Lock()))}),
    "argument 0.lock (lock)": lambda: (print, Slotted(threading.Lock())),
    "argument 0 variable 'lock' (lock)": lambda: (print, closure()),
    "the function variable 'lock' (lock)": lambda: (closure(),),
    "the function.args[0] (lock)": lambda: (functools.partial(print, threading.Lock()),),
    "the function.__self__.lock (lock)": lambda: (Holder(threading.Lock()).method,),
}


@pytest.mark.parametrize("culprit", CASES)
def test_the_path_to_the_culprit(culprit: str) -> None:
    """S4."""
    with pytest.raises(polyexec.SerializationError) as caught:
        prepare(*CASES[culprit]())
    assert caught.value.culprit == culprit
    assert caught.value.stage == "argument"
    assert caught.value.__cause__ is not None


def test_a_keyword_argument() -> None:
    """S4."""
    with pytest.raises(polyexec.SerializationError, match=r"argument 'key'\[0\] \(generator\)"):
        prepare(print, key=[iter_nothing()])


def test_an_open_file(tmp_path: Any) -> None:
    """S4: it would come back as something else, so that it is refused."""
    with open(tmp_path / "file", "w") as file, pytest.raises(polyexec.SerializationError, match="argument 0"):
        prepare(print, file)


def test_a_path_is_not_followed_for_ever() -> None:
    """S4, F12: a structure that contains itself, and one that is deep."""
    loop: list[Any] = [threading.Lock()]
    loop.insert(0, loop)
    deep: Any = threading.Lock()
    for _ in range(100):
        deep = [deep]
    for value in (loop, deep):
        with pytest.raises(polyexec.SerializationError, match=r"argument 0\[0\]"):
            prepare(print, value)


@pytest.mark.parametrize(
    "value", [{BadRepr(): threading.Lock()}, [HostileAttributes()], {threading.Lock(), 1}, {threading.Lock(): 1}]
)
def test_culprits_that_cannot_be_shown(value: Any) -> None:
    """S4, F12: the error is the same kind, and names the argument at least."""
    with pytest.raises(polyexec.SerializationError, match="argument 0"):
        prepare(print, value)


def test_a_key_with_a_long_text() -> None:
    """F12: the path is capped."""
    with pytest.raises(polyexec.SerializationError) as caught:
        prepare(print, {"x" * 10**6: threading.Lock()})
    assert len(str(caught.value)) < 10_000


def test_a_reason_with_a_long_text() -> None:
    """F12."""
    error = payload.serialization_error("result", "task", [("result", 1)], ValueError("x" * 10**7))
    assert len(str(error)) < 2000
    assert "10000012 characters in all" in str(error)


def test_options_that_cannot_be_serialised() -> None:
    """S4: from a task a retry hook must travel."""

    def hook(*_: Any) -> None:
        closure_lock.acquire()

    closure_lock = threading.Lock()
    options = DEFAULT_OPTIONS.evolve(retry=hook, retries=1)
    with pytest.raises(polyexec.SerializationError, match="option 'retry'"):
        prepare_task("here", print, (), {}, options, snapshot=True, keep_hook=False)

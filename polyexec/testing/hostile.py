"""Values and exceptions that misbehave on their way from process to process."""

from __future__ import annotations

import os
import signal
import sys
import threading
import types
from typing import Any, ClassVar

from polyexec.testing.bodies import crash_in_c
from polyexec.testing.tools import TASK_LIMIT, Gate, Marks


class BadText(Exception):
    """Raises from ``__str__`` and ``__repr__``."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class BadReduce(Exception):
    """Raises when it is serialised."""

    def __reduce__(self) -> Any:
        raise RuntimeError("not serialised")


class BadRebuild(Exception):
    """Raises when it is rebuilt."""

    def __reduce__(self) -> Any:
        return _explode, ("rebuilding the exception",)


class WithLock(Exception):
    """Holds what cannot be serialised."""

    def __init__(self) -> None:
        super().__init__("its message")
        self.lock = threading.Lock()


class Unmakeable(Exception):
    """Cannot be made but by a function that knows how."""

    def __new__(cls, *args: Any) -> Unmakeable:
        """Refuse whoever has no key."""
        if args != (_KEY,):
            raise RuntimeError("not made")
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        super().__init__("its message")


_KEY = object()


def make(kind: type[Exception]) -> Exception:
    """Make an exception that its own way of travelling cannot make again."""
    return kind(_KEY) if kind is Unmakeable else kind()


class Bomb:
    """Raises when it is rebuilt, with the error that is called for."""

    def __init__(self, error: str = "ValueError") -> None:
        self.error = error

    def __reduce__(self) -> Any:
        return _explode, ("rebuilding the value", self.error)


def _explode(text: str, error: str = "ValueError") -> None:
    if error == "exit":
        sys.exit(9)
    raise {"ValueError": ValueError, "KeyboardInterrupt": KeyboardInterrupt}[error](text)


class Rebuilt:
    """Notes the thread in which it is rebuilt."""

    threads: ClassVar[list[int]] = []

    def __reduce__(self) -> Any:
        return _note_thread, ()


def _note_thread() -> Rebuilt:
    Rebuilt.threads.append(threading.get_ident())
    return Rebuilt()


def go_deep() -> int:
    """Call itself without end."""
    return 1 + go_deep()


def raise_chain(length: int) -> None:
    """Raise an error with so many causes."""
    error: BaseException = ValueError("innermost")
    for number in range(length):
        outer = ValueError(f"link {number}")
        outer.__cause__ = error
        error = outer
    raise error


class Killer:
    """Kills the process in which it is rebuilt, unless that is the one that made it."""

    def __reduce__(self) -> Any:
        return _kill_unless, (os.getpid(),)


def _kill_unless(maker: int) -> None:
    if os.getpid() != maker:
        os.kill(os.getpid(), signal.SIGKILL)


class TwoArguments(Exception):
    """Takes two arguments, and tells ``Exception`` about one."""

    def __init__(self, left: str, right: str) -> None:
        super().__init__(f"{left} {right}")
        self.right = right


class CrashesWhenSent(Exception):
    """Ends the process that serialises it, by a crash in C; it may be a value as well as an exception."""

    def __reduce__(self) -> Any:
        crash_in_c()


class CrashesWhenRebuilt:
    """Ends the process that rebuilds it, by a crash in C."""

    def __reduce__(self) -> Any:
        return crash_in_c, ()


class WaitsWhenSent:
    """Waits for a gate while it is serialised."""

    def __init__(self, marks: Marks, gate: Gate, size: int = 0) -> None:
        self.marks = marks
        self.gate = gate
        self.size = size

    def __reduce__(self) -> Any:
        self.marks.add(f"sending {os.getpid()}")
        self.gate.wait(TASK_LIMIT)
        return bytes, (self.size,)


class WaitsWhenRebuilt:
    """Waits for a gate while it is rebuilt."""

    def __init__(self, marks: Marks, gate: Gate) -> None:
        self.marks = marks
        self.gate = gate

    def __reduce__(self) -> Any:
        return _wait, (self.marks, self.gate)


def _wait(marks: Marks, gate: Gate) -> str:
    marks.add(f"rebuilding {os.getpid()}")
    gate.wait(TASK_LIMIT)
    return "rebuilt"


class RaisesWhenSent:
    """Raises when it is serialised."""

    def __reduce__(self) -> Any:
        raise RuntimeError("not serialised")


def of_missing_module() -> Any:
    """Give an object whose module is in this process alone, although it looks as if it could be imported."""
    module = types.ModuleType("polyexec_no_such_module")
    kind = type("Thing", (), {"__module__": module.__name__})
    module.Thing = kind  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    return kind()

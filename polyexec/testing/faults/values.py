"""Rows of exceptions, arguments and results that misbehave on their way."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import polyexec
from polyexec.testing import hostile
from polyexec.testing.faults import bodies
from polyexec.testing.faults.model import ALWAYS, COPIES, IN_PROCESS, PROCESSES, Case, Row
from polyexec.testing.faults.trial import Trial
from polyexec.testing.tools import PATIENCE

_CAP = 2_000_000
"""Characters that the text of an error may have at most, whatever the task has raised."""


def _arrives(trial: Trial, body: Callable[..., Any], arguments: tuple[Any, ...], name: str, text: str) -> None:
    """The exception arrives, or ``RemoteError`` that tells its type and text, capped."""
    error = trial.strike(body, trial.marks, *arguments)
    assert error is not None
    kind = error.type_name if isinstance(error, polyexec.RemoteError) else type(error).__name__
    assert name in kind, repr(error)
    assert text in _text(error), _text(error)[:1000]
    assert len(repr(error)) < _CAP, f"the error has {len(repr(error))} characters"


def _text(error: BaseException) -> str:
    return error.message if isinstance(error, polyexec.RemoteError) else str(error)


def raise_made(marks: Any, kind: type[Exception]) -> None:
    """Raise an exception that is made here."""
    bodies.begin(marks)
    raise hostile.make(kind)


def raise_two(marks: Any) -> None:
    """Raise one that takes two arguments."""
    bodies.begin(marks)
    raise hostile.TwoArguments("its", "message")


def raise_text(marks: Any, kind: type[Exception]) -> None:
    """Raise one with a message."""
    bodies.begin(marks)
    raise kind("its message")


def raise_huge(marks: Any, size: int) -> None:
    """Raise one with a huge message."""
    message = "begin" + "x" * size
    bodies.begin(marks)
    raise ValueError(message)


def raise_many(marks: Any, length: int) -> None:
    """Raise one with many causes."""
    bodies.begin(marks)
    hostile.raise_chain(length)


def raise_without_text(marks: Any) -> None:
    """Raise one whose text cannot be had."""
    bodies.begin(marks)
    raise hostile.BadText


def _has_no_text(trial: Trial) -> None:
    error = trial.strike(raise_without_text, trial.marks)
    kind = error.type_name if isinstance(error, polyexec.RemoteError) else type(error).__name__
    assert "BadText" in kind


def raise_deadly(marks: Any) -> None:
    """Raise one that crashes whoever serialises it."""
    bodies.begin(marks)
    raise hostile.CrashesWhenSent


def _dies(trial: Trial, body: Callable[..., Any], *arguments: Any, starts: int | None = 1) -> None:
    error = trial.strike(body, *arguments, starts=starts)
    assert type(error) is polyexec.WorkerDied, repr(error)
    assert (error.task, error.signal) == ("victim", signal.SIGSEGV), repr(error)


def _dies_marking(trial: Trial, body: Callable[..., Any]) -> None:
    _dies(trial, body, trial.marks)


def _refused(trial: Trial, make: Callable[[], Any], path: str) -> None:
    """``submit`` itself refuses what cannot be serialised, and says where the culprit is."""
    others = trial.bystanders()
    begun = time.monotonic()
    submit = trial.ex.options(name="victim").submit
    error = trial.raises(polyexec.SerializationError, lambda: submit(bodies.fail, trial.marks, make()))
    assert (error.stage, error.task) == ("argument", "victim"), repr(error)
    assert path in str(error), str(error)
    trial.injected(begun)
    others.queue()
    others.check()
    trial.starts(0)
    trial.usable()


def _function_refused(trial: Trial) -> None:
    lock = threading.Lock()

    def body() -> bool:
        return lock.locked()

    begun = time.monotonic()
    error = trial.raises(polyexec.SerializationError, lambda: trial.ex.submit(body))
    assert "lock" in str(error), str(error)
    trial.injected(begun)
    trial.usable()


def _not_rebuilt(trial: Trial, argument: Any, text: str) -> None:
    """An argument that cannot be rebuilt fails its task, which never starts."""
    error = trial.strike(bodies.fail, trial.marks, argument, starts=0)
    assert isinstance(error, polyexec.SerializationError | polyexec.RemoteError), repr(error)
    if isinstance(error, polyexec.SerializationError):
        assert (error.stage, error.task) == ("argument-load", "victim"), repr(error)
    assert text in str(error), str(error)


def take(marks: Any, *values: Any) -> str:
    """Mark the start, whatever the arguments are."""
    bodies.begin(marks)
    return "taken"


def _missing_module(trial: Trial) -> None:
    """Where tasks have processes of their own the module is missing there; else it is the caller's."""
    error = trial.strike(take, trial.marks, hostile.of_missing_module(), starts=None)
    if not trial.target.capabilities.processes:
        assert error is None, repr(error)
        return
    trial.starts(0)
    assert isinstance(error, polyexec.SerializationError), repr(error)
    assert error.stage == "argument-load"
    assert "polyexec_no_such_module" in str(error), str(error)


def _hangs_when_rebuilt(trial: Trial) -> None:
    """An argument whose rebuilding does not end is ended by the time limit of its task."""
    gate = trial.gate("rebuild")
    argument = hostile.WaitsWhenRebuilt(trial.marks, gate)
    error = trial.strike(take, trial.marks, argument, starts=0, timeout=1.0)
    assert isinstance(error, polyexec.TaskTimeout), repr(error)


def _cancelled_when_rebuilt(trial: Trial) -> None:
    """So does force."""
    others = trial.bystanders()
    victim = trial.ex.submit(take, trial.marks, hostile.WaitsWhenRebuilt(trial.marks, trial.gate("rebuild")))
    others.queue()
    trial.marks.wait_for("rebuilding")
    begun = time.monotonic()
    assert trial.ex.cancel(victim, force=True) is True
    assert isinstance(trial.error(victim), polyexec.TaskCancelled)
    trial.injected(begun)
    others.check()
    trial.starts(0)
    trial.usable()


def make_lock(marks: Any) -> Any:
    """Return what cannot be serialised."""
    bodies.begin(marks)
    return {"key": [threading.Lock()]}


def make_raising(marks: Any) -> Any:
    """Return what raises when it is serialised."""
    bodies.begin(marks)
    return hostile.RaisesWhenSent()


def make_deadly(marks: Any) -> Any:
    """Return what crashes whoever serialises it."""
    bodies.begin(marks)
    return hostile.CrashesWhenSent()


def make_waiting(marks: Any, gate: Any) -> Any:
    """Return what waits when it is serialised."""
    bodies.begin(marks)
    return hostile.WaitsWhenSent(marks, gate)


def make_bomb(marks: Any, error: str) -> Any:
    """Return what raises when it is rebuilt."""
    bodies.begin(marks)
    return hostile.Bomb(error)


def make_of_missing_module(marks: Any) -> Any:
    """Return an object of a module that is in this process alone."""
    bodies.begin(marks)
    return hostile.of_missing_module()


def make_mine(marks: Any) -> Any:
    """Return what ends the process that rebuilds it."""
    bodies.begin(marks)
    return hostile.CrashesWhenRebuilt()


def _not_sent(trial: Trial, body: Callable[..., Any], text: str) -> None:
    error = trial.strike(body, trial.marks)
    assert isinstance(error, polyexec.SerializationError), repr(error)
    assert (error.stage, error.task) == ("result", "victim"), repr(error)
    assert text in str(error), str(error)


def _hangs_when_sent(trial: Trial) -> None:
    error = trial.strike(make_waiting, trial.marks, trial.gate("send"), timeout=1.0)
    assert isinstance(error, polyexec.TaskTimeout), repr(error)


def _result_not_rebuilt(trial: Trial, body: Callable[..., Any], *arguments: Any, text: str) -> None:
    """``result`` raises the same each time, and only there."""
    others = trial.bystanders()
    begun = time.monotonic()
    victim = trial.ex.options(name="victim").submit(body, trial.marks, *arguments)
    others.queue()
    done, _ = trial.ex.wait([victim], timeout=PATIENCE)
    assert done == [victim]
    for _ in range(2):
        error = trial.raises(polyexec.SerializationError, lambda: victim.result(PATIENCE))
        assert (error.stage, error.task) == ("result-load", "victim"), repr(error)
        assert text in str(error), str(error)
    trial.injected(begun)
    others.check()
    trial.starts(1, 1)
    trial.usable()


def _result_of_missing_module(trial: Trial) -> None:
    if trial.target.capabilities.processes:
        _result_not_rebuilt(trial, make_of_missing_module, text="polyexec_no_such_module")
    else:
        assert trial.strike(make_of_missing_module, trial.marks) is None


def _rebuilt_here(trial: Trial) -> None:
    """The caller asks for what ends the process that rebuilds it."""
    victim = trial.ex.submit(make_mine, trial.marks)
    trial.ex.wait([victim], timeout=PATIENCE)
    trial.injected()
    victim.result(PATIENCE)


def _exception(name: str, body: Callable[..., Any], *arguments: Any, kind: str, text: str) -> Case:
    return Case(name, partial(_arrives, body=body, arguments=arguments, name=kind, text=text))


def _fatal(name: str, do: Callable[[Trial], str | None], *needs: Any) -> Case:
    return Case(name, do, needs=needs, dies=IN_PROCESS, ending=-signal.SIGSEGV)


def _argument_crashes(trial: Trial) -> None:
    _dies(trial, take, trial.marks, hostile.CrashesWhenRebuilt(), starts=0)


_F12 = ("F12",)

ROWS = (
    Row(
        "F07",
        "A task raises an exception that does not travel well",
        "the exception, or `RemoteError` with its type's name and its text; the text is capped",
        ("F1", "F2", "F12"),
        (
            _exception("`__init__` takes two arguments", raise_two, kind="TwoArguments", text="its message"),
            _exception("holds a lock", raise_made, hostile.WithLock, kind="WithLock", text="its message"),
            _exception("`__reduce__` raises", raise_text, hostile.BadReduce, kind="BadReduce", text="its message"),
            _exception("rebuilding raises", raise_text, hostile.BadRebuild, kind="BadRebuild", text="its message"),
            _exception("`__new__` refuses", raise_made, hostile.Unmakeable, kind="Unmakeable", text="its message"),
            Case("`__str__` raises", _has_no_text),
            _exception("a message of 200 MB", raise_huge, 200_000_000, kind="ValueError", text="omitted"),
            _exception("5,000 causes", raise_many, 5000, kind="ValueError", text="link 4999"),
            _fatal("`__reduce__` crashes in C", partial(_dies_marking, body=raise_deadly), COPIES),
        ),
        3.0,
    ),
    Row(
        "F08",
        "An argument that cannot be serialised",
        "`SerializationError` from `submit`, with the path to the culprit",
        ("S4",),
        (
            Case(
                "a lock in a dictionary",
                partial(_refused, make=lambda: {"a": [threading.Lock()]}, path="['a'][0]"),
                (COPIES,),
            ),
            Case(
                "a generator",
                partial(_refused, make=lambda: (number for number in range(3)), path="generator"),
                (COPIES,),
            ),
            Case(
                "`__reduce__` raises", partial(_refused, make=hostile.RaisesWhenSent, path="RaisesWhenSent"), (COPIES,)
            ),
            Case("a function that holds a lock", _function_refused, (COPIES,)),
        ),
        1.0,
    ),
    Row(
        "F09",
        "An argument that cannot be rebuilt",
        "`SerializationError` with the stage, `WorkerDied` where it ends the process; its task never starts",
        _F12,
        (
            Case("raises", partial(_not_rebuilt, argument=hostile.Bomb(), text="rebuilding the value"), (COPIES,)),
            Case(
                "calls `sys.exit`",
                partial(_not_rebuilt, argument=hostile.Bomb("exit"), text="SystemExit: 9"),
                (COPIES,),
            ),
            Case(
                "raises KeyboardInterrupt",
                partial(_not_rebuilt, argument=hostile.Bomb("KeyboardInterrupt"), text="rebuilding"),
                (COPIES,),
            ),
            _fatal("crashes in C", _argument_crashes, COPIES),
            Case("is of a module that workers do not have", _missing_module, (COPIES,)),
            Case("hangs, with a timeout of 1 s", _hangs_when_rebuilt, (COPIES, PROCESSES)),
            Case("hangs, and its task is cancelled by force", _cancelled_when_rebuilt, (COPIES, PROCESSES)),
        ),
        5.0,
    ),
    Row(
        "F10",
        "A result that cannot be serialised, or not rebuilt",
        "`SerializationError` with the stage, the same each time; `WorkerDied` where it ends the process",
        ("F7", "F12"),
        (
            Case("a lock in a dictionary", partial(_not_sent, body=make_lock, text="lock"), (COPIES,)),
            Case("`__reduce__` raises", partial(_not_sent, body=make_raising, text="RaisesWhenSent"), (COPIES,)),
            _fatal("`__reduce__` crashes in C", partial(_dies_marking, body=make_deadly), COPIES),
            Case("`__reduce__` hangs, with a timeout of 1 s", _hangs_when_sent, (COPIES, PROCESSES)),
            Case(
                "rebuilding raises",
                lambda trial: _result_not_rebuilt(trial, make_bomb, "ValueError", text="rebuilding"),
                (COPIES,),
            ),
            Case(
                "rebuilding calls `sys.exit`",
                lambda trial: _result_not_rebuilt(trial, make_bomb, "exit", text="SystemExit: 9"),
                (COPIES,),
            ),
            Case("is of a module that the driver does not have", _result_of_missing_module),
        ),
        2.0,
    ),
    Row(
        "F11",
        "A result that ends the process in which it is rebuilt",
        "that is the driver: nobody else can rebuild it; the driver leaves nothing",
        ("F8", "F12"),
        (Case("crashes in C", _rebuilt_here, (COPIES,), dies=ALWAYS, ending=-signal.SIGSEGV),),
        5.0,
    ),
)

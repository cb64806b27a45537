"""Rows of tasks that use executors, and of processes that fork."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import polyexec
from polyexec import Executor
from polyexec.testing import bodies
from polyexec.testing.drivers import Driver
from polyexec.testing.faults import bodies as faults
from polyexec.testing.faults.model import PROCESSES, Case, Row
from polyexec.testing.faults.trial import Trial
from polyexec.testing.tools import TASK_LIMIT, Gate, Marks


def _goes_down(trial: Trial) -> None:
    with trial.opened(workers=1) as ex:
        begun = time.monotonic()
        assert trial.value(ex.submit(bodies.descend, 3)) == 3
        trial.injected(begun)


def _spreads_out(trial: Trial) -> None:
    begun = time.monotonic()
    assert trial.value(trial.ex.submit(bodies.spread_out, 50)) == sum(range(50))
    trial.injected(begun)
    trial.usable()


def _sees_child_die(marks: Marks) -> str:
    error = polyexec.current().submit(faults.die, marks, "SIGKILL").exception(TASK_LIMIT)
    return type(error).__name__


def _child_dies(trial: Trial) -> None:
    others = trial.bystanders()
    parent = trial.ex.submit(_sees_child_die, trial.marks)
    others.queue()
    found = trial.value(parent)
    trial.saw(found)
    assert found == "WorkerDied"
    trial.injected()
    others.check()
    trial.starts(1, 1)
    trial.usable()


def _waits_for_child(marks: Marks, gate: Gate) -> Any:
    child = polyexec.current().submit(bodies.pass_gate, marks, gate, "child")
    marks.add(f"parent {os.getpid()}")
    return child.result(TASK_LIMIT)


def _parent_is_killed(trial: Trial) -> None:
    gate = trial.gate("child")
    parent = trial.ex.options(name="victim").submit(_waits_for_child, trial.marks, gate)
    trial.marks.wait_for("start child")
    trial.marks.wait_for("parent")
    begun = time.monotonic()
    os.kill(int(trial.marks.values("parent")[0]), signal.SIGKILL)
    error = trial.error(parent)
    trial.injected(begun)
    assert type(error) is polyexec.WorkerDied, repr(error)
    gate.open()
    trial.usable()
    trial.starts(1, 1)


def _opens_another(specification: str) -> Any:
    try:
        with polyexec.connect(specification) as ex:
            return ex.submit(bodies.add, 40, 2).result(TASK_LIMIT)
    except polyexec.PolyexecError as error:
        return f"{type(error).__name__}: {error}"


def _another_engine(trial: Trial) -> None:
    begun = time.monotonic()
    found = trial.value(trial.ex.submit(_opens_another, "threads?workers=1"))
    trial.injected(begun)
    assert found == 42, found
    trial.usable()


def _same_engine(trial: Trial) -> None:
    """The result, or an error that says why not; and nothing is left of either."""
    begun = time.monotonic()
    specification = trial.target.with_keys(workers=1)
    found = trial.value(trial.ex.submit(_opens_another, specification))
    trial.injected(begun)
    trial.saw(str(found))
    assert found == 42 or isinstance(found, str), found
    trial.usable()


def _uses(ex: Executor, number: int) -> int:
    return int(ex.submit(bodies.add, number, 1).result(TASK_LIMIT))


def _handle(trial: Trial) -> None:
    begun = time.monotonic()
    ex = trial.ex
    assert trial.value(ex.submit(_uses, ex, 1)) == 2
    assert trial.value(ex.submit(lambda: _uses(ex, 2))) == 3
    trial.injected(begun)
    trial.usable()


def _in_child(function: Any) -> int:
    """Call a function in a forked process, and give its exit code; 99 if it takes too long."""
    child = os.fork()
    if child == 0:
        timer = threading.Timer(20, os._exit, (99,))
        timer.daemon = True
        timer.start()
        code = 98
        try:
            code = function()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _refused(function: Any) -> bool:
    try:
        function()
    except polyexec.ForkedExecutor:
        return True
    return False


def _child_submits(trial: Trial) -> None:
    """Whatever the child does with the executor is refused at once; the parent's work goes on."""
    others = trial.bystanders()
    ex, done = trial.ex, trial.ex.submit(bodies.add, 1, 1)
    trial.value(done)

    def uses_executor() -> int:
        calls = (
            lambda: ex.submit(bodies.add, 1, 1),
            lambda: ex.put(1),
            lambda: ex.wait([done]),
            lambda: list(ex.map(abs, [1])),
        )
        return sum(2**bit for bit, call in enumerate(calls) if not _refused(call))

    begun = time.monotonic()
    code = _in_child(uses_executor)
    trial.injected(begun)
    trial.saw("ForkedExecutor" if code == 0 else f"not refused: {code:b}")
    assert code == 0, f"calls that were not refused, as bits: {code:b}"
    others.queue()
    others.check()
    trial.usable()


_LEAVES = """
    import json, os, sys
    import polyexec
    from polyexec.testing import bodies

    with polyexec.connect(sys.argv[1]) as ex:
        assert ex.submit(bodies.add, 1, 1).result() == 2
        child = os.fork()
        if child == 0:
            # Through the end of the block, and all that is registered for the end.
            sys.exit(7)
        print(json.dumps(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])), flush=True)
        print(json.dumps([ex.submit(bodies.add, 20, number).result() for number in range(20)]), flush=True)
"""


def _child_leaves(trial: Trial) -> None:
    """A child that leaves as Python does, closing what it has inherited, takes nothing from its parent."""
    begun = time.monotonic()
    ended = Driver(trial.target, trial.folder).run(_LEAVES)
    trial.injected(begun)
    assert ended.code == 0, ended.errors
    code, found = ended.said
    # Engines have libraries that do not know of the fork, and may crash at the child's very end.
    trial.saw(f"the child ends with {code}")
    assert code != 0, f"{code}: {ended.errors}"
    assert found == [20 + number for number in range(20)]


def _task_forks(trial: Trial) -> None:
    """Only the task itself has a result, though its forked child returns too."""
    others = trial.bystanders()
    begun = time.monotonic()
    victim = trial.ex.submit(bodies.fork_and_return, trial.marks)
    others.queue()
    found = trial.value(victim)
    trial.injected(begun)
    trial.saw(found)
    assert found == "the task's"
    others.check()
    trial.starts(1, 1)
    trial.usable()


ROWS = (
    Row(
        "F25",
        "Tasks wait for tasks",
        "the result, with a single worker too; whoever dies takes nobody along",
        ("N1", "F3"),
        (
            Case("three levels, one worker", _goes_down, own=True),
            Case("fifty children", _spreads_out),
            Case("a child is killed", _child_dies, needs=(PROCESSES,)),
            Case("a parent is killed", _parent_is_killed, needs=(PROCESSES,)),
        ),
        20.0,
    ),
    Row(
        "F26",
        "Tasks use executors",
        "the result; or an error, where an engine cannot run within itself",
        ("N1", "W6"),
        (
            Case("another engine in a task", _another_engine),
            Case("the same engine in a task", _same_engine, limit=150.0),
            Case("the executor as an argument, and in a closure", _handle),
        ),
        20.0,
    ),
    Row(
        "F27",
        "The driver, or a task, forks",
        "`ForkedExecutor` in the child; the parent is unharmed",
        ("F15",),
        (
            Case("the child uses the executor", _child_submits),
            Case("the child closes it and leaves", _child_leaves, own=True),
            Case("the child of a task returns", _task_forks),
        ),
        1.0,
    ),
)

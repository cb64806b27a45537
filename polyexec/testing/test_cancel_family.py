"""Chapter C: what else is cancelled with a task, and what becomes free."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import polyexec
from polyexec import Executor
from polyexec.testing import bodies
from polyexec.testing.executors import idle
from polyexec.testing.helpers import LIMIT, assert_cancelled, require
from polyexec.testing.marks import clause
from polyexec.testing.tools import Gate, Marks, eventually, never


@clause("C5")
def test_children_are_cancelled(ex: Executor, inline: bool, gate: Gate, marks: Marks) -> None:
    """C5 Cancelling a task cancels the tasks that it had submitted, running or queued."""
    if inline:
        return
    parent = ex.submit(bodies.family_of_beats, marks, 4, gate)
    marks.wait_for("parent")
    gate.open()
    marks.wait_for("beat", 3)
    assert ex.cancel(parent) is True
    assert_cancelled(parent)
    eventually(lambda: idle(ex), "the children have ended")
    assert marks.count("start") == marks.count("end") < 4 + 1
    count = marks.count("beat")
    never(lambda: marks.count("beat") != count, "a child runs on")


@clause("C5")
def test_grandchildren_are_cancelled(ex: Executor, inline: bool, gate: Gate, marks: Marks) -> None:
    """C5 And the tasks that those had submitted."""
    if inline:
        return
    gate.open()
    grandparent = ex.submit(bodies.grandparent_of_beats, marks, gate)
    marks.wait_for("beat", 3)
    assert ex.cancel(grandparent, force=True) is True
    assert_cancelled(grandparent)
    eventually(lambda: idle(ex), "the grandchild has ended")
    count = marks.count("beat")
    never(lambda: marks.count("beat") != count, "the grandchild runs on")


@clause("C5")
def test_late_children_are_cancelled(ex: Executor, inline: bool, marks: Marks) -> None:
    """C5 And what it submits after it was interrupted, as what was under way then: none of them runs on alone."""
    if inline:
        return

    def parent() -> None:
        try:
            bodies.beat(marks)
        finally:
            polyexec.current().submit(bodies.mark, marks, "late child")

    future = ex.submit(parent)
    marks.wait_for("beat")
    assert ex.cancel(future) is True
    assert_cancelled(future)
    assert ex.submit(bodies.add, 1, 1).result(LIMIT) == 2
    assert marks.lines()[-1] == "end"


@clause("C5")
def test_children_are_spared(ex: Executor, inline: bool, new_gate: Callable[[], Gate], marks: Marks) -> None:
    """C5 With ``recursive=False`` they are not."""
    if inline:
        return
    child_gate = new_gate()

    def parent() -> None:
        child = polyexec.current().submit(bodies.pass_gate, marks, child_gate, "child")
        child.result()

    future = ex.submit(parent)
    marks.wait_for("start child")
    assert ex.cancel(future, recursive=False) is True
    assert_cancelled(future)
    assert marks.count("end child") == 0
    child_gate.open()
    marks.wait_for("end child")


@clause("C6")
def test_dependents_are_cancelled(ex: Executor, inline: bool, marks: Marks) -> None:
    """C6 Dependents of a cancelled task are cancelled, never run, and name it; its siblings go on."""
    if inline:
        return
    victim = ex.options(name="victim").submit(bodies.beat, marks)
    dependent = ex.submit(bodies.mark, marks, victim)
    indirect = ex.submit(bodies.echo, key=dependent)
    sibling = ex.submit(bodies.give, "sibling")
    marks.wait_for("beat")
    assert ex.cancel(victim) is True
    for future in (victim, dependent):
        assert_cancelled(future, "victim")
    assert_cancelled(indirect)
    late = ex.submit(bodies.mark, marks, victim)
    assert_cancelled(late, "victim")
    assert sibling.result(LIMIT) == "sibling"
    assert marks.lines()[-1] == "end"


@clause("C7")
@pytest.mark.parametrize("force", [False, True])
def test_what_it_held_is_available_again(ex: Executor, inline: bool, marks: Marks, force: bool) -> None:
    """C7 Cpus, gpus, memory and custom resources of a cancelled task are available again."""
    if inline:
        return
    require(ex, cpus=2, gpus=2, license=1)
    everything = ex.options(cpus=2, gpus=2, memory=1000, resources={"license": 1})
    victim = everything.submit(bodies.beat, marks)
    queued = everything.submit(bodies.add, 1, 1)
    marks.wait_for("beat")
    available, total = ex.resources().available, ex.resources().total
    assert (available.cpus, available.gpus, available.custom.get("license", 0)) == (0, 0, 0)
    assert total.memory - available.memory == 1000
    assert ex.cancel(victim, force=force) is True
    assert_cancelled(victim)
    assert queued.result(LIMIT) == 2
    eventually(lambda: idle(ex), "everything is available again")

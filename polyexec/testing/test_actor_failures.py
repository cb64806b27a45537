"""Chapter A: actors that fail, die, are killed or wait for each other; and calls of theirs that are stopped."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import polyexec
from polyexec import Executor
from polyexec.testing import actors, bodies
from polyexec.testing.executors import until_idle
from polyexec.testing.helpers import LIMIT, assert_cancelled, error_of, require_processes, text_of
from polyexec.testing.marks import clause
from polyexec.testing.target import Target
from polyexec.testing.tools import Gate, Marks


@clause("A4")
def test_an_exception_fails_that_call_only(ex: Executor) -> None:
    """A4 An exception, ``sys.exit`` or an unserialisable result in a method fails that call; the actor goes on."""
    counter = ex.actor(actors.Counter)
    failed = counter.call(bodies.fail, ValueError("this call"))
    left = counter.leave(3)
    unserialisable = counter.call(lambda: (number for number in range(3)))
    wrong = counter.add(1, 2, 3)
    assert counter.add().result(LIMIT) == 1
    with pytest.raises(ValueError, match="this call") as caught:
        failed.result(LIMIT)
    assert "bodies.py" in text_of(caught.value)
    error = error_of(left)
    assert isinstance(error, polyexec.TaskExited)
    assert error.code == 3
    assert isinstance(error_of(unserialisable), polyexec.SerializationError)
    assert isinstance(error_of(wrong), TypeError)
    assert counter.add().result(LIMIT) == 2


@clause("A4", "S6")
def test_a_failed_argument_fails_that_call_only(ex: Executor) -> None:
    """A4 So does a dependency that fails; the method does not run."""
    counter = ex.actor(actors.Counter)
    failed = counter.add(ex.submit(bodies.fail, KeyError("argument")))
    assert counter.add().result(LIMIT) == 1
    assert isinstance(error_of(failed), KeyError)


@clause("A4")
def test_a_failing_constructor_fails_every_call(ex: Executor) -> None:
    """A4 If the constructor fails each call fails with its error, those made before and after."""
    failing = ex.actor(actors.Failing, ZeroDivisionError("made badly"))
    first = failing.get()
    assert isinstance(error_of(first), ZeroDivisionError)
    second = failing.get()
    assert isinstance(error_of(second), ZeroDivisionError)
    assert "made badly" in text_of(error_of(second))
    missing = ex.actor(actors.Counter, ex.submit(bodies.fail, OSError("no start")))
    assert isinstance(error_of(missing.add()), OSError)
    until_idle(ex)


@clause("A5")
@pytest.mark.parametrize("how", ["SIGKILL", "exit 3"])
def test_calls_to_a_dead_actor_fail(ex: Executor, how: str, target: Target) -> None:
    """A5 When its process dies, the call that ran, those that wait and later ones fail with ``ActorDied``."""
    require_processes(target)
    counter = ex.actor(actors.Counter)
    pid = counter.pid().result(LIMIT)
    calls = [counter.die(how), *[counter.add() for _ in range(5)]]
    for call in calls:
        error = error_of(call)
        assert isinstance(error, polyexec.ActorDied)
        assert isinstance(error, polyexec.WorkerDied)
        assert error.pid == pid
    assert isinstance(error_of(counter.add()), polyexec.ActorDied)
    assert ex.kill(counter) is False


@clause("A5")
def test_restarts_bring_it_back(ex: Executor, target: Target) -> None:
    """A5 With ``restarts=n`` its constructor makes it again, with what it got first; calls that waited run there."""
    require_processes(target)
    counter = ex.options(restarts=1).actor(actors.Counter, ex.submit(bodies.add, 5, 5))
    assert counter.add().result(LIMIT) == 11
    first = counter.pid().result(LIMIT)
    death, calls = counter.die("SIGKILL"), [counter.add() for _ in range(3)]
    assert isinstance(error_of(death), polyexec.ActorDied)
    assert [call.result(LIMIT) for call in calls] == [11, 12, 13]
    assert counter.pid().result(LIMIT) != first
    assert isinstance(error_of(counter.die("SIGKILL")), polyexec.ActorDied)
    assert isinstance(error_of(counter.add()), polyexec.ActorDied)


@clause("A6", "C3")
def test_kill_ends_it_whatever_it_does(ex: Executor, marks: Marks, target: Target) -> None:
    """A6 ``kill`` ends it although a method is blocked in C; calls fail with ``ActorDied``; it is not restarted."""
    require_processes(target)
    worker = ex.options(restarts=5, resources={"license": 1}).actor(actors.Worker)
    running, queued = worker.sleep_in_c(marks), worker.get()
    marks.wait_for("start")
    assert ex.kill(worker) is True
    for call in (running, queued, worker.get()):
        error = error_of(call)
        assert isinstance(error, polyexec.ActorDied)
        assert "kill" in str(error)
    assert ex.kill(worker) is False
    assert marks.count("start") == 1
    until_idle(ex)


@clause("A6")
def test_kill_interrupts_a_method(ex: Executor, marks: Marks, target: Target) -> None:
    """A6 Where it has no process, ``kill`` interrupts what runs; what has ended stays as it is."""
    worker = ex.actor(actors.Worker, 1)
    done = worker.get()
    assert done.result(LIMIT) == (1,)
    if not target.capabilities.inline:
        running = worker.beat(marks)
        marks.wait_for("beat")
        assert ex.kill(worker) is True
        assert isinstance(error_of(running), polyexec.ActorDied)
    else:
        assert ex.kill(worker) is True
    assert isinstance(error_of(worker.get()), polyexec.ActorDied)
    assert done.result(0) == (1,)
    assert ex.submit(lambda handle: polyexec.current().kill(handle), worker).result(LIMIT) is False


@clause("A6")
def test_a_task_kills_an_actor(ex: Executor) -> None:
    """A6 Whoever has a handle may kill it."""
    counter = ex.actor(actors.Counter)
    assert ex.submit(lambda handle: polyexec.current().kill(handle), counter).result(LIMIT) is True
    assert isinstance(error_of(counter.add()), polyexec.ActorDied)


@clause("C1")
def test_a_queued_call_is_cancelled(ex: Executor, marks: Marks, new_gate: Callable[[], Gate], target: Target) -> None:
    """C1 A call that has not begun never runs; the others keep their order."""
    worker = ex.actor(actors.Worker)
    if target.capabilities.inline:
        done = worker.get()
        assert ex.cancel(done) is False
        return
    gate = new_gate()
    running = worker.pass_gate(marks, gate, "first")
    marks.wait_for("start")
    calls = [worker.mark(marks, f"call {number}") for number in range(100)]
    for number in (0, 1, 50, 99):
        assert ex.cancel(calls[number]) is True
    gate.open()
    assert running.result(LIMIT) == "first"
    left = [number for number in range(100) if number not in (0, 1, 50, 99)]
    assert [calls[number].result(LIMIT) for number in left] == [f"call {number}" for number in left]
    assert_cancelled(calls[50], "Worker.mark")
    assert marks.values("call") == [str(number) for number in left]


@clause("C2")
def test_a_running_method_is_interrupted(ex: Executor, marks: Marks, target: Target) -> None:
    """C2 A method that runs is interrupted, and its actor goes on; force is refused, since it would end the actor."""
    if target.capabilities.inline:
        return
    worker = ex.actor(actors.Worker, "state")
    running, behind = worker.beat(marks), worker.get()
    marks.wait_for("beat")
    with pytest.raises(polyexec.SpecificationError, match="kill"):
        ex.cancel(running, force=True)
    assert ex.cancel(running) is True
    assert behind.result(LIMIT) == ("state",)
    assert marks.count("finally") == 1
    assert_cancelled(running)
    assert ex.cancel(running) is False


@clause("C2")
def test_a_coroutine_is_cancelled(ex: Executor, marks: Marks, target: Target) -> None:
    """C2 A coroutine is cancelled as asyncio does it, and others of its actor go on."""
    if target.capabilities.inline:
        return
    meeting = ex.actor(actors.AsyncMeeting)
    running, other = meeting.beat(marks), meeting.wait()
    marks.wait_for("start")
    assert ex.cancel(running) is True
    assert_cancelled(running)
    assert marks.count("finally") == 1
    assert meeting.open().result(LIMIT) is None
    assert other.result(LIMIT) == "open"


@clause("C5")
def test_what_a_method_has_submitted_is_cancelled(ex: Executor, marks: Marks, target: Target) -> None:
    """C5 With a call, what it has submitted is cancelled."""
    if target.capabilities.inline:
        return
    worker = ex.actor(actors.Worker, "state")
    running = worker.family(marks)
    marks.wait_for("beat")
    assert ex.cancel(running) is True
    assert_cancelled(running)
    marks.wait_for("finally")
    assert worker.get().result(LIMIT) == ("state",)


@clause("C2")
def test_a_methods_timeout(ex: Executor, marks: Marks) -> None:
    """C2 ``timeout=`` interrupts a method, and its actor goes on."""
    worker = ex.actor(actors.Worker, "state")
    slow = worker.beat.options(timeout=0.2)(marks)
    assert isinstance(error_of(slow), polyexec.TaskTimeout)
    assert marks.count("finally") == 1
    assert worker.get().result(LIMIT) == ("state",)


@clause("N2")
def test_an_actor_that_waits_for_itself(
    ex: Executor, marks: Marks, new_gate: Callable[[], Gate], target: Target
) -> None:
    """N2 A method that waits for a call of its own actor gets ``DeadlockError``, although other tasks run."""
    gate = new_gate()
    other = None if target.capabilities.inline else ex.submit(bodies.pass_gate, marks, gate, "other")
    worker = ex.actor(actors.Worker)
    assert worker.wait_for_itself(worker).result(LIMIT).startswith("deadlock")
    gate.open()
    assert other is None or other.result(LIMIT) == "other"
    assert worker.get().result(LIMIT) == ()


@clause("N2")
def test_actors_that_wait_for_each_other(ex: Executor) -> None:
    """N2 So do two actors that wait for each other; both go on afterwards."""
    first = ex.actor(actors.Node)
    second = ex.actor(actors.Node, first)
    first.meet([second]).result(LIMIT)
    assert isinstance(error_of(first.circle()), polyexec.DeadlockError)
    assert first.tell(7).result(LIMIT) == 7
    assert second.tell(8).result(LIMIT) == 8
    first.forget().result(LIMIT)


@clause("F3", "A5")
def test_a_dying_actor_harms_no_other(ex: Executor, marks: Marks, gate: Gate, target: Target) -> None:
    """F3 The death of one actor fails its calls alone; a value that it got too large for a message arrives."""
    require_processes(target)
    dying, other = ex.actor(actors.Counter), ex.actor(actors.Worker, bytes(300_000))
    task = ex.submit(bodies.pass_gate, marks, gate, "task")
    death = dying.die("SIGKILL")
    assert isinstance(error_of(death), polyexec.ActorDied)
    assert other.get().result(LIMIT) == (bytes(300_000),)
    other.keep(bytes(400_000)).result(LIMIT)
    assert len(other.get().result(LIMIT)[0]) == 400_000
    gate.open()
    assert task.result(LIMIT) == "task"

"""Chapter A: actors, as long as nothing goes wrong with them."""

from __future__ import annotations

import concurrent.futures
import gc
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

import polyexec
from polyexec import Executor
from polyexec.testing import actors, bodies
from polyexec.testing.executors import until_idle
from polyexec.testing.helpers import LIMIT, require, require_processes
from polyexec.testing.marks import alone, clause
from polyexec.testing.target import Target
from polyexec.testing.tools import Gate, Marks


def from_threads(*calls: Callable[[], Any]) -> list[Any]:
    """Make calls at the same time, also where a call has ended when its Future is handed out."""
    with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(lambda call: call().result(LIMIT), calls))


@clause("A1")
def test_calls_run_in_order(ex: Executor) -> None:
    """A1 Calls of one caller run in its order."""
    log = ex.actor(actors.Log)
    futures = [log.note(number) for number in range(100)]
    assert [future.result(LIMIT) for future in futures] == list(range(1, 101))
    assert log.read().result(LIMIT) == (list(range(100)), 1)


@clause("A1")
def test_each_callers_order_is_kept(ex: Executor) -> None:
    """A1 Of several callers, tasks and threads, each sees its calls run in its own order, one at a time."""
    log, count = ex.actor(actors.Log), 100
    tasks = [ex.submit(actors.note_all, log, caller, count) for caller in range(2)]
    threads = [threading.Thread(target=actors.note_all, args=(log, caller, count)) for caller in range(2, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    for task in tasks:
        task.result(LIMIT)
    lines, most = log.read().result(LIMIT)
    assert most == 1
    for caller in range(4):
        assert [number for who, number in lines if who == caller] == list(range(count))


@clause("A1")
def test_a_call_waits_for_its_arguments(
    ex: Executor, new_gate: Callable[[], Gate], marks: Marks, target: Target
) -> None:
    """A1 A Future as an argument is a dependency; it holds back later calls of the same caller, and nobody else's."""
    counter = ex.actor(actors.Counter)
    assert counter.add(ex.submit(bodies.add, 1, 2)).result(LIMIT) == 3
    if target.capabilities.inline:
        return
    gate = new_gate()
    late: Any = ex.submit(bodies.pass_gate, marks, gate, 10)
    first, second = counter.add(late), counter.add(1)
    assert from_threads(lambda: counter.add(100)) == [103]
    assert not first.done()
    assert not second.done()
    gate.open()
    assert (first.result(LIMIT), second.result(LIMIT)) == (113, 114)


@clause("A1")
def test_concurrency(ex: Executor) -> None:
    """A1 With ``concurrency=n`` so many calls run at the same time."""
    meeting = ex.options(concurrency=3).actor(actors.Meeting)
    assert from_threads(*[lambda: meeting.meet(3)] * 3) == [3, 3, 3]


@clause("A1")
def test_coroutines_interleave(ex: Executor) -> None:
    """A1 ``async`` methods interleave; others of the class run between them."""
    meeting = ex.actor(actors.AsyncMeeting)
    assert from_threads(meeting.wait, meeting.wait, meeting.open) == ["open", "open", None]
    assert meeting.plain().result(LIMIT) == 1
    assert meeting.child(1).result(LIMIT) == 2


@clause("A1", "W6")
def test_methods_use_the_whole_interface(ex: Executor) -> None:
    """A1 In a method ``current`` is an executor as in a task; several values may be returned."""
    worker = ex.actor(actors.Worker)
    assert worker.child(1, 2).result(LIMIT) == 3
    counter = ex.actor(actors.Counter)
    left, right = counter.call.options(num_returns=2, name="pair")(bodies.give, 1, 2)
    assert (left.result(LIMIT), right.result(LIMIT)) == (1, 2)
    assert left.name == "pair"
    assert counter.add().name == "Counter.add"
    assert counter.name == "Counter"
    assert ex.options(name="mine").actor(actors.Counter).name == "mine"


@clause("A2")
def test_state_lives(ex: Executor) -> None:
    """A2 State lives from call to call, apart from that of other actors of the class."""
    first, second = ex.actor(actors.Counter, 10), ex.actor(actors.Counter, start=20)
    assert [first.add(2).result(LIMIT), second.add(2).result(LIMIT)] == [12, 22]
    assert [first.add(3).result(LIMIT), second.add(3).result(LIMIT)] == [15, 25]


@clause("A2")
def test_an_actor_has_a_process(ex: Executor, target: Target) -> None:
    """A2 It has a process for itself."""
    require_processes(target)
    counters = [ex.actor(actors.Counter) for _ in range(3)]
    pids = {counter.pid().result(LIMIT) for counter in counters}
    assert len(pids | {os.getpid()}) == 4
    others = {ex.submit(os.getpid).result(LIMIT) for _ in range(4)}
    assert not pids & others
    assert {counter.pid().result(LIMIT) for counter in counters} == pids


@clause("A2")
def test_any_class(ex: Executor) -> None:
    """A2 Any class goes: also one that is defined inside a function, and whose arguments are Futures."""

    class Local(actors.Worker):
        def first(self) -> Any:
            return self.values[0]

    local = ex.actor(Local, ex.submit(bodies.add, 1, 2), [4])
    assert local.first().result(LIMIT) == 3
    assert local.get().result(LIMIT) == (3, [4])


@clause("A2")
def test_what_is_no_actor(ex: Executor) -> None:
    """A2 What is no class, an unknown method and options that mean nothing are refused at once."""
    for wrong in (lambda: ex.actor(len), lambda: ex.options(retries=1).actor(actors.Counter), lambda: ex.kill(1)):  # type: ignore[arg-type]
        with pytest.raises(polyexec.SpecificationError):
            wrong()
    with pytest.raises(polyexec.SpecificationError):
        ex.options(restarts=1).submit(int)
    counter = ex.actor(actors.Counter)
    with pytest.raises(AttributeError):
        _ = counter.unknown
    with pytest.raises(polyexec.SpecificationError):
        counter.add.options(cpus=1)
    with pytest.raises(polyexec.SerializationError):
        counter.add(threading.Lock())


@clause("A3")
def test_handles_are_passed_on(ex: Executor) -> None:
    """A3 Handles go to tasks, into containers, into closures, and back; they are equal if they are of one actor."""
    counter = ex.actor(actors.Counter)
    assert ex.submit(lambda handle: handle.add().result(), counter).result(LIMIT) == 1
    assert ex.submit(lambda handles: handles["it"][0].add().result(), {"it": [counter]}).result(LIMIT) == 2
    assert ex.submit(lambda: counter.add().result()).result(LIMIT) == 3
    back = ex.submit(bodies.give, counter).result(LIMIT)
    assert back == counter
    assert len({back, counter, ex.actor(actors.Counter)}) == 2
    assert back.add().result(LIMIT) == 4


@clause("A3")
def test_an_actor_made_in_a_task(ex: Executor) -> None:
    """A3 An actor that a task has made, and returned, outlives the task."""
    counter = ex.submit(lambda: polyexec.current().actor(actors.Counter, 5)).result(LIMIT)
    assert counter.add().result(LIMIT) == 6


@clause("A3")
def test_actors_call_each_other(ex: Executor) -> None:
    """A3 Two actors may call each other, and keep handles of each other in their state."""
    first = ex.actor(actors.Node)
    second = ex.actor(actors.Node, first)
    first.meet([second]).result(LIMIT)
    assert second.is_other(first).result(LIMIT)
    assert first.is_other(second).result(LIMIT)
    assert [first.ask(3).result(LIMIT), second.ask(4).result(LIMIT)] == [4, 5]
    # They hold each other.
    assert first.forget().result(LIMIT) is None


@clause("A3", "A6")
def test_a_handle_in_an_actors_state_counts(ex: Executor) -> None:
    """A3 An actor keeps alive those, and what, it has handles and Futures of in its state."""
    node = ex.actor(actors.Node)
    node.meet([ex.options(resources={"license": 1}).actor(actors.Node)]).result(LIMIT)
    worker = ex.actor(actors.Worker)
    worker.keep([ex.put("kept")]).result(LIMIT)
    gc.collect()
    assert node.ask(0).result(LIMIT) == 1
    assert worker.result().result(LIMIT) == "kept"
    assert ex.resources().available != ex.resources().total
    node.forget().result(LIMIT)
    until_idle(ex)


@clause("A6")
def test_it_ends_with_its_last_handle(ex: Executor, marks: Marks) -> None:
    """A6 When its last handle goes, what was called before still runs, and then the actor ends."""
    require(ex, license=1)
    worker = ex.options(resources={"license": 1}).actor(actors.Worker)
    futures = [worker.mark(marks, f"call {number}") for number in range(20)]
    del worker
    assert [future.result(LIMIT) for future in futures] == [f"call {number}" for number in range(20)]
    until_idle(ex)


@clause("A6")
def test_it_ends_though_nobody_called_it(ex: Executor) -> None:
    """A6 An actor whose handle goes at once ends, too."""
    ex.options(cpus=1).actor(actors.Worker)
    until_idle(ex)


@clause("A6")
@alone
def test_it_ends_at_close(
    opened: Callable[..., Any], marks: Marks, new_gate: Callable[[], Gate], target: Target
) -> None:
    """A6 At close calls that are pending finish, then actors end, those that hold each other too."""
    with opened(workers=2) as ex:
        first = ex.actor(actors.Node)
        first.meet([ex.actor(actors.Node, first)]).result(LIMIT)
        worker = ex.actor(actors.Worker)
        gate = new_gate()
        if target.capabilities.inline:
            gate.open()
        futures = [worker.pass_gate(marks, gate, number) for number in range(3)]
        closing = threading.Thread(target=ex.close)
        closing.start()
        gate.open()
        closing.join(LIMIT)
        assert not closing.is_alive()
        assert [future.result(0) for future in futures] == [0, 1, 2]
        with pytest.raises(polyexec.ExecutorClosed):
            worker.get()


@clause("A6")
@alone
def test_leaving_by_an_exception_ends_it(opened: Callable[..., Any], marks: Marks, target: Target) -> None:
    """A6 ``close(cancel_pending=True)`` cancels what its actors do, and has still to do."""
    with opened(workers=2) as ex:
        worker = ex.actor(actors.Worker)
        if target.capabilities.inline:
            return
        running, queued = worker.beat(marks), worker.mark(marks, "queued")
        marks.wait_for("beat")
        ex.close(cancel_pending=True)
        assert running.cancelled()
        assert queued.cancelled()
        assert marks.count("finally") == 1
        assert marks.count("queued") == 0


@clause("A7")
def test_it_holds_its_resources(ex: Executor) -> None:
    """A7 It holds what its options say while it lives, whatever it does, and gives it back when it is killed."""
    require(ex, license=1, cpus=2)
    total = ex.resources().total
    counter = ex.options(resources={"license": 1}, cpus=1).actor(actors.Counter)
    assert counter.add().result(LIMIT) == 1
    available = ex.resources().available
    assert available.custom["license"] == total.custom["license"] - 1
    assert available.cpus == total.cpus - 1
    assert ex.kill(counter) is True
    until_idle(ex)


@clause("A7")
def test_by_default_it_holds_no_cpu(ex: Executor) -> None:
    """A7 By default it holds nothing, so that tasks run beside any number of actors."""
    counters = [ex.actor(actors.Counter) for _ in range(3)]
    assert [counter.add().result(LIMIT) for counter in counters] == [1, 1, 1]
    assert ex.resources().available == ex.resources().total
    assert [ex.submit(bodies.add, number, 1).result(LIMIT) for number in range(4)] == [1, 2, 3, 4]


@clause("A7")
def test_what_no_node_has_is_refused(ex: Executor) -> None:
    """A7 An actor that no node could hold is refused at once."""
    with pytest.raises(polyexec.InfeasibleResources):
        ex.options(resources={"license": 1000}).actor(actors.Counter)


@clause("A7", "R6")
def test_a_method_that_waits_lends_the_cpus(ex: Executor) -> None:
    """A7 A method that waits for a task lends the cpus of its actor."""
    require(ex, cpus=2)
    worker = ex.options(cpus=ex.resources().total.cpus).actor(actors.Worker)
    assert worker.child(1, 2).result(LIMIT) == 3
    assert [worker.child(number, 1).result(LIMIT) for number in range(3)] == [1, 2, 3]

"""Rows of programs that use an executor from everywhere at once, and at the wrong time."""

from __future__ import annotations

import gc
import random
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import polyexec
from polyexec import Executor, Future
from polyexec.testing import actors, bodies
from polyexec.testing.drivers import Driver
from polyexec.testing.faults.model import QUEUE, Case, Row
from polyexec.testing.faults.trial import HungError, Trial
from polyexec.testing.tools import PATIENCE, Marks

_THREADS = 16
_ROUNDS = 25
"""Of each thread; each has about five calls of the executor."""


def _together(trial: Trial, functions: list[Callable[[], object]], what: str) -> None:
    """Call functions in threads at the same time; raise what any of them has raised."""
    errors: list[BaseException] = []

    def guarded(function: Callable[[], object]) -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(function,), daemon=True) for function in functions]
    for thread in threads:
        thread.start()

    def join() -> None:
        end = time.monotonic() + PATIENCE
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
            if thread.is_alive():
                raise TimeoutError

    trial.within(join, what)
    if errors:
        raise errors[0]


def _end_of(trial: Trial, future: Future[Any]) -> Any:
    """Give the value of a Future, or the type of its error."""
    try:
        return trial.value(future)
    except HungError:
        raise
    except BaseException as error:
        return type(error)


def _uses(trial: Trial, seed: int) -> None:
    choose = random.Random(seed)
    for number in range(_ROUNDS):
        futures = [trial.ex.submit(bodies.add, number, index) for index in range(3)]
        cancelled = choose.choice(futures)
        told = trial.ex.cancel(cancelled) if choose.random() < 0.5 else False
        done, pending = trial.ex.wait(
            futures, num_returns=choose.randint(0, 3), timeout=choose.choice([0, 0.001, None])
        )
        assert len(done) + len(pending) == len(futures)
        for index, future in enumerate(futures):
            expected = polyexec.TaskCancelled if told and future is cancelled else number + index
            assert _end_of(trial, future) == expected


def _threads_use_it(trial: Trial) -> None:
    begun = time.monotonic()
    _together(trial, [partial(_uses, trial, seed) for seed in range(_THREADS)], "the threads' end")
    trial.injected(begun, _THREADS * _ROUNDS)
    trial.usable()


def _submits(ex: Executor, futures: list[Future[Any]], start: threading.Barrier) -> None:
    """Submit until that is refused: some before `close` is called, some at the same time, and then one now and then."""
    try:
        for number in range(10**6):
            if number == 20:
                start.wait(PATIENCE)
            elif number > 40:
                time.sleep(0.001)
            futures.append(ex.submit(bodies.add, number, 0))
    except polyexec.ExecutorClosed:
        return


def _closes_meanwhile(trial: Trial, cancel: bool) -> None:
    """Each task that was taken ends, with its value unless it was cancelled; each thread is told that it is closed."""
    with trial.opened(workers=2) as ex:
        trial.value(ex.submit(bodies.add, 1, 1))
        lists: list[list[Future[Any]]] = [[] for _ in range(8)]
        start = threading.Barrier(len(lists) + 1)
        begun = time.monotonic()

        def close() -> None:
            start.wait(PATIENCE)
            ex.close(cancel_pending=cancel)

        submitters = [partial(_submits, ex, futures, start) for futures in lists]
        _together(trial, [*submitters, close], "the end of close, and of those who submit")
        trial.injected(begun, len(lists))
        allowed = {polyexec.TaskCancelled, polyexec.ExecutorClosed} if cancel else set()
        for futures in lists:
            for number, future in enumerate(futures):
                assert future.done(), f"{future!r} is not done after close"
                found = _end_of(trial, future)
                assert found == number or found in allowed, f"task {number} gave {found!r}"


def _is_closed(ex: Executor) -> bool:
    try:
        ex.submit(bodies.add, 1, 1)
    except polyexec.ExecutorClosed:
        return True
    return False


def _close_often(trial: Trial) -> None:
    """Four threads close at once, and once more; all that was submitted is done, since none cancels."""
    marks = Marks(str(trial.folder / "ran"))
    with trial.opened(workers=2) as ex:
        futures = [ex.submit(bodies.mark, marks, f"task {number}") for number in range(10)]
        begun = time.monotonic()
        _together(trial, [ex.close] * 4, "the end of four calls of close")
        ex.close()
        trial.injected(begun, 5)
        assert [_end_of(trial, future) for future in futures] == [f"task {number}" for number in range(10)]
        assert marks.count() == 10
        assert _is_closed(ex)


def _close_in_callback(trial: Trial) -> None:
    with trial.opened(workers=2) as ex:
        closed = threading.Event()
        gate = trial.gate("first")
        first = ex.submit(bodies.pass_gate, trial.marks, gate, "first")

        def close(_: Future[Any]) -> None:
            ex.close(cancel_pending=True)
            closed.set()

        first.add_done_callback(close)
        others = [] if trial.target.capabilities.inline else [ex.submit(bodies.beat, trial.marks) for _ in range(4)]
        begun = time.monotonic()
        gate.open()
        trial.within(lambda: _raise_unless(closed.wait(PATIENCE)), "the end of close in a callback")
        trial.injected(begun)
        assert {_end_of(trial, future) for future in others} <= {polyexec.TaskCancelled}
        assert _is_closed(ex)


def _raise_unless(happened: bool) -> None:
    if not happened:
        raise TimeoutError


class Holder:
    """Closes an executor when it is collected."""

    def __init__(self, ex: Executor) -> None:
        self.ex = ex
        self.itself = self

    def __del__(self) -> None:
        self.ex.close(cancel_pending=True)


def _close_in_collector(trial: Trial) -> None:
    with trial.opened(workers=2) as ex:
        futures = [ex.submit(bodies.add, number, 0) for number in range(4)]
        begun = time.monotonic()
        Holder(ex)
        _together(trial, [gc.collect], "the end of close in the collector")
        trial.injected(begun)
        ends = [_end_of(trial, future) for future in futures]
        assert all(found == number or found is polyexec.TaskCancelled for number, found in enumerate(ends)), ends
        assert _is_closed(ex)


_AT_EXIT = """
    import atexit, sys
    import polyexec
    from polyexec.testing import bodies
    from polyexec.testing.tools import Marks

    specification, path, how = sys.argv[1:]
    ex = polyexec.connect(specification)
    if how == "close":
        atexit.register(ex.close)
    marks = Marks(path)
    futures = [ex.submit(bodies.mark, marks, f"task {number}") for number in range(20)]
    if how == "uncaught":
        raise SystemExit(5)
"""


def _leaves(trial: Trial, how: str) -> None:
    """The program ends by itself, with its own status; what was submitted has run, once at most."""
    marks = Marks(str(trial.folder / "ran"))
    begun = time.monotonic()
    ended = Driver(trial.target, trial.folder).run(_AT_EXIT, marks.path, how)
    trial.injected(begun)
    assert ended.code == (5 if how == "uncaught" else 0), f"{ended.code}: {ended.errors}"
    found = [marks.count(f"task {number}") for number in range(20)]
    assert max(marks.lines().count(line) for line in marks.lines()) == 1
    assert marks.count() == 20, f"{found} have run; {ended.errors}"
    assert not ended.errors.strip(), ended.errors


def _calls_back(trial: Trial, error: BaseException) -> None:
    others = trial.bystanders()
    called = threading.Event()

    def callback(_: Future[Any]) -> None:
        called.set()
        raise error

    begun = time.monotonic()
    future = trial.ex.submit(bodies.add, 1, 2)
    future.add_done_callback(callback)
    second = threading.Event()
    future.add_done_callback(lambda _: second.set())
    others.queue()
    assert trial.value(future) == 3
    trial.within(lambda: _raise_unless(called.wait(PATIENCE) and second.wait(PATIENCE)), "both callbacks")
    trial.injected(begun)
    others.check()
    trial.usable()


def _callback_blocks(trial: Trial) -> None:
    """While a callback waits, tasks run and results come; it waits for a task that is submitted meanwhile."""
    others = trial.bystanders()
    event, ended = threading.Event(), threading.Event()

    def callback(_: Future[Any]) -> None:
        event.wait(PATIENCE)
        ended.set()

    begun = time.monotonic()
    future = trial.ex.submit(bodies.add, 1, 2)
    trial.value(future)
    threading.Thread(target=future.add_done_callback, args=(callback,), daemon=True).start()
    pending = trial.ex.submit(bodies.add, 2, 2)
    if not trial.target.capabilities.inline:
        pending.add_done_callback(callback)
    others.queue()
    assert [trial.value(trial.ex.submit(bodies.add, number, 0)) for number in range(10)] == list(range(10))
    event.set()
    trial.within(lambda: _raise_unless(ended.wait(PATIENCE)), "the end of the callback")
    trial.injected(begun)
    others.check()
    trial.usable()


def _callback_submits(trial: Trial) -> None:
    found: list[Future[Any]] = []
    done = threading.Event()

    def callback(_: Future[Any]) -> None:
        found.extend(trial.ex.submit(bodies.add, number, 0) for number in range(100))
        done.set()

    begun = time.monotonic()
    trial.ex.submit(bodies.add, 1, 1).add_done_callback(callback)
    trial.within(lambda: _raise_unless(done.wait(PATIENCE)), "the end of the callback")
    assert [trial.value(future) for future in found] == list(range(100))
    trial.injected(begun)
    trial.usable()


def _waits(trial: Trial) -> None:
    """Odd arguments of ``wait`` either mean what the contract says, or are refused at once."""
    ex = trial.ex
    begun = time.monotonic()
    future = ex.submit(bodies.add, 1, 1)
    trial.value(future)
    assert ex.wait([future, future]) == ([future], [])
    assert ex.wait([]) == ([], [])
    assert ex.wait([future], num_returns=0) == ([], [future])
    assert ex.wait([future], timeout=0) == ([future], [])
    assert list(ex.as_completed([future, future])) == [future]
    with polyexec.connect("serial") as other:
        foreign = other.submit(bodies.add, 1, 1)
        for wrong in ([foreign], [future, foreign], [1], [None]):
            try:
                ex.wait(wrong)  # type: ignore[arg-type]  # that is the fault
            except (polyexec.PolyexecError, TypeError):
                continue
            raise AssertionError(f"wait({wrong!r}) was not refused")
    trial.injected(begun, 9)
    trial.usable()


def _drops(trial: Trial) -> None:
    """Tasks whose Futures are dropped before they start run all the same, once."""
    others = trial.bystanders()
    gate, marks = trial.gate("blocker"), Marks(str(trial.folder / "dropped"))
    begun = time.monotonic()
    blocker = trial.ex.submit(bodies.pass_gate, trial.marks, gate, "blocker")
    for number in range(5):
        trial.ex.submit(bodies.mark, marks, f"task {number}")
    gc.collect()
    others.queue()
    gate.open()
    trial.value(blocker)
    marks.wait_for("task", 5)
    trial.injected(begun, 5)
    others.check()
    assert sorted(marks.lines()) == [f"task {number}" for number in range(5)]
    trial.usable()


def _drops_actor(trial: Trial) -> None:
    """What was called before the last handle went still runs, and then the actor is gone."""
    gate, marks = trial.gate("first"), Marks(str(trial.folder / "calls"))
    begun = time.monotonic()
    actor = trial.ex.actor(actors.Counter)
    first = actor.call(bodies.pass_gate, marks, gate, "first")
    second = actor.call(bodies.mark, marks, "second")
    del actor
    gc.collect()
    gate.open()
    assert (trial.value(first), trial.value(second)) == ("first", "second")
    trial.injected(begun)
    trial.usable()


ROWS = (
    Row(
        "F28",
        "Sixteen threads use one executor; some submit while it is closed",
        "every task that was taken ends once, as it should; the others are refused",
        ("S8", "S9", "F9"),
        (
            Case("submit, cancel, wait, result", _threads_use_it),
            Case("submit while close waits", partial(_closes_meanwhile, cancel=False), own=True),
            Case("submit while close cancels", partial(_closes_meanwhile, cancel=True), own=True),
        ),
        60.0,
    ),
    Row(
        "F29",
        "`close` at odd times and places",
        "it ends, leaves nothing, and `submit` gives `ExecutorClosed`",
        ("F9", "S9"),
        (
            Case("four threads at once, and again", _close_often, own=True),
            Case("in a callback", _close_in_callback, own=True),
            Case("in the garbage collector", _close_in_collector, own=True),
            Case("at the end of the interpreter", partial(_leaves, how="close"), own=True),
            Case("never, with work pending", partial(_leaves, how="never"), own=True),
            Case("never, after an uncaught SystemExit", partial(_leaves, how="uncaught"), own=True),
        ),
        5.0,
    ),
    Row(
        "F30",
        "Callbacks that raise, exit, block or submit",
        "they harm nobody",
        ("S16", "W6"),
        (
            Case("raises", partial(_calls_back, error=LookupError("its text"))),
            Case("raises SystemExit", partial(_calls_back, error=SystemExit(3))),
            Case("blocks", _callback_blocks),
            Case("submits a hundred tasks", _callback_submits),
        ),
        6.0,
    ),
    Row(
        "F31",
        "Odd arguments of `wait`",
        "what the contract says, or an error at once",
        ("W1", "W2", "W3"),
        (Case("all", _waits),),
        1.0,
    ),
    Row(
        "F32",
        "A Future, or a handle, is dropped at once",
        "what was submitted runs all the same",
        ("S16", "A6"),
        (
            Case("Futures of tasks that have not started", _drops, needs=(QUEUE,)),
            Case("the handle of an actor with calls", _drops_actor, needs=(QUEUE,)),
        ),
        5.0,
    ),
)

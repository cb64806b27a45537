"""Chapters together: actors, streams, reservations, what is sent along, what is printed and what is recorded."""

from __future__ import annotations

import asyncio
import importlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

import polyexec
from polyexec import EventKind, Executor
from polyexec.testing import actors, bodies
from polyexec.testing.drivers import Driver
from polyexec.testing.executors import until_idle
from polyexec.testing.helpers import LIMIT, assert_cancelled, error_of, require, require_processes
from polyexec.testing.marks import alone, clause
from polyexec.testing.target import Target
from polyexec.testing.test_output import Said, said
from polyexec.testing.test_streams import within_limit
from polyexec.testing.tools import Gate, Marks, eventually


class Speaker:
    """Prints."""

    def __init__(self) -> None:
        print("made")

    def say(self, text: str) -> int:
        """Print a line, and an unfinished one."""
        print(text)
        print("end", end="")
        return os.getpid()


class AsyncSpeaker(Speaker):
    """Prints in coroutines, too."""

    async def twice(self, text: str) -> None:
        """Print, let others in, and print."""
        print(text)
        await asyncio.sleep(0)
        await asyncio.to_thread(print, text)


class Reader:
    """Reads a stream that it keeps, call by call."""

    def __init__(self, count: int) -> None:
        self.stream = polyexec.current().options(buffer=2).stream(range, count)

    def read(self) -> Any:
        """Give the next item."""
        return next(self.stream).result()

    def change(self, count: int) -> None:
        """Read another stream from now on."""
        self.stream = polyexec.current().options(buffer=2).stream(range, count)

    def read_in_thread(self) -> Any:
        """Give the next item, asked for by another thread."""
        return within_limit(self.read)

    async def sum(self, count: int) -> int:
        """Read a stream of its own in a coroutine."""
        return sum([await item async for item in polyexec.current().options(buffer=2).stream(range, count)])


class Slow(Reader):
    """Reads without coroutines."""

    sum = None  # type: ignore[assignment]

    def squares(self, count: int) -> list[int]:
        """Map inside a method."""
        return list(polyexec.current().map(lambda number: number * number, range(count)))


class Surrounded:
    """Notes what is around it."""

    def __init__(self, module: str) -> None:
        self.module = module
        self.seen = [self.look()]

    def look(self) -> tuple[str, int]:
        """Give the current directory, and what a module says."""
        return os.getcwd(), importlib.import_module(self.module).VALUE

    def nested(self) -> Any:
        """Look from a task."""
        return polyexec.current().submit(look, self.module).result()

    def all(self) -> list[tuple[str, int]]:
        """Give what it has seen since it was made."""
        self.seen.append(self.look())
        return self.seen


class AsyncSurrounded(Surrounded):
    """The same with coroutines."""

    async def look_later(self) -> tuple[str, int]:
        """Look after others may have come in."""
        await asyncio.sleep(0)
        return self.look()


def look(module: str) -> tuple[str, int]:
    """Do as ``Surrounded.look`` does, in a task."""
    return os.getcwd(), importlib.import_module(module).VALUE


def looks(module: str, count: int) -> Iterator[tuple[str, int]]:
    """Do the same in a generator."""
    for _ in range(count):
        yield look(module)


@clause("D2", "A1")
def test_what_actors_print(ex: Executor, capsys: pytest.CaptureFixture[str], target: Target) -> None:
    """D2 What an actor prints bears its name or the method's; all is there, in order, when the result is."""
    require_processes(target)
    for number in range(3):
        speaker = ex.options(name="speaker").actor(Speaker)
        pid = speaker.say(f"text {number}").result(LIMIT)
        expected = [("speaker", "made"), ("speaker.say", f"text {number}"), ("speaker.say", "end")]
        assert said(capsys.readouterr().out) == [Said(name, pid, text) for name, text in expected]
    renamed = speaker.say.options(name="mine")
    assert renamed("more").result(LIMIT) == pid
    assert said(capsys.readouterr().out) == [Said("mine", pid, text) for text in ("more", "end")]


@clause("D2", "A1")
def test_what_coroutines_print(ex: Executor, capsys: pytest.CaptureFixture[str], target: Target) -> None:
    """D2 Coroutines of one actor that run at the same time each print under their own name."""
    require_processes(target)
    speaker = ex.options(name="speaker").actor(AsyncSpeaker)
    for future in [speaker.twice.options(name=f"n{number}")(f"text {number}") for number in range(4)]:
        future.result(LIMIT)
    lines = [(line.name, line.text) for line in said(capsys.readouterr().out)]
    assert sorted(lines) == sorted([("speaker", "made"), *[(f"n{n}", f"text {n}") for n in range(4) for _ in "ab"]])


@clause("D2", "G1")
def test_what_generators_print(ex: Executor, capsys: pytest.CaptureFixture[str], target: Target) -> None:
    """D2 What a generator prints bears its name, and is there when the stream has ended."""
    require_processes(target)

    def counted() -> Iterator[int]:
        for number in range(3):
            print(f"item {number}")
            yield number
        raise LookupError

    stream = ex.options(buffer=1).stream(counted)
    with pytest.raises(LookupError):
        list(stream)
    lines = [(line.name, line.text) for line in said(capsys.readouterr().out)]
    assert lines == [("counted", f"item {number}") for number in range(3)]


@clause("D1", "A2")
@pytest.mark.parametrize("kind", [Surrounded, AsyncSurrounded])
def test_an_actor_keeps_what_was_sent_along(ex: Executor, tmp_path: Path, target: Target, kind: Any) -> None:
    """D1 Constructor and methods of an actor find its folder and modules for its whole life, and nobody else does."""
    name = f"together_{tmp_path.name}_{kind.__name__}".replace("-", "_")
    folder, modules = tmp_path / "folder", tmp_path / "modules"
    for path in (folder, modules):
        path.mkdir()
    (modules / f"{name}.py").write_text("VALUE = 7\n")
    here = os.getcwd()
    actor = ex.options(working_dir=folder, py_modules=[modules / f"{name}.py"]).actor(kind, name)
    for _ in range(2):
        seen = actor.all().result(LIMIT)
        assert {value for _, value in seen} == {7}
        if not target.capabilities.shares_arguments:
            assert len(set(seen)) == 1
            assert seen[0][0] not in (here, str(folder))
        assert os.getcwd() == here
        assert actor.nested().result(LIMIT)[1] == 7
        if kind is AsyncSurrounded:
            assert [call.result(LIMIT) for call in [actor.look_later() for _ in range(3)]] == seen[-1:] * 3
        assert ex.submit(os.getcwd).result(LIMIT) == here
    assert len(seen) == 3
    ex.kill(actor)


@clause("D1", "G1")
def test_a_stream_keeps_what_was_sent_along(ex: Executor, tmp_path: Path, target: Target) -> None:
    """D1 A generator finds its folder and modules from item to item, and its reader its own."""
    name = f"together_{tmp_path.name}_stream".replace("-", "_")
    (tmp_path / f"{name}.py").write_text("VALUE = 8\n")
    here, found = os.getcwd(), []
    for item in ex.options(working_dir=tmp_path, buffer=1).stream(looks, name, 4):
        found.append(item.result(LIMIT))
        assert os.getcwd() == here
    assert {value for _, value in found} == {8}
    assert len(set(found)) == 1
    assert target.capabilities.shares_arguments or found[0][0] not in (here, str(tmp_path))


@clause("E1", "A1")
def test_events_of_actors_and_streams(ex: Executor) -> None:
    """E1 An actor, each of its calls and a stream have their events like any other task."""
    list(ex.events(timeout=0))
    counter = ex.options(name="an actor").actor(actors.Counter)
    assert counter.add.options(name="a call")().result(LIMIT) == 1
    assert isinstance(error_of(counter.leave.options(name="a failure")(3)), polyexec.TaskExited)
    assert len(list(ex.options(name="a stream").stream(range, 5))) == 5
    assert ex.kill(counter) is True
    events: list[Any] = []

    def is_over() -> bool:
        events[:] = ex.events(timeout=0)
        return any(event.name == "an actor" and event.kind is EventKind.CANCELLED for event in events)

    eventually(is_over, lambda: f"the actor has ended: {events}")
    begun = [EventKind.SUBMITTED, EventKind.READY, EventKind.RUNNING]
    ends = {
        "a call": EventKind.DONE,
        "a failure": EventKind.FAILED,
        "a stream": EventKind.DONE,
        "an actor": EventKind.CANCELLED,
    }
    for name, end in ends.items():
        mine = [event for event in events if event.name == name]
        assert [event.kind for event in mine] == [*begun, end], name
        assert len({event.task_id for event in mine}) == 1
        assert mine[2].worker == mine[3].worker != ""


@clause("R11", "A7")
def test_actors_and_streams_in_a_reservation(ex: Executor) -> None:
    """R11 Actors and streams run in bundles; what lives when the reservation is closed keeps its part until its end."""
    require(ex, cpus=2)
    with ex.reserve([{"cpus": 1}, {"cpus": 1}]) as gang:
        counter = gang[0].options(cpus=1).actor(actors.Counter)
        other = gang[1].options(cpus=1).actor(actors.Counter)
        assert counter.add(other.add(3)).result(LIMIT) == 3
        assert [item.result(LIMIT) for item in gang.executor.options(cpus=0).stream(range, 3)] == [0, 1, 2]
        ex.kill(other)
        stream = gang[1].options(buffer=1).stream(range, 4)
        assert next(stream).result(LIMIT) == 0
    assert counter.add().result(LIMIT) == 4
    assert [item.result(LIMIT) for item in stream] == [1, 2, 3]
    assert ex.resources().available.cpus <= ex.resources().total.cpus - 1
    del counter
    until_idle(ex)


@clause("G1", "A2")
@pytest.mark.parametrize("kind", [Slow, Reader])
def test_an_actor_keeps_a_stream(ex: Executor, kind: Any) -> None:
    """G1 An actor reads a stream that its constructor, or another method, has made, from call to call."""
    reader = ex.actor(kind, 4)
    assert [reader.read().result(LIMIT) for _ in range(3)] == [0, 1, 2]
    assert reader.read_in_thread().result(LIMIT) == 3
    reader.change(5).result(LIMIT)
    assert [reader.read().result(LIMIT) for _ in range(4)] == [0, 1, 2, 3]
    if kind is Reader:
        assert reader.sum(5).result(LIMIT) == 10
    else:
        assert reader.squares(20).result(LIMIT) == [number * number for number in range(20)]


@clause("A3", "G1")
def test_handles_in_items(ex: Executor) -> None:
    """A3 Items of a stream may be, or hold, handles of actors that the generator has made."""

    def made(count: int) -> Iterator[Any]:
        for number in range(count):
            yield [polyexec.current().actor(actors.Counter, number)]

    counters = [item.result(LIMIT)[0] for item in ex.options(buffer=1).stream(made, 3)]
    assert [counter.add(10).result(LIMIT) for counter in counters] == [10, 11, 12]
    del counters
    until_idle(ex)


@clause("C5", "A1")
def test_cancelling_a_task_with_calls_and_streams(ex: Executor, marks: Marks, target: Target) -> None:
    """C5 With a task its calls of actors and its streams are cancelled; the actors live on."""
    if target.capabilities.inline:
        return
    worker = ex.actor(actors.Worker, "state")

    def family(handle: Any) -> None:
        stream = polyexec.current().options(buffer=1).stream(bodies.count_for_ever, marks)
        next(stream)
        handle.beat(marks).result()

    task = ex.submit(family, worker)
    marks.wait_for("beat")
    assert ex.cancel(task) is True
    assert_cancelled(task)
    marks.wait_for("finally", 2)
    assert worker.get().result(LIMIT) == ("state",)


@clause("N2", "A1", "G1")
def test_a_generator_that_calls_its_reader(ex: Executor) -> None:
    """N2 A generator that waits for a call of the actor that reads it gets ``DeadlockError``, or its reader does."""

    class Caller:
        def read(self, me: Any) -> list[Any]:
            def ask() -> Iterator[Any]:
                yield me.get().result()

            return [item.result() for item in polyexec.current().stream(ask)]

        def get(self) -> int:
            return 5

    caller = ex.actor(Caller)
    assert isinstance(error_of(caller.read([caller][0])), polyexec.DeadlockError)
    assert caller.get().result(LIMIT) == 5


@clause("N2", "A3")
def test_actors_in_a_circle_through_a_task(ex: Executor) -> None:
    """N2 Two actors that wait for each other through a task get ``DeadlockError``."""

    class Link:
        def ask(self, other: Any, me: Any) -> Any:
            return polyexec.current().submit(lambda: other.back(me).result()).result()

        def back(self, other: Any) -> Any:
            return other.get().result()

        def get(self) -> int:
            return 5

    first, second = ex.actor(Link), ex.actor(Link)
    assert isinstance(error_of(first.ask(second, first)), polyexec.DeadlockError)
    assert [first.get().result(LIMIT), second.get().result(LIMIT)] == [5, 5]


@clause("N2", "A7", "R11")
def test_a_method_that_reserves_what_its_caller_holds(ex: Executor) -> None:
    """N2 A method waits for bundles that its caller has reserved, who waits for it: ``DeadlockError``."""
    require(ex, license=1)

    class Reserving:
        def reserve(self) -> str:
            with polyexec.current().reserve([{"resources": {"license": 1}}]):
                return "reserved"

    def hold(handle: Any) -> str:
        with polyexec.current().reserve([{"resources": {"license": 1}}]):
            return str(handle.reserve().result())

    actor = ex.actor(Reserving)
    assert isinstance(error_of(ex.submit(hold, actor)), polyexec.DeadlockError)
    assert actor.reserve().result(LIMIT) == "reserved"


@clause("N2", "A6", "A7")
@pytest.mark.parametrize("keeps", [True, False])
def test_an_actor_that_a_waiting_task_keeps(ex: Executor, keeps: bool) -> None:
    """N2 What an actor holds comes free when its last handle goes: not while who has that waits for what it holds."""
    require(ex, license=1)
    licensed = {"cpus": 0, "resources": {"license": 1}}

    class Holder:
        def get(self) -> int:
            return 5

    def wait_for_the_license() -> tuple[int, int]:
        actor = polyexec.current().options(**licensed).actor(Holder)
        got = actor.get().result()
        if not keeps:
            del actor
        return got, polyexec.current().options(**licensed).submit(int).result()

    future = ex.submit(wait_for_the_license)
    if keeps:
        assert isinstance(error_of(future), polyexec.DeadlockError)
    else:
        assert future.result(LIMIT) == (5, 0)
    assert ex.options(**licensed).submit(int).result(LIMIT) == 0


@clause("N2", "A6", "A7")
def test_an_actor_that_the_driver_keeps_may_end(ex: Executor, marks: Marks, target: Target) -> None:
    """N2 A task waits for what an actor holds whose handle the driver has: no deadlock, for that may be dropped."""
    if target.capabilities.inline:
        return
    require(ex, license=1)
    licensed = {"cpus": 0, "resources": {"license": 1}}

    class Holder:
        def get(self) -> int:
            return 5

    def wait_for_the_license() -> int:
        marks.add("waiting")
        return int(polyexec.current().options(**licensed).submit(int).result())

    actor = ex.options(**licensed).actor(Holder)
    assert actor.get().result(LIMIT) == 5
    future = ex.submit(wait_for_the_license)
    marks.wait_for("waiting")
    assert ex.wait([future], timeout=0.3) == ([], [future])
    del actor
    assert future.result(LIMIT) == 0


@clause("N2", "A1")
def test_a_coroutine_that_blocks_its_own_loop(ex: Executor) -> None:
    """N2 A method that blocks the loop of its actor, and waits for another call of it, gets ``DeadlockError``."""

    class Blocking:
        async def ask(self, me: Any) -> Any:
            return me.get().result()

        def ask_plainly(self, me: Any) -> Any:
            return me.get().result()

        async def get(self) -> int:
            return 5

    actor = ex.actor(Blocking)
    for ask in (actor.ask, actor.ask_plainly):
        assert isinstance(error_of(ask(actor)), polyexec.DeadlockError)
    assert actor.get().result(LIMIT) == 5


@alone
@clause("F9", "A6", "G3", "R11")
@pytest.mark.parametrize("cancels", [False, True], ids=["waits", "cancels"])
def test_close_with_everything_at_once(
    opened: Callable[..., AbstractContextManager[Executor]], marks: Marks, gate: Gate, target: Target, cancels: bool
) -> None:
    """F9 ``close`` ends with actors, paused streams, reservations, and calls that wait for tasks without room."""
    with opened(workers=2) as ex:
        counter, keeper = ex.actor(actors.Counter), ex.actor(actors.Worker)
        stream = ex.options(buffer=1).stream(bodies.count_for_ever, marks)
        next(stream)
        keeper.keep([counter]).result(LIMIT)
        gang = ex.reserve([{"cpus": 1}, {"cpus": 1}])
        inner = gang[0].options(cpus=1).actor(actors.Counter)
        assert inner.add().result(LIMIT) == 1
        waiting: Any = [] if target.capabilities.inline else [counter.add(ex.submit(bodies.add, 1, 2))]
        closing = threading.Thread(target=ex.close, kwargs={"cancel_pending": cancels}, daemon=True)
        closing.start()
        closing.join(LIMIT)
        assert not closing.is_alive(), "close hangs"
        for future in waiting:
            assert future.cancelled() if cancels else future.result(0) == 3
        assert marks.count("finally") == 1
        del gang, stream


@alone
@clause("F9", "A6", "G3", "R11")
def test_an_executor_that_is_never_closed(driver: Driver, marks: Marks) -> None:
    """F9 A program that ends without ``close`` finishes its tasks, and ends its actors and streams, silently."""
    ended = driver.run(_UNCLOSED, marks.path)
    assert (ended.code, ended.errors) == (0, "")
    assert marks.count("called") == 1


_UNCLOSED = """
    import itertools, sys
    import polyexec

    class Noting:
        def note(self, path, value):
            with open(path, "a") as file:
                file.write(f"called {value}\\n")

    if __name__ == "__main__":
        ex = polyexec.connect(sys.argv[1])
        noting = ex.actor(Noting)
        stream = ex.options(buffer=1).stream(itertools.count)
        next(stream)
        gang = ex.reserve([{"cpus": 1}])
        noting.note(sys.argv[2], ex.options(cpus=0).submit(int, 5))
"""

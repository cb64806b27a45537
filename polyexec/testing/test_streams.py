"""Chapter G: streams."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import polyexec
from polyexec import Executor, Future, Stream
from polyexec.testing import bodies
from polyexec.testing.executors import end, idle
from polyexec.testing.helpers import (
    LIMIT,
    require,
    require_processes,
    require_shared_memory,
    text_of,
)
from polyexec.testing.marks import alone, clause
from polyexec.testing.places import held_for, read_and_written
from polyexec.testing.target import Target
from polyexec.testing.tools import Gate, Marks, eventually, never

_LARGE = 4_000_000
"""Numbers in an array of 32 MB."""


def values(stream: Stream[Any]) -> list[Any]:
    """Read a stream to its end."""
    return [future.result(LIMIT) for future in stream]


def within_limit(action: Callable[[], Any]) -> Any:
    """Do what waits without a time limit of its own, in a thread that has one; give its value or raise its error."""
    told: list[Any] = []

    def act() -> None:
        try:
            told.extend((action(), None))
        except BaseException as error:
            told.extend((None, error))

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    thread.join(LIMIT)
    assert told, f"not within {LIMIT:g} s"
    if told[1] is not None:
        raise told[1]
    return told[0]


@clause("G1")
def test_items_arrive_before_the_task_ends(ex: Executor, new_gate: Callable[[], Gate]) -> None:
    """G1 Items arrive while the generator goes on, in order, each as a Future that is done."""
    gate = new_gate()

    def counted() -> Iterator[int]:
        yield from range(3)
        gate.wait()
        yield 3

    stream = ex.stream(counted)
    first = [next(stream) for _ in range(3)]
    assert all(isinstance(future, Future) and future.done() and future.attempts == 1 for future in first)
    assert [future.result(0) for future in first] == [0, 1, 2]
    assert not stream.done()
    gate.open()
    assert values(stream) == [3]
    eventually(stream.done, "the task has ended")
    assert list(stream) == []


@clause("G1")
def test_items_of_all_kinds_keep_their_order(ex: Executor) -> None:
    """G1 Small and large items, arrays, Futures and exceptions come in the order in which they were given."""

    def mixed() -> Iterator[Any]:
        buffer = np.zeros(100_000)
        for number in range(4):
            buffer[:] = number
            yield number
            yield np.full(3, number)
            yield buffer
            yield [polyexec.current().submit(bodies.add, number, 1)]
            yield b"x" * 200_000 * number
            yield ValueError(number)

    found = values(ex.options(buffer=4).stream(mixed))
    assert len(found) == 24
    for number in range(4):
        small, few, many, made, text, error = found[6 * number : 6 * number + 6]
        assert (small, list(few), len(text), error.args) == (number, [number] * 3, 200_000 * number, (number,))
        assert (many == number).all()
        assert made[0].result(LIMIT) == number + 1


@clause("G1")
def test_any_iterable_goes(ex: Executor) -> None:
    """G1 The function may be a generator, asynchronous too, or return any iterable; what has no items is an error."""

    async def stepwise(count: int) -> Any:
        for number in range(count):
            await asyncio.sleep(0)
            yield number

    assert values(ex.stream(range, 40)) == list(range(40))
    assert values(ex.stream(iter, "abc")) == ["a", "b", "c"]
    assert values(ex.stream(list)) == []
    assert values(ex.stream(stepwise, 3)) == [0, 1, 2]
    with pytest.raises(polyexec.SpecificationError, match="stream"):
        next(ex.stream(bodies.give, 5))


@clause("G1")
def test_items_go_to_tasks(ex: Executor) -> None:
    """G1 The Futures of a stream are Futures like others: arguments, also inside containers, and results."""
    items = list(ex.options(buffer=2).stream(range, 4))
    assert ex.submit(bodies.add, items[1], items[3]).result(LIMIT) == 4
    assert ex.submit(bodies.ask, items).result(LIMIT) == [0, 1, 2, 3]
    assert ex.submit(lambda: items[2]).result(LIMIT).result(LIMIT) == 2
    assert ex.cancel(items[0]) is False
    assert ex.wait(items, timeout=0) == (items, [])


@clause("O4", "G1")
def test_a_stream_feeds_tasks_past_the_driver(ex: Executor, target: Target, note: Any) -> None:
    """O4 The driver neither holds nor reads nor writes large items of a stream that only tasks use."""
    require_shared_memory(target)

    def arrays(count: int, size: int) -> Iterator[Any]:
        for number in range(count):
            yield np.full(size, float(number + 1))

    def sums(size: int) -> list[float]:
        with ex.options(buffer=1).stream(arrays, 3, size) as stream:
            return [ex.submit(bodies.total_of, future).result(LIMIT) for future in stream]

    assert sums(10) == [10, 20, 30]
    if not target.capabilities.processes:
        note("trivially: tasks run in the driver's own process")
        assert sums(_LARGE) == [_LARGE, 2 * _LARGE, 3 * _LARGE]
        return
    before = read_and_written()
    found, held = held_for(lambda: sums(_LARGE))
    moved = read_and_written() - before
    assert found == [_LARGE, 2 * _LARGE, 3 * _LARGE]
    assert held < 4 * _LARGE, f"the driver held {held >> 20} MiB of items of {8 * _LARGE >> 20} MiB"
    assert moved < 4 * _LARGE, f"the driver read and wrote {moved >> 20} MiB for items of {8 * _LARGE >> 20} MiB"


@clause("G1")
def test_streams_in_tasks(ex: Executor) -> None:
    """G1 A task reads a stream; a generator reads another one."""

    def doubled(count: int) -> Iterator[Any]:
        for future in polyexec.current().options(buffer=2).stream(range, count):
            yield 2 * future.result()

    def read(count: int) -> tuple[list[Any], Any]:
        executor = polyexec.current()
        items = list(executor.options(buffer=3).stream(doubled, count))
        return [item.result() for item in items], executor.submit(bodies.add, items[0], items[1]).result()

    assert ex.submit(read, 10).result(LIMIT) == ([2 * number for number in range(10)], 2)


@clause("G1", "R6")
def test_a_stream_with_one_worker(single: Executor) -> None:
    """G1 With one worker the reader submits tasks while the generator is paused, in the driver and in a task."""

    def read(count: int) -> list[int]:
        executor = polyexec.current()
        stream = executor.options(buffer=2).stream(range, count)
        return [executor.submit(bodies.add, future, 1).result() for future in stream]

    assert single.submit(read, 6).result(LIMIT) == list(range(1, 7))
    stream = single.options(buffer=2).stream(range, 6)
    assert [single.submit(bodies.add, future, 1).result(LIMIT) for future in stream] == list(range(1, 7))


@clause("G1")
def test_threads_share_a_stream(ex: Executor) -> None:
    """G1 Several threads read one stream; each item goes to one of them, and all learn of the end."""
    stream = ex.options(buffer=4).stream(range, 200)
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.extend(values(stream)), daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert sorted(found) == list(range(200))


@clause("G1")
def test_a_stream_in_asyncio(ex: Executor, marks: Marks) -> None:
    """G1 ``async for`` gives the same, without blocking the loop; leaving its block stops the generator."""

    async def read() -> tuple[list[int], int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        found = [await future async for future in ex.options(buffer=2).stream(range, 5)]
        async with ex.options(buffer=2).stream(bodies.count_for_ever, marks) as stream:
            found.append(await (await anext(stream)))
        ticking.cancel()
        with pytest.raises(ZeroDivisionError):
            [future async for future in ex.stream(bodies.divide_down, 1)]
        return found, ticks

    found, ticks = within_limit(lambda: asyncio.run(read()))
    assert found == [0, 1, 2, 3, 4, 0]
    assert ticks > 0
    marks.wait_for("finally")


@clause("G1")
def test_a_stream_stays_where_it_was_made(ex: Executor) -> None:
    """G1 A Stream as an argument is refused, with advice."""
    with ex.stream(range, 3) as stream, pytest.raises(polyexec.SerializationError) as caught:
        ex.submit(bodies.give, [stream])
    assert "Future" in str(caught.value)


@clause("G1")
def test_options_of_a_stream(ex: Executor, marks: Marks) -> None:
    """G1 Options mean for a stream what they mean for a task: name, env, timeout, retries up to the first item."""

    @polyexec.task(name="decorated", env={"POLYEXEC_TESTING_STREAM": "on"})
    def variables() -> Any:
        yield from bodies.variables("POLYEXEC_TESTING_STREAM")

    stream = ex.stream(variables)
    assert (stream.name, values(stream)) == ("decorated", ["on"])
    retrying = ex.options(retries=3, retry_on=(ValueError,), name="retried")
    stream = retrying.stream(bodies.fail_before_item, marks, 0)
    assert values(stream) == [0]
    assert stream.attempts == 2
    stream = retrying.stream(bodies.fail_before_item, marks, 1)
    assert next(stream).result(LIMIT) == 0
    with pytest.raises(ValueError, match="item 1"):
        next(stream)
    assert stream.attempts == 1
    stream = ex.options(timeout=0.3).stream(bodies.count_for_ever, marks)
    assert next(stream).result(LIMIT) == 0
    with pytest.raises(polyexec.TaskTimeout):
        within_limit(lambda: values(stream) or values(stream))
    with pytest.raises(polyexec.SpecificationError, match="num_returns"):
        ex.options(num_returns=2).stream(range, 2)


@clause("G1")
def test_a_stream_with_dependencies(ex: Executor) -> None:
    """G1 A Future as an argument is replaced by its value; if it fails, so does the stream."""
    assert values(ex.stream(range, ex.submit(bodies.add, 1, 2))) == [0, 1, 2]
    stream = ex.stream(range, ex.submit(bodies.fail, ValueError("needed")))
    with pytest.raises(ValueError, match="needed") as caught:
        next(stream)
    assert "range" in text_of(caught.value)


@clause("G2")
def test_at_most_buffer_items_wait_unread(ex: Executor, marks: Marks, target: Target) -> None:
    """G2 The generator is paused when ``buffer`` items wait unread, and goes on as they are read."""
    buffer = 0 if target.capabilities.inline else 3
    with ex.options(buffer=3).stream(bodies.count_for_ever, marks) as stream:
        for taken in range(1, 8):
            assert next(stream).result(LIMIT) == taken - 1
            eventually(lambda: marks.count("item") == taken + buffer, lambda: f"{taken} + {buffer}: {marks.lines()}")  # noqa: B023
        never(lambda: marks.count("item") > 7 + buffer, "more than buffer items were made ahead", during=0.1)


@clause("G2")
def test_a_task_reads_at_most_buffer_items_ahead(ex: Executor, marks: Marks, target: Target) -> None:
    """G2 The same for a reader in a task."""

    def read() -> list[int]:
        counts = []
        with polyexec.current().options(buffer=2).stream(bodies.count_for_ever, marks) as stream:
            for taken in range(1, 5):
                next(stream)
                eventually(lambda: marks.count("item") >= taken + buffer)  # noqa: B023
                counts.append(marks.count("item") - taken)
        return counts

    require(ex, cpus=2)
    buffer = 0 if target.capabilities.inline else 2
    assert ex.submit(read).result(LIMIT) == [buffer] * 4


@clause("G2")
def test_a_paused_generator_lends_its_cpus(ex: Executor, marks: Marks) -> None:
    """G2 While it is paused its cpus, and a place to run, are there for others; what else it holds is not."""
    require(ex, license=1)
    total = ex.resources().total
    with ex.options(cpus=2, resources={"license": 1}, buffer=1).stream(bodies.count_for_ever, marks) as stream:
        next(stream)
        eventually(lambda: ex.resources().available.cpus == total.cpus, "its cpus are lent")
        assert ex.resources().available.custom["license"] == total.custom["license"] - 1
        assert list(ex.map(bodies.add, range(10), range(10))) == [2 * number for number in range(10)]


@clause("G2", "N2")
def test_a_stream_that_can_never_begin(ex: Executor) -> None:
    """G2 Who reads a stream that needs what the reader itself holds gets ``DeadlockError``."""
    require(ex, license=1)

    def read() -> str:
        try:
            next(polyexec.current().options(resources={"license": 1}).stream(range, 3))
        except polyexec.DeadlockError as error:
            return f"deadlock: {error}"
        return "no deadlock"

    answer = ex.options(resources={"license": 1}).submit(read).result(LIMIT)
    assert answer.startswith("deadlock: ")
    assert "range" in answer


@clause("G3")
@pytest.mark.parametrize("buffer", [1, 16])
def test_an_error_comes_after_the_items_before_it(ex: Executor, buffer: int) -> None:
    """G3 What the generator raises is raised at its place, after all items that came before it, and again."""
    stream = ex.options(buffer=buffer, name="divider").stream(bodies.divide_down, 3)
    assert [next(stream).result(LIMIT) for _ in range(3)] == [2, 3, 6]
    for _ in range(2):
        with pytest.raises(ZeroDivisionError) as caught:
            next(stream)
    assert "divide_down" in text_of(caught.value)


@clause("G3")
def test_an_item_that_cannot_be_serialised(ex: Executor, marks: Marks) -> None:
    """G3 An item that cannot be serialised fails the stream at its place, and the generator's ``finally`` runs."""

    def locks() -> Iterator[Any]:
        try:
            yield 0
            yield [threading.Lock()]
        finally:
            marks.add("finally")

    stream = ex.options(buffer=1).stream(locks)
    assert next(stream).result(LIMIT) == 0
    with pytest.raises(polyexec.SerializationError) as caught:
        next(stream)
    assert caught.value.stage == "result"
    marks.wait_for("finally")


@clause("G3", "F3")
def test_a_worker_dies_under_a_generator(ex: Executor, target: Target, marks: Marks) -> None:
    """G3 If its worker dies the items that have come are good, and ``WorkerDied`` is raised behind them."""
    require_processes(target)

    def dying(gate: Marks) -> Iterator[Any]:
        yield 1
        yield np.ones(100_000)
        gate.wait_for("go")
        bodies.die(marks, "SIGKILL")

    stream = ex.options(name="dying").stream(dying, marks)
    first, second = next(stream), next(stream)
    marks.add("go")
    with pytest.raises(polyexec.WorkerDied) as caught:
        next(stream)
    assert caught.value.task == "dying"
    assert first.result(LIMIT) == 1
    assert second.result(LIMIT).sum() == 100_000


@clause("G3")
@pytest.mark.parametrize("how", ["close", "with", "drop", "break", "raise"])
def test_closing_a_paused_generator(ex: Executor, marks: Marks, how: str) -> None:
    """G3 Closing the iterator, in whatever way, stops a paused generator at its ``yield``; its ``finally`` runs."""
    stream: Any = ex.options(buffer=2).stream(bodies.count_for_ever, marks)
    assert next(stream).result(LIMIT) == 0
    if how == "close":
        stream.close()
        stream.close()
        assert list(stream) == []
    elif how == "with":
        with stream:
            next(stream)
    elif how == "raise":
        with pytest.raises(KeyError), stream:
            raise KeyError
    elif how == "break":
        for _ in stream:
            break
    stream = None
    gc.collect()
    marks.wait_for("finally")
    assert marks.lines()[-1] == "finally GeneratorExit"
    assert marks.count("finally") == 1


def _begin_and_end(marks: Marks, number: int) -> Iterator[int]:
    try:
        marks.add(f"begin {number}")
        while True:
            yield number
    finally:
        marks.add(f"end {number}")


@clause("G3")
def test_streams_that_nobody_has_read_are_dropped(ex: Executor, marks: Marks) -> None:
    """G3 Dropping a stream stops its generator also if it has not begun, or was submitted just before."""
    for number in range(30):
        ex.stream(_begin_and_end, marks, number)
    ex.submit(int).result(LIMIT)

    def all_ended() -> bool:
        # One may be stopped just before it leaves its first mark.
        return set(marks.values("begin")) <= set(marks.values("end"))

    eventually(all_ended, lambda: f"not ended: {set(marks.values('begin')) - set(marks.values('end'))}")


@clause("G3", "C2")
def test_closing_a_running_generator(ex: Executor, marks: Marks, target: Target) -> None:
    """G3 A generator that runs is interrupted as a task is, and its ``finally`` runs."""

    def busy() -> Iterator[int]:
        yield 0
        bodies.beat(marks)

    stream = ex.stream(busy)
    assert next(stream).result(LIMIT) == 0
    if target.capabilities.inline:
        # There it runs only while somebody waits.
        thread = threading.Thread(target=lambda: list(stream), daemon=True)
        thread.start()
    marks.wait_for("beat")
    stream.close()
    marks.wait_for("end")
    assert marks.count("saw Interrupted") == 1
    assert list(stream) == []


@clause("G3")
def test_a_generator_cleans_up_by_tasks(ex: Executor, marks: Marks) -> None:
    """G3 The ``finally`` of a paused generator may submit, and wait, and runs in the generator's process."""

    def careful() -> Iterator[int]:
        try:
            yield 0
            yield 1
        finally:
            marks.add(f"cleaned {polyexec.current().submit(bodies.add, 20, 1).result()}")

    with ex.options(buffer=1).stream(careful) as stream:
        assert next(stream).result(LIMIT) == 0
    marks.wait_for("cleaned 21")


@clause("G3", "C2")
@pytest.mark.parametrize("where", ["driver", "task"])
def test_cancelling_a_stream(ex: Executor, marks: Marks, where: str) -> None:
    """G3 ``cancel`` leaves the unread items, then raises ``TaskCancelled``; the generator's ``finally`` runs."""

    def cancel(executor: Executor) -> Any:
        stream = executor.options(buffer=2, name="counting").stream(bodies.count_for_ever, marks)
        first = next(stream).result()
        told = stream.cancel()
        found = []
        try:
            while True:
                found.append(next(stream).result())
        except polyexec.TaskCancelled as error:
            return first, told, found == list(range(1, len(found) + 1)), len(found) <= 3, error.task

    expected = (0, True, True, True, "counting")
    if where == "driver":
        assert within_limit(lambda: cancel(ex)) == expected
    else:
        assert ex.submit(lambda: cancel(polyexec.current())).result(LIMIT) == expected
    marks.wait_for("finally")


@clause("G3", "C3")
def test_killing_a_stream(ex: Executor, marks: Marks, target: Target) -> None:
    """G3 ``cancel(force=True)`` ends a generator whatever it does."""
    require_processes(target)

    def stuck() -> Iterator[int]:
        yield 0
        bodies.sleep_in_c(marks)

    stream = ex.stream(stuck)
    assert next(stream).result(LIMIT) == 0
    marks.wait_for("start")
    assert stream.cancel(force=True) is True
    with pytest.raises(polyexec.TaskCancelled):
        next(stream)


@clause("G3", "C5")
def test_a_stream_ends_with_the_task_that_reads_it(ex: Executor, marks: Marks) -> None:
    """G3 A stream that a task has made and not read to its end is stopped when the task ends."""

    def leave() -> int:
        first = next(polyexec.current().options(buffer=1).stream(bodies.count_for_ever, marks)).result()
        marks.add("left")
        return int(first)

    assert ex.submit(leave).result(LIMIT) == 0
    marks.wait_for("finally")


@alone
@clause("G3", "F9")
def test_close_with_a_stream_that_nobody_reads(target: Target, marks: Marks) -> None:
    """G3 ``close`` of the executor stops the streams that are not at their end; nothing hangs, nothing is left."""
    ex = polyexec.connect(target.with_keys(workers=2))
    try:
        stream = ex.options(buffer=2).stream(bodies.count_for_ever, marks)
        assert next(stream).result(LIMIT) == 0
        within_limit(ex.close)
        assert marks.count("finally") == 1
        with pytest.raises(polyexec.ExecutorClosed):
            list(stream)
        stream.close()
        with pytest.raises(polyexec.ExecutorClosed):
            ex.stream(range, 3)
    finally:
        end(ex)


@clause("S11")
def test_num_returns_of_a_generator(ex: Executor, marks: Marks) -> None:
    """S11 ``num_returns=n`` takes a generator's n items; too few or too many fail all, and none is made for ever."""
    three: Any = ex.options(num_returns=3)
    assert [future.result(LIMIT) for future in three.submit(bodies.divide_down, 3, 1)] == [2, 3, 6]
    for count, found in ((2, "2 values"), (4, "more than 3")):
        errors = [future.exception(LIMIT) for future in three.submit(iter_range, count)]
        assert all("num_returns=3" in str(error) and found in str(error) for error in errors), errors
    errors = [future.exception(LIMIT) for future in three.submit(bodies.count_for_ever, marks)]
    assert all(isinstance(error, polyexec.SpecificationError) for error in errors)
    assert (marks.count("item"), marks.count("finally")) == (4, 1)
    assert_still_works(ex)


def iter_range(count: int) -> Iterator[int]:
    """Give numbers, and no length."""
    yield from range(count)


def assert_still_works(ex: Executor) -> None:
    """Check that the executor goes on."""
    assert ex.submit(bodies.add, 1, 1).result(LIMIT) == 2
    eventually(lambda: idle(ex), "everything is available again")

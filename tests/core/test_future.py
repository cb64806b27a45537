"""Futures, as a user of ``concurrent.futures`` expects them, on threads."""

from __future__ import annotations

import asyncio
import concurrent.futures
import copy
import gc
import logging
import pickle
import threading
from queue import SimpleQueue
from typing import Any

import pytest

import polyexec
from polyexec import Executor, Future

from .gates import LIMIT, Gate, pass_through


def fail(text: str = "text") -> Any:
    raise ValueError(text)


def test_result(ex: Executor) -> None:
    future = ex.submit(divmod, 7, 2)
    assert future.result(LIMIT) == (3, 1)
    assert future.result(0) == (3, 1)
    assert future.exception() is None
    assert future.done()
    assert not future.running()
    assert not future.cancelled()
    assert future.attempts == 1


def test_exception(ex: Executor) -> None:
    """F1: raised as often as it is asked for."""
    future = ex.submit(fail)
    for _ in range(2):
        with pytest.raises(ValueError, match="text"):
            future.result(LIMIT)
    assert isinstance(future.exception(), ValueError)
    assert future.done()
    assert not future.cancelled()


@pytest.mark.parametrize("timeout", [0, 0.01, -1])
def test_timeout_leaves_the_task_running(ex: Executor, gate: Gate, timeout: float) -> None:
    """W5."""
    future = ex.submit(pass_through, gate, 5)
    for method in (future.result, future.exception):
        with pytest.raises(TimeoutError, match="'pass_through' has not ended"):
            method(timeout)
    gate.wait()
    assert future.running()
    assert not future.done()
    gate.open()
    assert future.result(LIMIT) == 5


def test_cancelled(ex: Executor, gate: Gate) -> None:
    """C1, C2: both ``result`` and ``exception`` raise."""
    futures = [ex.submit(pass_through, gate) for _ in range(4)]
    gate.wait()
    assert [future.cancel() for future in reversed(futures)] == [True] * 4
    for future in futures:
        for method in (future.result, future.exception):
            with pytest.raises(concurrent.futures.CancelledError):
                method(LIMIT)
        assert future.cancelled()
        assert future.done()
        assert not future.running()
        assert not future.cancel()


def test_a_task_that_raises_the_error_of_a_cancel(ex: Executor) -> None:
    """C8: its Future is not cancelled."""
    future = ex.submit(_raise_cancelled)
    assert isinstance(future.exception(LIMIT), polyexec.TaskCancelled)
    assert not future.cancelled()


def _raise_cancelled() -> None:
    raise polyexec.TaskCancelled("another task")


def test_a_callback_runs_once_with_the_future(ex: Executor, gate: Gate) -> None:
    called: SimpleQueue[tuple[Any, str]] = SimpleQueue()
    future = ex.submit(pass_through, gate)
    for _ in range(2):
        future.add_done_callback(lambda done: called.put((done, threading.current_thread().name)))
    gate.open()
    for _ in range(2):
        done, thread = called.get(timeout=LIMIT)
        assert done is future
        assert thread == "polyexec-callbacks"
    future.result(LIMIT)
    assert called.empty()


def test_a_callback_of_a_done_future_runs_at_once_and_here(ex: Executor) -> None:
    future = ex.submit(int)
    future.result(LIMIT)
    called: list[tuple[Any, threading.Thread]] = []
    future.add_done_callback(lambda done: called.append((done, threading.current_thread())))
    assert called == [(future, threading.current_thread())]


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt])
def test_a_callback_that_raises_is_logged(
    ex: Executor, gate: Gate, kind: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """S16: it harms neither those behind it nor the caller."""
    called: SimpleQueue[str] = SimpleQueue()

    def bad(_: object) -> None:
        raise kind("bad callback")

    future = ex.submit(pass_through, gate)
    future.add_done_callback(bad)
    future.add_done_callback(lambda _: called.put("next"))
    gate.open()
    assert called.get(timeout=LIMIT) == "next"
    future.add_done_callback(bad)
    assert [record.levelno for record in caplog.records if "a callback of" in record.message] == [logging.ERROR] * 2


def test_submit_and_wait_in_a_callback(ex: Executor) -> None:
    """S8, W6."""
    results: SimpleQueue[int] = SimpleQueue()
    ex.submit(int).add_done_callback(lambda _: results.put(ex.submit(abs, -3).result(LIMIT)))
    assert results.get(timeout=LIMIT) == 3


def test_await(ex: Executor, gate: Gate) -> None:
    """W6: the event loop goes on meanwhile."""

    async def main() -> list[Any]:
        future = ex.submit(pass_through, gate, 1)
        waiting = asyncio.ensure_future(_awaited(future))
        await asyncio.sleep(0)
        gate.open()
        return [await waiting, await ex.submit(abs, -2), await future]

    assert asyncio.run(main()) == [1, 2, 1]


async def _awaited(future: Future[Any]) -> Any:
    return await future


def test_await_raises_what_the_task_raised(ex: Executor) -> None:
    with pytest.raises(ValueError, match="text"):
        asyncio.run(_awaited(ex.submit(fail)))


def test_an_awaiting_that_is_given_up(ex: Executor, gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    """W5: the task runs on, also when the event loop is gone before it ends; nobody is bothered with that."""
    future = ex.submit(pass_through, gate, 5)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(_awaited(future), 0.01)

    asyncio.run(main())
    told = threading.Event()
    future.add_done_callback(lambda _: told.set())
    gate.open()
    assert told.wait(LIMIT)
    assert future.result(LIMIT) == 5
    assert caplog.records == []


def test_gather(ex: Executor) -> None:
    async def main() -> list[int]:
        return list(await asyncio.gather(*(_awaited(ex.submit(abs, -number)) for number in range(20))))

    assert asyncio.run(main()) == list(range(20))


def test_repr(ex: Executor, gate: Gate) -> None:
    """It says which task, and how it stands."""
    first, second = ex.submit(pass_through, gate), ex.submit(fail)
    gate.wait()
    assert "'pass_through': running" in repr(first)
    second.exception(LIMIT)
    assert "'fail': error" in repr(second)
    assert first.cancel()
    ex.wait([first], timeout=LIMIT)
    assert "'pass_through': cancelled" in repr(first)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda future: pickle.loads(pickle.dumps(future))])
def test_copies_stand_for_the_same_value(ex: Executor, copied: Any) -> None:
    """N3, O5: each keeps the value."""
    twin = copied(ex.put([1, 2]))
    gc.collect()
    assert twin.result(LIMIT) == [1, 2]
    assert ex.submit(len, twin).result(LIMIT) == 2


def use(inner: list[Future[Any]], executor: Executor) -> Any:
    """Use what was inside of a container, on a worker."""
    return inner[0].result(LIMIT) + executor.submit(abs, -4).result(LIMIT)


def test_futures_and_executors_are_arguments(ex: Executor) -> None:
    """S5: a Future in a container stays one; an executor is the same executor."""
    assert ex.submit(use, [ex.put(3)], ex).result(LIMIT) == 7
    assert ex.options(priority=1).submit(use, [ex.submit(abs, -3)], ex.options(cpus=0)).result(LIMIT) == 7


def test_a_future_of_a_value_that_is_gone(ex: Executor) -> None:
    """O5: its serialised form keeps nothing alive."""
    data = pickle.dumps(ex.put(5))
    ex.resources()
    gc.collect()
    ex.resources()
    with pytest.raises(polyexec.ObjectLost):
        pickle.loads(data)


def test_a_future_without_its_executor() -> None:
    with polyexec.connect("threads?workers=1") as ex:
        data = pickle.dumps(ex.put(5))
    del ex
    gc.collect()
    with pytest.raises(polyexec.SpecificationError, match="another executor"):
        pickle.loads(data)


def test_a_result_can_be_asked_for_after_close() -> None:
    """S9: what was done is not lost; new tasks are refused."""
    with polyexec.connect("threads?workers=1") as ex:
        future = ex.submit(abs, -3)
    assert future.result(0) == 3
    with pytest.raises(polyexec.ExecutorClosed):
        ex.submit(abs, -3)

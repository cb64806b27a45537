"""Chapter F: values and exceptions that misbehave on their way."""

from __future__ import annotations

import threading

import pytest

import polyexec
from polyexec import Executor
from polyexec.testing import bodies
from polyexec.testing.helpers import LIMIT, require_processes, text_of
from polyexec.testing.hostile import (
    BadRebuild,
    BadReduce,
    BadText,
    Bomb,
    Killer,
    Rebuilt,
    Unmakeable,
    WithLock,
    go_deep,
    make,
    raise_chain,
)
from polyexec.testing.marks import clause
from polyexec.testing.target import Target
from polyexec.testing.tools import Marks

_CAP = 2_000_000


def _healthy(ex: Executor) -> bool:
    return [ex.submit(bodies.add, number, 0).result(LIMIT) for number in range(4)] == [0, 1, 2, 3]


@clause("F2")
@pytest.mark.parametrize("kind", [WithLock, Unmakeable])
def test_an_exception_that_cannot_be_rebuilt(ex: Executor, kind: type[Exception]) -> None:
    """F2 It arrives as ``RemoteError`` with the type's name, the message and the traceback's text."""

    def body() -> None:
        raise make(kind)

    error = ex.submit(body).exception(LIMIT)
    assert isinstance(error, polyexec.RemoteError)
    assert kind.__name__ in error.type_name
    assert error.message == "its message"
    assert "in body" in error.traceback
    assert _healthy(ex)


@clause("F2")
@pytest.mark.parametrize("kind", [BadReduce, BadRebuild])
def test_an_exception_whose_own_way_of_travelling_fails(ex: Executor, kind: type[Exception]) -> None:
    """F2 It arrives as it was, if there is another way to rebuild it, or as ``RemoteError``."""

    def body() -> None:
        raise kind("its message")

    error = ex.submit(body).exception(LIMIT)
    assert isinstance(error, (kind, polyexec.RemoteError))
    assert kind.__name__ in (error.type_name if isinstance(error, polyexec.RemoteError) else type(error).__name__)
    assert "its message" in str(error)
    assert _healthy(ex)


@clause("F2")
def test_an_exception_of_a_class_made_in_the_task(ex: Executor) -> None:
    """F2 An exception whose class only exists in the task arrives, by type or as ``RemoteError``, with its text."""

    def body() -> None:
        local = type("MadeInTheTask", (ValueError,), {})
        raise local("its message")

    error = ex.submit(body).exception(LIMIT)
    assert "MadeInTheTask" in text_of(error)
    assert "its message" in str(error)


@clause("F12")
def test_recursion(ex: Executor) -> None:
    """F12 Infinite recursion fails its task alone."""
    assert isinstance(ex.submit(go_deep).exception(LIMIT), RecursionError)
    assert _healthy(ex)


@clause("F12")
def test_an_exception_without_text(ex: Executor) -> None:
    """F12 An exception whose ``__str__`` raises fails its task alone, and its type is told."""
    error = ex.submit(bodies.fail, BadText()).exception(LIMIT)
    assert isinstance(error, BadText) or (isinstance(error, polyexec.RemoteError) and "BadText" in error.type_name)
    assert _healthy(ex)


@clause("F12")
def test_a_huge_message(ex: Executor) -> None:
    """F12 A message of 20 MB is capped, and says what was left out."""

    def body() -> None:
        raise ValueError("begin" + "x" * 20_000_000)

    error = ex.submit(body).exception(LIMIT)
    assert isinstance(error, (ValueError, polyexec.RemoteError))
    text = text_of(error)
    assert "begin" in text
    assert "omitted" in text
    assert len(text) < _CAP
    assert len(repr(error)) < _CAP
    assert _healthy(ex)


@clause("F12")
def test_a_long_chain_of_causes(ex: Executor) -> None:
    """F12 A chain of 5,000 causes is cut, and says so."""
    error = ex.submit(raise_chain, 5000).exception(LIMIT)
    assert isinstance(error, (ValueError, polyexec.RemoteError))
    text = text_of(error)
    assert "link 4999" in text
    assert len(text) < _CAP
    assert "omitted" in text or "innermost" in text
    assert _healthy(ex)


@clause("F12")
@pytest.mark.parametrize("error", ["ValueError", "KeyboardInterrupt", "exit"])
def test_an_argument_that_cannot_be_rebuilt(ex: Executor, marks: Marks, error: str, target: Target) -> None:
    """F12 Its task fails with ``SerializationError`` and never runs; the worker goes on."""
    if target.capabilities.shares_arguments:
        pytest.skip("arguments are not serialised")
    found = ex.options(name="victim").submit(bodies.mark, marks, Bomb(error)).exception(LIMIT)
    if error == "KeyboardInterrupt":
        assert isinstance(found, (polyexec.SerializationError, polyexec.RemoteError))
    else:
        assert isinstance(found, polyexec.SerializationError)
        assert (found.stage, found.task) == ("argument-load", "victim")
    assert marks.lines() == []
    assert _healthy(ex)


@clause("F12")
@pytest.mark.parametrize("error", ["ValueError", "exit"])
def test_a_result_that_cannot_be_rebuilt(ex: Executor, error: str) -> None:
    """F12 ``result`` raises ``SerializationError``, the same each time; dependents fail too, nothing else does."""
    future = ex.options(name="victim").submit(Bomb, error)
    for _ in range(2):
        with pytest.raises(polyexec.SerializationError) as caught:
            future.result(LIMIT)
        assert (caught.value.stage, caught.value.task) == ("result-load", "victim")
        assert "rebuilding" in text_of(caught.value) or error == "exit"
    assert isinstance(ex.submit(bodies.give, future).exception(LIMIT), polyexec.SerializationError)
    assert _healthy(ex)


@clause("F12")
def test_a_worker_dies_rebuilding_an_argument(ex: Executor, marks: Marks, target: Target) -> None:
    """F12 An argument that kills the process in which it is rebuilt costs its task alone."""
    require_processes(target)
    error = ex.options(name="victim").submit(bodies.give, Killer()).exception(LIMIT)
    assert isinstance(error, polyexec.WorkerDied)
    assert error.task == "victim"
    assert _healthy(ex)


@clause("F12")
def test_rebuilding_happens_in_the_callers_thread(ex: Executor) -> None:
    """F12 A result is rebuilt by the thread that calls ``result``, never by one of the executor's own."""
    futures = [ex.submit(Rebuilt) for _ in range(3)]
    ex.wait(futures, timeout=LIMIT)
    Rebuilt.threads.clear()
    for future in futures:
        future.result(LIMIT)
    assert Rebuilt.threads
    assert set(Rebuilt.threads) == {threading.get_ident()}


@clause("F12")
@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 5_000_000])
def test_values_of_many_sizes_come_back_equal(ex: Executor, size: int) -> None:
    """F12 Bytes of any size go to a task and come back as they were, inside and outside containers."""
    data = bytes(range(256)) * (size // 256 + 1)
    assert ex.submit(bodies.give, data[:size]).result(LIMIT) == data[:size]
    assert ex.submit(bodies.echo, [data[:size]], key=bytearray(data[:size])).result(LIMIT) == (
        ([data[:size]],),
        {"key": data[:size]},
    )

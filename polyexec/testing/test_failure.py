"""Chapter F: exceptions, exits, retries and time limits."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
from collections.abc import Callable
from typing import Any

import pytest

import polyexec
from polyexec import Executor
from polyexec.options import TaskOptions
from polyexec.testing import bodies
from polyexec.testing.executors import idle
from polyexec.testing.helpers import LIMIT, causes_of, hold, require_processes, text_of
from polyexec.testing.marks import clause, deviation
from polyexec.testing.target import Target
from polyexec.testing.test_arguments import Holder
from polyexec.testing.tools import Gate, Marks, eventually, never
from polyexec.testing.watch import alive


class TwoArguments(Exception):
    """Passes another number of arguments to its base than it takes."""

    def __init__(self, left: Any, right: Any) -> None:
        super().__init__(f"{left} and {right}")
        self.left = left
        self.right = right


class KeywordOnly(ValueError):
    """Cannot be made from its args at all."""

    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


class Stop(BaseException):
    """Is no ``Exception``."""


def _raise_with_cause() -> None:
    try:
        os.environ["NO_SUCH_VARIABLE_OF_POLYEXEC"]
    except KeyError as inner:
        outer = ValueError("outer", 7)
        outer.detail = [1, 2]  # type: ignore[attr-defined]
        outer.add_note("a note")
        raise outer from inner


@clause("F1")
def test_an_exception_comes_as_it_was(ex: Executor) -> None:
    """F1 An exception keeps its type, args, attributes, notes and cause; the remote traceback is shown."""
    with pytest.raises(ValueError, match="outer") as caught:
        ex.submit(_raise_with_cause).result(LIMIT)
    error = caught.value
    assert type(error) is ValueError
    assert error.args == ("outer", 7)
    assert vars(error)["detail"] == [1, 2]
    assert any(type(cause) is KeyError and "NO_SUCH" in cause.args[0] for cause in causes_of(error)[1:])
    text = text_of(error)
    assert "_raise_with_cause" in text
    assert "NO_SUCH_VARIABLE_OF_POLYEXEC" in text
    assert "a note" in error.__notes__


@clause("F1")
def test_exceptions_with_arguments_of_their_own(ex: Executor) -> None:
    """F1 An exception whose ``__init__`` takes other arguments than its base keeps its type and attributes."""

    def raise_two() -> None:
        raise TwoArguments("a", 2)

    def raise_keyword() -> None:
        raise KeywordOnly(code=5)

    two = ex.submit(raise_two).exception(LIMIT)
    assert type(two) is TwoArguments
    assert (two.left, two.right, str(two)) == ("a", 2, "a and 2")
    keyword = ex.submit(raise_keyword).exception(LIMIT)
    assert type(keyword) is KeywordOnly
    assert (keyword.code, str(keyword)) == (5, "code 5")


@clause("F1")
def test_exceptions_that_have_a_meaning_elsewhere(ex: Executor) -> None:
    """F1 StopIteration, TimeoutError, CancelledError and OSError of a task's own code are failures like any other."""
    errors: list[Exception] = [
        StopIteration(5),
        TimeoutError("mine"),
        concurrent.futures.CancelledError("mine"),
        FileNotFoundError(2, "No such file", "name"),
        polyexec.TaskCancelled("other"),
    ]
    for error in errors:
        future = ex.submit(bodies.fail, error)
        found = future.exception(LIMIT)
        assert type(found) is type(error)
        assert found.args == error.args
        assert not future.cancelled()


@clause("F1")
def test_result_raises_each_time(ex: Executor) -> None:
    """F1 ``result`` raises the same each time, and ``exception`` gives it."""
    future = ex.submit(bodies.fail, ValueError("again"))
    for _ in range(3):
        with pytest.raises(ValueError, match="again") as caught:
            future.result(LIMIT)
        assert "in fail" in text_of(caught.value)
    assert repr(future.exception(LIMIT)) == repr(caught.value)


@clause("F4")
@pytest.mark.parametrize("code", [3, 0, None, "a message"])
def test_sys_exit(ex: Executor, code: Any) -> None:
    """F4 ``sys.exit`` fails its task with ``TaskExited`` and its code, and harms no worker."""
    error = ex.submit(bodies.leave, code).exception(LIMIT)
    assert isinstance(error, polyexec.TaskExited)
    assert error.code == code
    assert "leave" in error.task
    assert ex.submit(bodies.add, 1, 1).result(LIMIT) == 2


@clause("F4")
@pytest.mark.parametrize("kind", [KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, Stop])
def test_base_exceptions(ex: Executor, marks: Marks, kind: type[BaseException]) -> None:
    """F4 Any other ``BaseException`` arrives as ``RemoteError``, is never raised bare, and harms no worker."""

    def body() -> None:
        marks.add(str(os.getpid()))
        raise kind("by the task")

    future = ex.submit(body)
    error = future.exception(LIMIT)
    assert isinstance(error, polyexec.RemoteError)
    assert kind.__name__ in error.type_name
    assert error.message == "by the task"
    assert "by the task" in error.traceback
    assert not future.cancelled()
    assert alive(int(marks.lines()[0]))
    assert ex.submit(bodies.add, 1, 1).result(LIMIT) == 2


@clause("F5")
def test_a_body_starts_once_by_default(ex: Executor, marks: Marks) -> None:
    """F5 By default a failing body starts once."""

    def body() -> None:
        marks.add("start")
        raise ConnectionError("once")

    future = ex.submit(body)
    assert isinstance(future.exception(LIMIT), ConnectionError)
    assert marks.lines() == ["start"]
    assert future.attempts == 1


@clause("F5")
def test_retries_after_exceptions(ex: Executor, marks: Marks) -> None:
    """F5 ``retries`` re-runs after exceptions in ``retry_on``, as often as needed or allowed; ``attempts`` counts."""

    def body(failures: int, name: str) -> int:
        marks.add(f"start {name}")
        if marks.count(f"start {name}") <= failures:
            raise ConnectionError(name)
        return marks.count(f"start {name}")

    retried = ex.options(retries=3, retry_on=(ConnectionError,))
    mended, hopeless = retried.submit(body, 2, "mended"), retried.submit(body, 9, "hopeless")
    other = ex.options(retries=3, retry_on=KeyError).submit(body, 9, "other")
    worker_only = ex.options(retries=3).submit(body, 9, "worker-only")
    assert mended.result(LIMIT) == 3
    assert mended.attempts == 3
    assert isinstance(hopeless.exception(LIMIT), ConnectionError)
    assert hopeless.attempts == 4
    for future in (other, worker_only):
        assert isinstance(future.exception(LIMIT), ConnectionError)
        assert future.attempts == 1
    assert [marks.count(f"start {name}") for name in ("mended", "hopeless", "other", "worker-only")] == [3, 4, 1, 1]


@clause("F5")
def test_the_retry_hook(ex: Executor, marks: Marks) -> None:
    """F5 The hook ``retry`` sees error, attempt and options; it may change the options, or end the attempts."""
    asked: list[tuple[str, int, float]] = []

    def retry(error: BaseException, attempt: int, options: TaskOptions) -> TaskOptions | None:
        asked.append((str(error), attempt, options.cpus))
        return options.evolve(cpus=2, env={"ATTEMPT": str(attempt)}) if attempt < 3 else None

    def body() -> None:
        marks.add(f"start {os.environ.get('ATTEMPT')}")
        raise ConnectionError("again")

    future = ex.options(retries=9, retry_on=ConnectionError, retry=retry).submit(body)
    assert isinstance(future.exception(LIMIT), ConnectionError)
    assert asked == [("again", 1, 1), ("again", 2, 2), ("again", 3, 2)]
    assert marks.lines() == ["start None", "start 1", "start 2"]
    assert future.attempts == 3


@clause("F5")
def test_retries_after_a_worker_died(ex: Executor, marks: Marks, target: Target) -> None:
    """F5 ``retries`` re-runs after the worker died."""
    require_processes(target)
    future = ex.options(retries=2).submit(bodies.die_first, marks, 1)
    assert future.result(LIMIT) == 2
    assert future.attempts == 2
    assert len(set(marks.values("start"))) == 2


@clause("F6")
def test_timeout_ends_a_loop(ex: Executor, marks: Marks) -> None:
    """F6 ``timeout`` ends a task that is still running, raises ``TaskTimeout``, and frees what it held."""
    future = ex.options(timeout=0.2, name="slow").submit(bodies.beat, marks)
    with pytest.raises(polyexec.TaskTimeout) as caught:
        future.result(LIMIT)
    assert isinstance(caught.value, TimeoutError)
    assert (caught.value.task, caught.value.timeout) == ("slow", 0.2)
    assert not future.cancelled()
    count = marks.count("beat")
    never(lambda: marks.count("beat") != count, "the body runs on")
    eventually(lambda: idle(ex), "what it held is available")
    assert marks.count("start") == 1


@clause("F6")
@pytest.mark.parametrize("body", [bodies.sleep_in_c, bodies.compute_in_c])
def test_timeout_ends_c_code(ex: Executor, marks: Marks, body: Callable[..., Any]) -> None:
    """F6 It ends tasks in C code and in system calls too."""
    future = ex.options(timeout=0.3).submit(body, marks)
    assert isinstance(future.exception(LIMIT), polyexec.TaskTimeout)
    assert ex.submit(bodies.add, 1, 1).result(LIMIT) == 2


@deviation("F6")
def test_timeout_waits_for_c_code(ex: Executor, marks: Marks) -> None:
    """F6 (declared) ``timeout`` ends Python code; C code runs to its end first, then the task has timed out."""
    loop = ex.options(timeout=0.2).submit(bodies.beat, marks)
    assert isinstance(loop.exception(LIMIT), polyexec.TaskTimeout)

    def in_c() -> None:
        import time

        try:
            time.sleep(1)
            marks.add("C has ended")
            end = time.monotonic() + LIMIT
            while time.monotonic() < end:
                pass
        finally:
            marks.add("finally")

    future = ex.options(timeout=0.2).submit(in_c)
    assert isinstance(future.exception(LIMIT), polyexec.TaskTimeout)
    assert marks.lines()[-1] == "finally"
    assert ex.submit(bodies.add, 1, 1).result(LIMIT) == 2


@clause("F6")
def test_timeout_counts_from_the_start(ex: Executor, gate: Gate, marks: Marks, target: Target) -> None:
    """F6 The time in the queue does not count; a task that is quick enough is left alone, and retries start anew."""
    cpus = int(ex.resources().total.cpus)
    hold(ex, marks, gate, cpus)
    queued = ex.options(timeout=1.0).submit(bodies.add, 1, 1)
    if not target.capabilities.inline:
        never(queued.done, "it ran although all cpus are held", during=1.2)
    gate.open()
    assert queued.result(LIMIT) == 2
    retried = ex.options(timeout=0.2, retries=1, retry_on=polyexec.TaskTimeout).submit(bodies.beat, marks)
    assert isinstance(retried.exception(LIMIT), polyexec.TaskTimeout)
    assert retried.attempts == 2


@clause("F7")
def test_a_result_that_cannot_be_serialised(ex: Executor) -> None:
    """F7 Such a result fails its task with ``SerializationError`` that names the path to the culprit."""
    error = ex.options(name="maker").submit(lambda: {"deep": [0, Holder()]}).exception(LIMIT)
    assert isinstance(error, polyexec.SerializationError)
    assert (error.stage, error.task) == ("result", "maker")
    assert "['deep'][1]" in error.culprit
    assert "inner.lock" in error.culprit
    generator = ex.submit(lambda: (number for number in range(3))).exception(LIMIT)
    assert isinstance(generator, polyexec.SerializationError)
    assert ex.submit(bodies.add, 1, 1).result(LIMIT) == 2


@deviation("F7")
def test_a_result_is_handed_over(ex: Executor) -> None:
    """F7 (declared) Nothing is serialised: the caller gets the result as it is."""
    assert isinstance(ex.submit(Holder).result(LIMIT), Holder)

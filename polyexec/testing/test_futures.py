"""Chapter S: what becomes of Futures: names, several of them, dropped ones, callbacks."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import Any

import pytest

import polyexec
from polyexec import Executor, Future
from polyexec.testing import bodies
from polyexec.testing.executors import Recorder
from polyexec.testing.helpers import LIMIT, hold, text_of
from polyexec.testing.marks import clause
from polyexec.testing.tools import Gate, Marks, eventually


@clause("S10")
def test_a_name_given_by_option(ex: Executor) -> None:
    """S10 A task carries the name that it was given, into its errors."""
    futures: Any = ex.options(name="the-given-name", num_returns=2).submit(bodies.give, 1)
    assert "the-given-name" in text_of(futures[0].exception(LIMIT))
    exited = ex.options(name="the-given-name").submit(bodies.leave, 3).exception(LIMIT)
    assert isinstance(exited, polyexec.TaskExited)
    assert exited.task == "the-given-name"


@clause("S10")
def test_a_name_by_default(ex: Executor) -> None:
    """S10 A task is named after its function by default."""
    error = ex.submit(bodies.leave, 3).exception(LIMIT)
    assert isinstance(error, polyexec.TaskExited)
    assert "leave" in error.task


@clause("S13")
def test_a_failure_is_known_without_its_error(ex: Executor, inline: bool, gate: Gate, marks: Marks) -> None:
    """S13 ``failed`` says that a task has ended with an error, which a value, a cancellation and a wait are not."""
    good, bad = ex.submit(bodies.give, ValueError("a value")), ex.submit(bodies.leave, 3)
    ex.wait([good, bad], timeout=LIMIT)
    assert [good.failed(), bad.failed()] == [False, True]
    assert isinstance(bad.exception(LIMIT), polyexec.TaskExited)
    if inline:
        return
    held = hold(ex, marks, gate, int(ex.resources().total.cpus))
    queued = ex.submit(bodies.give, 1)
    assert ex.cancel(queued)
    ex.wait([queued], timeout=LIMIT)
    assert [queued.failed(), held[0].failed()] == [False, False]
    gate.open()


@clause("S11")
def test_num_returns(ex: Executor) -> None:
    """S11 ``num_returns=n`` gives n Futures."""
    futures: Any = ex.options(num_returns=2).submit(bodies.give, 1, "two")
    left, right = futures
    assert (left.result(LIMIT), right.result(LIMIT)) == (1, "two")
    assert ex.submit(bodies.add, left, left).result(LIMIT) == 2


@clause("S11")
@pytest.mark.parametrize("value", [(1,), (1, 2, 3), 7, None], ids=repr)
def test_a_result_of_another_length(ex: Executor, value: Any) -> None:
    """S11 A result of another length fails all n Futures with an error that says so."""
    futures: Any = ex.options(num_returns=2).submit(bodies.give, value)
    for future in futures:
        error = future.exception(LIMIT)
        assert error is not None
        assert "2" in str(error)
    assert ex.submit(bodies.add, 1, 1).result(LIMIT) == 2


@clause("S12")
def test_an_unawaited_failure_is_reported_once(ex: Executor) -> None:
    """S12 A failed Future that nobody asked is reported once, at warning level, when it is collected."""
    with Recorder() as recorder:
        future: Future[Any] | None = ex.options(name="nobody-asked").submit(bodies.fail, ValueError("unseen"))
        eventually(future.done, "the task has failed")  # type: ignore[union-attr]
        assert recorder.texts(logging.WARNING) == []
        future = None
        gc.collect()
        eventually(lambda: recorder.texts(logging.WARNING), "the failure is reported")
        ex.submit(bodies.add, 1, 1).result(LIMIT)
        texts = recorder.texts(logging.WARNING)
    assert len(texts) == 1
    assert "nobody-asked" in texts[0]
    assert "unseen" in texts[0]


@clause("S12")
def test_an_awaited_failure_is_not_reported(ex: Executor) -> None:
    """S12 A failure that was seen, and a success that was not, are not reported."""
    with Recorder() as recorder:
        failed = ex.submit(bodies.fail, ValueError("seen"))
        assert failed.exception(LIMIT) is not None
        fine = ex.submit(bodies.add, 1, 1)
        eventually(fine.done, "the task has ended")
        del failed, fine
        gc.collect()
        ex.submit(bodies.add, 1, 1).result(LIMIT)
    assert recorder.texts(logging.WARNING) == []


@clause("S16")
def test_dropping_a_future_cancels_nothing(ex: Executor, gate: Gate, marks: Marks) -> None:
    """S16 A task whose Future was dropped runs, whether it was queued or running."""
    for number in range(4):
        ex.submit(bodies.pass_gate, marks, gate, number)
    gc.collect()
    marks.wait_for("start")
    gate.open()
    marks.wait_for("end", 4)


@clause("S16")
def test_callbacks_that_raise_harm_nothing(ex: Executor, gate: Gate, marks: Marks) -> None:
    """S16 A callback that raises is logged; the other callbacks and the executor go on."""
    called: list[str] = []

    def bad(error: BaseException) -> Callable[[Future[Any]], None]:
        def callback(_: Future[Any]) -> None:
            raise error

        return callback

    with Recorder() as recorder:
        future = ex.submit(bodies.pass_gate, marks, gate)
        for error in (ValueError("callback one"), SystemExit("callback two"), KeyboardInterrupt("callback three")):
            future.add_done_callback(bad(error))
        future.add_done_callback(lambda done: called.append(done.result()))
        gate.open()
        eventually(lambda: called, "the last callback was called")
        eventually(lambda: len(recorder.texts(logging.ERROR)) >= 3, "the callbacks' errors are logged")
    hold(ex, marks, gate, 2)
    assert ex.submit(bodies.add, 1, 1).result(LIMIT) == 2


@clause("S16")
def test_a_callback_is_called_once(ex: Executor) -> None:
    """S16 A callback is called once with its Future, even if it is added after the end."""
    called: list[Future[Any]] = []
    future = ex.submit(bodies.add, 1, 1)
    future.add_done_callback(called.append)
    assert future.result(LIMIT) == 2
    eventually(lambda: called, "the callback was called")
    future.add_done_callback(called.append)
    eventually(lambda: len(called) == 2, "the late callback was called")
    assert called == [future, future]

"""``PolyexecExecutor``: what callers of ``concurrent.futures`` rely on, and what polyexec adds."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import itertools
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import types
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, BrokenExecutor, CancelledError
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import polyexec
from polyexec.adapters.futures import PolyexecExecutor
from polyexec.testing import bodies
from polyexec.testing.tools import Gate, Marks, eventually

LIMIT = 30.0


@pytest.fixture(scope="module", params=["threads", "process"])
def shared(request: pytest.FixtureRequest) -> Iterator[polyexec.Executor]:
    """An executor of polyexec that all tests share."""
    with polyexec.connect(f"{request.param}?workers=2") as executor:
        yield executor


@pytest.fixture
def ex(shared: polyexec.Executor) -> Iterator[PolyexecExecutor]:
    """An executor on it; more calls than two wait in it."""
    with PolyexecExecutor(2, backend=shared) as executor:
        yield executor


class Bad:
    """Cannot be serialised."""

    def __reduce__(self) -> Any:
        raise pickle.PicklingError("no")


class Once:
    """Can be serialised, and not turned back."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


class Owner:
    @classmethod
    def complain(cls) -> None:
        raise RuntimeError(7)  # the source of a class method


def make(cls: Callable[[], Any]) -> Any:
    return cls()


def die(name: str) -> None:
    os.kill(os.getpid(), getattr(signal, name))


def test_values_and_keywords(ex: PolyexecExecutor) -> None:
    assert ex.submit(pow, 2, 8).result(LIMIT) == 256
    assert ex.submit(bodies.echo, 1, fn=2, self=3).result(LIMIT) == ((1,), {"fn": 2, "self": 3})
    with pytest.raises(TypeError):
        ex.submit(fn=pow)  # type: ignore[call-arg]


def test_the_waits_of_the_standard_library(ex: PolyexecExecutor, gate: Gate, marks: Marks) -> None:
    held = ex.submit(bodies.pass_gate, marks, gate, "held")
    good, bad = ex.submit(pow, 2, 3), ex.submit(divmod, 1, 0)
    done, _ = concurrent.futures.wait([held, good], timeout=LIMIT, return_when=FIRST_COMPLETED)
    assert done == {good}
    done, left = concurrent.futures.wait([held, good, bad], timeout=LIMIT, return_when=FIRST_EXCEPTION)
    assert (done, left) == ({good, bad}, {held})
    with pytest.raises(TimeoutError):
        held.result(0)
    gate.open()
    assert set(concurrent.futures.as_completed([held, good, bad], timeout=LIMIT)) == {held, good, bad}
    assert isinstance(bad.exception(0), ZeroDivisionError)


def test_a_call_that_runs_is_not_cancelled(ex: PolyexecExecutor, gate: Gate, marks: Marks) -> None:
    """Those that wait are, at the executor of polyexec and in front of it."""
    held = [ex.submit(bodies.pass_gate, marks, gate, number) for number in range(2)]
    queued = [ex.submit(bodies.mark, marks, f"queued {number}") for number in range(3)]
    marks.wait_for("start", 2)
    called: list[bool] = []
    queued[1].add_done_callback(lambda future: called.append(future.cancelled()))
    assert [future.cancel() for future in (*held, queued[1], queued[1])] == [False, False, True, True]
    assert called == [True]
    with pytest.raises(CancelledError):
        queued[1].result(0)
    gate.open()
    assert [future.result(LIMIT) for future in (queued[0], queued[2])] == ["queued 0", "queued 2"]
    assert marks.count("queued 1") == 0
    assert held[0].result(LIMIT) == 0
    assert not held[0].cancel()


def test_a_bound_on_the_calls_of_a_shared_executor(shared: polyexec.Executor, gate: Gate, marks: Marks) -> None:
    """``max_workers`` holds where the backend has more, and a result that is asked for out of order comes."""
    with PolyexecExecutor(1, backend=shared) as ex:
        first = ex.submit(bodies.pass_gate, marks, gate, "first")
        others = [ex.submit(bodies.mark, marks, f"other {number}") for number in range(400)]
        marks.wait_for("start first")
        assert shared.submit(bodies.give, "beside").result(LIMIT) == "beside"
        assert marks.count("other") == 0
        threading.Timer(0, gate.open).start()
        assert others[-1].result(LIMIT) == "other 399"
        assert first.result(0) == "first"
    assert marks.values("other") == [str(number) for number in range(400)]
    assert shared.submit(bodies.give, "open").result(LIMIT) == "open"


def test_calls_that_cannot_be_serialised_in_a_queue(shared: polyexec.Executor, gate: Gate, marks: Marks) -> None:
    with PolyexecExecutor(1, backend=shared) as ex:
        held = ex.submit(bodies.pass_gate, marks, gate)
        bad = [ex.submit(id, Bad()) for _ in range(2000)]
        last = ex.submit(pow, 2, 2)
        gate.open()
        assert (held.result(LIMIT), last.result(LIMIT)) == ("", 4)
        assert all(isinstance(future.exception(LIMIT), pickle.PicklingError) for future in bad)


def test_results_are_the_callers_own(ex: PolyexecExecutor) -> None:
    """The same object each time, with arrays that can be changed."""
    for count in (10, 1_000_000):
        future = ex.submit(np.zeros, count)
        future.result(LIMIT)[0] = 5
        assert future.result()[0] == 5


def test_errors_are_those_of_the_standard_library(ex: PolyexecExecutor) -> None:
    assert isinstance(ex.submit(id, Bad()).exception(LIMIT), pickle.PicklingError)
    assert isinstance(ex.submit(make, Bad).exception(LIMIT), pickle.PicklingError)
    assert isinstance(ex.submit(make, Once).exception(LIMIT), BrokenProcessPool)
    left = ex.submit(sys.exit, 3).exception(LIMIT)
    assert isinstance(left, SystemExit)
    assert isinstance(left, polyexec.TaskExited)
    assert left.code == 3
    error = ex.submit(Owner.complain).exception(LIMIT)
    assert isinstance(error, RuntimeError)
    assert error.args == (7,)
    assert "raise RuntimeError(7)  # the source of a class method" in str(error.__cause__)


def test_a_worker_that_dies_costs_its_own_call(marks: Marks, gate: Gate) -> None:
    with PolyexecExecutor(2, backend="process") as ex:
        held = ex.submit(bodies.pass_gate, marks, gate, "held")
        marks.wait_for("start held")
        error = ex.submit(die, "SIGKILL").exception(LIMIT)
        assert isinstance(error, BrokenProcessPool)
        assert isinstance(error, polyexec.WorkerDied)
        assert error.signal == signal.SIGKILL
        gate.open()
        assert held.result(LIMIT) == "held"
        assert ex.submit(pow, 2, 2).result(LIMIT) == 4


def test_map(ex: PolyexecExecutor) -> None:
    for size in (1, 3, 50):
        assert list(ex.map(pow, range(10), itertools.repeat(2), chunksize=size)) == [i * i for i in range(10)]
    found = ex.map(divmod, [1, 1, 1], [1, 0, 1])
    assert next(found) == (1, 0)
    with pytest.raises(ZeroDivisionError):
        next(found)
    with pytest.raises(ValueError, match="chunksize"):
        ex.map(abs, [], chunksize=0)
    with pytest.raises(ValueError, match="buffersize"):
        ex.map(abs, [], buffersize=0)


def test_map_reads_all_items_or_a_buffer(ex: PolyexecExecutor) -> None:
    read: list[int] = []

    def items() -> Iterator[int]:
        for number in itertools.count():
            read.append(number)
            yield number

    some = ex.map(abs, items(), buffersize=3)
    assert len(read) == 3
    assert list(itertools.islice(some, 5)) == [0, 1, 2, 3, 4]
    assert len(read) == 8
    ex.map(abs, itertools.islice(items(), 10))
    assert len(read) == 18


def test_map_takes_back_what_nobody_waits_for(ex: PolyexecExecutor, gate: Gate, marks: Marks) -> None:
    held = [ex.submit(bodies.pass_gate, marks, gate, "held") for _ in range(2)]
    marks.wait_for("start", 2)
    results = ex.map(bodies.mark, [marks] * 3, ["a", "b", "c"], timeout=0)
    with pytest.raises(TimeoutError):
        next(results)
    gate.open()
    assert [future.result(LIMIT) for future in held] == ["held", "held"]
    assert ex.submit(bodies.give, 1).result(LIMIT) == 1
    assert marks.count("a") + marks.count("b") + marks.count("c") == 0


def test_in_asyncio(ex: PolyexecExecutor) -> None:
    async def use() -> list[int]:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(ex, pow, 2, number) for number in range(5)))

    assert asyncio.run(use()) == [1, 2, 4, 8, 16]


def nested() -> tuple[str, int]:
    """Use an executor in a task, whose calls need the task's own cpu."""
    with PolyexecExecutor(1) as inner:
        futures = [inner.submit(pow, number, 2) for number in range(4)]
        return inner.executor.info.specification, sum(future.result() for future in reversed(futures))


@pytest.mark.parametrize("backend", ["serial", "threads?workers=1", "process?workers=1"])
def test_in_a_task(backend: str) -> None:
    """It is the task's own backend, and waiting for it lends the task's cpu."""
    with PolyexecExecutor(backend=backend) as ex:
        assert ex.submit(nested).result(LIMIT) == (backend, 14)


def test_results_are_there_after_shutdown() -> None:
    ex = PolyexecExecutor(2, backend="process")
    futures = [ex.submit(np.ones, count) for count in (10, 500_000)]
    ex.shutdown()
    assert [future.result(0).sum() for future in futures] == [10, 500_000]
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        ex.submit(pow, 2, 2)


def test_shutdown_takes_back_what_waits(marks: Marks, gate: Gate) -> None:
    ex = PolyexecExecutor(2, backend="process")
    futures = [ex.submit(bodies.pass_gate, marks, gate, number) for number in range(20)]
    marks.wait_for("start", 2)
    # It is the last to be cancelled.
    futures[2].add_done_callback(lambda _: gate.open())
    ex.shutdown(cancel_futures=True)
    assert [future.cancelled() for future in futures] == [False] * 2 + [True] * 18
    assert marks.count("start") == 2


def test_nobody_needs_to_wait_for_the_end(marks: Marks, gate: Gate) -> None:
    """``shutdown(wait=False)`` returns, and what was submitted is done; so it is if the executor is dropped."""
    for end in ("shutdown", "drop"):
        ex = PolyexecExecutor(1, backend="process")
        future = ex.submit(bodies.pass_gate, marks, gate, end)
        if end == "shutdown":
            ex.shutdown(wait=False)
        del ex
        gc.collect()
        gate.open()
        assert future.result(LIMIT) == end
        eventually(lambda: not [one for one in threading.enumerate() if one.name == "polyexec-shutdown"], "it goes on")


STATE: list[str] = []


def set_up(marks: Marks, text: str) -> None:
    STATE.append(text)
    marks.add(f"{text} {os.getpid()} {threading.get_ident()}")


def state() -> list[str]:
    return list(STATE)


@pytest.mark.parametrize("backend", ["threads", "process"])
def test_an_initializer_runs_once_in_each_worker(backend: str, marks: Marks) -> None:
    with PolyexecExecutor(2, backend=backend, initializer=set_up, initargs=(marks, "ready")) as ex:
        assert all(found[-1] == "ready" for found in ex.map(lambda _: state(), range(20)))
    ran = marks.values("ready")
    assert len(ran) == len(set(ran)) <= 2


def test_an_initializer_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    with PolyexecExecutor(1, backend="threads", initializer=divmod, initargs=(1, 0)) as ex:
        assert isinstance(ex.submit(pow, 2, 2).exception(LIMIT), BrokenExecutor)
        with pytest.raises(BrokenExecutor, match="ZeroDivisionError"):
            ex.submit(pow, 2, 2)
    assert "Exception in initializer" in caplog.text


PROGRAM = """
    import os
    from polyexec.adapters.futures import PolyexecExecutor

    table = None

    def fill(value):
        global table
        table = value

    def look(key):
        return table[key]

    def once(key):
        with open(os.environ["MARKS"], "a") as file:
            file.write("ran\\n")

    if __name__ == "__main__":
        ex = PolyexecExecutor(2, initializer=fill, initargs=({"a": 1},))
        assert list(ex.map(look, "aaaa")) == [1] * 4
        for _ in range(3):
            ex.submit(once, "a")
"""


@pytest.mark.parametrize("backend", ["threads", "process"])
def test_a_program_that_does_not_end_its_executor(backend: str, tmp_path: Path) -> None:
    """Its calls are done before it ends; functions of a script find what its initializer has left."""
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(PROGRAM))
    environment = {**os.environ, "POLYEXEC_BACKEND": backend, "MARKS": str(tmp_path / "marks")}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "marks").read_text() == "ran\n" * 3


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"max_workers": 0}, ValueError),
        ({"max_workers": -1}, ValueError),
        ({"initializer": 5}, TypeError),
        ({"backend": "process?no=1"}, ValueError),
        ({"backend": "no_such_backend"}, polyexec.BackendNotFound),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        PolyexecExecutor(**arguments)


def test_what_it_is(ex: PolyexecExecutor) -> None:
    assert isinstance(ex, concurrent.futures.Executor)
    assert "on backend" in repr(ex)
    future = ex.submit(pow, 2, 2)
    assert isinstance(future, concurrent.futures.Future)
    assert future.result(LIMIT) == 4
    assert "finished returned int" in repr(future)
    assert isinstance(ex.map(abs, []), Iterator | types.GeneratorType)

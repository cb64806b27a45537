"""Chapter F: processes that die, and workers that do not start."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

import polyexec
from polyexec import Executor
from polyexec.testing import bodies
from polyexec.testing.drivers import Driver
from polyexec.testing.executors import idle
from polyexec.testing.helpers import LIMIT, hold, require_processes, text_of
from polyexec.testing.marks import alone, clause, deviation
from polyexec.testing.target import Target
from polyexec.testing.tools import TASK_LIMIT, Gate, Marks, eventually
from polyexec.testing.watch import family

_MARKS = "POLYEXEC_TESTING_MARKS"


@clause("F3")
@pytest.mark.parametrize(
    ("how", "ending"),
    [
        ("SIGKILL", (signal.SIGKILL, None)),
        ("SIGSEGV", (signal.SIGSEGV, None)),
        ("exit 7", (None, 7)),
        ("exit 0", (None, 0)),
    ],
    ids=["SIGKILL", "SIGSEGV", "exit-7", "exit-0"],
)
def test_a_dying_worker_fails_its_task_alone(
    ex: Executor, gate: Gate, new_gate: Callable[[], Gate], marks: Marks, tmp_path: Any, how: str, ending: Any
) -> None:
    """F3 A worker that dies fails exactly its task, with ``WorkerDied``; peer and queue complete, capacity is back."""
    others = Marks(str(tmp_path / "others"))
    peer = hold(ex, others, gate, 1) if ex.resources().total.cpus > 1 else []
    victim = ex.options(name="victim").submit(bodies.die, marks, how)
    queued = [ex.submit(bodies.mark, others, f"queued {number}") for number in range(6)]
    error = victim.exception(LIMIT)
    assert type(error) is polyexec.WorkerDied
    assert (error.task, error.pid) == ("victim", int(marks.values("start")[0]))
    assert (error.signal, error.exit_code) == ending
    assert error.host
    assert "victim" in text_of(error)
    assert [future.result(LIMIT) for future in queued] == [f"queued {number}" for number in range(6)]
    gate.open()
    assert [future.result(LIMIT) for future in peer] == ["held 0"] * len(peer)
    assert marks.count("start") == 1
    assert victim.attempts == 1
    assert [others.count(f"queued {number}") for number in range(6)] == [1] * 6
    eventually(lambda: idle(ex), "the capacity is back")


@clause("F3")
def test_ten_tasks_one_of_which_kills_its_worker(ex: Executor, marks: Marks) -> None:
    """F3 Nine results and one ``WorkerDied`` with the signal; the killer's body started once, as did all others."""
    futures = [ex.submit(bodies.die_if, marks, number, 4) for number in range(10)]
    outcomes = [future.exception(LIMIT) or future.result() for future in futures]
    error = outcomes.pop(4)
    assert isinstance(error, polyexec.WorkerDied)
    assert error.signal == signal.SIGKILL
    assert outcomes == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert sorted(map(int, marks.values("start"))) == list(range(10))
    assert [future.result(LIMIT) for future in [ex.submit(bodies.add, n, 0) for n in range(10)]] == list(range(10))


@clause("F3")
def test_dependents_of_a_dead_task(ex: Executor, marks: Marks) -> None:
    """F3 A dependent of the task that died fails with the same error and never runs."""
    victim = ex.options(name="victim").submit(bodies.die, marks, "SIGKILL")
    error = ex.submit(bodies.mark, marks, victim).exception(LIMIT)
    assert isinstance(error, polyexec.WorkerDied)
    assert error.task == "victim"
    assert marks.count() == 1


_DYING_DRIVER = """
    import os, signal, sys
    import polyexec
    from polyexec.testing import bodies
    from polyexec.testing.tools import Marks

    ex = polyexec.connect(sys.argv[1])
    print(ex.submit(os.getpid).result() == os.getpid(), flush=True)
    ex.submit(bodies.die, Marks(sys.argv[2]), sys.argv[3]).result()
"""


@alone
@deviation("F3")
@pytest.mark.parametrize(("how", "code"), [("SIGKILL", -signal.SIGKILL), ("exit 7", 7)])
def test_a_death_is_the_drivers_own(driver: Driver, marks: Marks, how: str, code: int) -> None:
    """F3 (declared) Tasks run in the driver's process: a task that kills its process ends the driver, with its code."""
    ended = driver.run(_DYING_DRIVER, marks.path, how)
    assert ended.code == code, ended.errors
    assert marks.count("start") == 1


class Signals:
    """Opens a gate while it is being serialised, and goes on when another gate opens."""

    def __init__(self, begun: Gate, go_on: Gate, size: int) -> None:
        self.begun = begun
        self.go_on = go_on
        self.size = size

    def __reduce__(self) -> Any:
        self.begun.open()
        self.go_on.wait(TASK_LIMIT)
        return bytes, (self.size,)


@pytest.fixture
def victims(ex: Executor, target: Target) -> Executor:
    """The shared executor, if its workers are this machine's own and may be killed by their process ids."""
    if not target.own_cluster:
        pytest.skip("needs workers that the suite may kill")
    return ex


def _pids(ex: Executor, marks: Marks, gate: Gate) -> list[int]:
    count = int(ex.resources().total.cpus)
    futures = [ex.submit(bodies.pid_at, marks, gate) for _ in range(count)]
    marks.wait_for("start", count)
    gate.open()
    return [future.result(LIMIT) for future in futures]


@clause("F13")
def test_idle_workers_are_killed(ex: Executor, victims: Executor, gate: Gate, marks: Marks, tmp_path: Any) -> None:
    """F13 Killing all idle workers costs no task: each one that follows runs, once."""
    for pid in _pids(ex, marks, gate):
        os.kill(pid, signal.SIGKILL)
    later = Marks(str(tmp_path / "later"))
    futures = [ex.submit(bodies.mark, later, f"task {number}") for number in range(10)]
    assert [future.result(LIMIT) for future in futures] == [f"task {number}" for number in range(10)]
    assert sorted(later.lines()) == sorted(f"task {number}" for number in range(10))
    eventually(lambda: idle(ex), "the capacity is back")


@clause("F13")
def test_a_worker_is_killed_while_it_serialises_its_result(
    ex: Executor, victims: Executor, new_gate: Callable[[], Gate], marks: Marks
) -> None:
    """F13 A worker that is killed while it serialises a large result costs that task alone."""
    begun, go_on = new_gate(), new_gate()

    def body() -> Any:
        marks.add(f"start {os.getpid()}")
        return [bytes(1_000_000), Signals(begun, go_on, 100_000_000)]

    victim = ex.submit(body)
    eventually(begun.is_open, "the result is being serialised")
    queued = [ex.submit(bodies.add, number, 0) for number in range(6)]
    os.kill(int(marks.values("start")[0]), signal.SIGKILL)
    error = victim.exception(LIMIT)
    assert isinstance(error, polyexec.WorkerDied)
    assert [future.result(LIMIT) for future in queued] == list(range(6))
    assert marks.count("start") == 1


@clause("F13")
@pytest.mark.timeout(120, method="signal")
def test_a_worker_is_killed_while_it_sends_its_result(ex: Executor, victims: Executor, marks: Marks) -> None:
    """F13 A worker that is killed at any time while it sends a large result costs at most that task."""

    def body(size: int) -> bytes:
        result = bytes(size)
        marks.add(f"start {os.getpid()}")
        return result

    size = 100_000_000
    for number, pause in enumerate((0.0, 0.01, 0.03)):
        victim = ex.submit(body, size)
        marks.wait_for("start", number + 1)
        queued = [ex.submit(bodies.add, item, 0) for item in range(4)]
        time.sleep(pause)  # places the fault; the test holds wherever it falls
        os.kill(int(marks.values("start")[number]), signal.SIGKILL)
        error = victim.exception(LIMIT)
        assert isinstance(error, polyexec.WorkerDied) if error else len(victim.result(LIMIT)) == size
        assert [future.result(LIMIT) for future in queued] == list(range(4))
        del victim, error
    assert marks.count("start") == 3


@deviation("F13")
def test_there_is_no_worker_to_kill(ex: Executor, marks: Marks) -> None:
    """F13 (declared) Tasks run in the driver's process: there is no worker that could be killed alone."""
    assert ex.submit(os.getpid).result(LIMIT) == os.getpid()
    assert ex.options(cpus=2).submit(os.getpid).result(LIMIT) == os.getpid()


def fail_to_start() -> None:
    """Initializer that always raises."""
    Marks(os.environ[_MARKS]).add("start")
    raise LookupError("the initializer's own text")


def die_at_first_start() -> None:
    """Initializer whose process is killed the first time."""
    marks = Marks(os.environ[_MARKS])
    marks.add("start")
    if marks.count("start") == 1:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(TASK_LIMIT)


def _use(opening: Any) -> None:
    with opening as ex:
        futures = [ex.submit(bodies.add, 1, 1) for _ in range(3)]
        errors = [future.exception(LIMIT) for future in futures]
        assert all(isinstance(error, polyexec.BackendBroken) for error in errors)
        raise errors[0]


@alone
@clause("F14")
def test_workers_that_cannot_start(opened: Callable[..., Any], marks: Marks, monkeypatch: pytest.MonkeyPatch) -> None:
    """F14 A failing ``initializer`` gives ``BackendBroken`` with the cause, after a bounded number of tries."""
    monkeypatch.setenv(_MARKS, marks.path)
    with pytest.raises(polyexec.BackendBroken) as caught:
        _use(opened(workers=2, initializer=f"{__name__}:fail_to_start"))
    assert "the initializer's own text" in text_of(caught.value)
    assert 1 <= marks.count("start") <= 10


@alone
@clause("F13")
def test_a_worker_is_killed_while_it_starts(
    opened: Callable[..., Any], marks: Marks, monkeypatch: pytest.MonkeyPatch, target: Target
) -> None:
    """F13 A worker that is killed while it starts is replaced, and costs no task."""
    require_processes(target)
    monkeypatch.setenv(_MARKS, marks.path)
    with opened(workers=2, initializer=f"{__name__}:die_at_first_start") as ex:
        futures = [ex.submit(bodies.add, number, 0) for number in range(6)]
        assert [future.result(LIMIT) for future in futures] == list(range(6))
    assert marks.count("start") >= 2


@clause("F3")
def test_tasks_run_in_processes_of_their_own(ex: Executor, target: Target) -> None:
    """F3 Workers are processes of their own, which the kernel shows beside the driver."""
    pid, host = ex.submit(lambda: (os.getpid(), socket.gethostname())).result(LIMIT)
    assert (pid, host) != (os.getpid(), socket.gethostname())
    if target.own_cluster:
        assert pid in {process.pid for process in family()}

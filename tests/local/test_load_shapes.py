"""The process backend under load, through the public interface: long tasks among short ones, deaths, and what is left.

``POLYEXEC_LONG=1`` runs each test as long as it takes to be believed: 200 kills, and 100 000 tasks with 1 000 more.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import resource
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

import polyexec
from polyexec import Executor, Future
from polyexec.testing.tools import Gate, Marks, eventually
from polyexec.testing.watch import descriptors, family

LONG = os.environ.get("POLYEXEC_LONG", "") not in ("", "0")
LIMIT = 60.0
WORKERS = 2
KILLS = 200 if LONG else 20
SOAK_TASKS = 100_000 if LONG else 2_000
SOAK_KILLS = 1_000 if LONG else 20

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads /proc"),
    pytest.mark.timeout(3600 if LONG else 110),
]


@pytest.fixture
def ex() -> Iterator[Executor]:
    with polyexec.connect(f"process?workers={WORKERS}") as executor:
        yield executor


@pytest.fixture
def new_gate(tmp_path: Path) -> Iterator[Callable[[], Gate]]:
    made: list[Gate] = []

    def make() -> Gate:
        made.append(Gate(str(tmp_path / f"gate-{len(made)}")))
        return made[-1]

    yield make
    for gate in made:
        gate.open()


@pytest.fixture
def marks(tmp_path: Path) -> Marks:
    return Marks(str(tmp_path / "marks"))


def work(marks: Marks | None = None, name: Any = None, gate: Gate | None = None) -> Any:
    """Take a millisecond, or wait for a gate."""
    if marks is not None:
        marks.add(f"start {name}")
    if gate is None:
        time.sleep(0.001)
    else:
        gate.wait(LIMIT)
    return name


def learn(ex: Executor, count: int = 300) -> None:
    """Let the engine see that ``work`` is quick."""
    assert [future.result(LIMIT) for future in [ex.submit(work, None, n) for n in range(count)]] == list(range(count))


@pytest.mark.parametrize("learnt", [False, True], ids=["unknown", "known-to-be-quick"])
def test_short_tasks_pass_a_long_one(ex: Executor, marks: Marks, new_gate: Callable[[], Gate], learnt: bool) -> None:
    """R9 With two workers, one of them busy, 200 short tasks behind the long one end while it runs."""
    if learnt:
        learn(ex)
    gate = new_gate()
    long = ex.submit(work, marks, "long", gate)
    short = [ex.submit(work, marks, number) for number in range(200)]
    assert [future.result(LIMIT) for future in short] == list(range(200))
    assert not long.done()
    marks.wait_for("start long")
    gate.open()
    assert long.result(LIMIT) == "long"
    assert Counter(marks.lines()) == Counter([f"start {name}" for name in ("long", *range(200))])


@pytest.mark.parametrize("place", [1, 37, 150])
def test_a_long_task_in_the_middle_of_short_ones(
    ex: Executor, marks: Marks, new_gate: Callable[[], Gate], place: int
) -> None:
    """R9 A long task that looks like the short ones before and behind it holds none of them back."""
    learn(ex)
    gate = new_gate()
    futures = [ex.submit(work, marks, number, gate if number == place else None) for number in range(300)]
    long = futures.pop(place)
    assert [future.result(LIMIT) for future in futures] == [number for number in range(300) if number != place]
    assert not long.done()
    gate.open()
    assert long.result(LIMIT) == place
    assert Counter(marks.lines()) == Counter([f"start {number}" for number in range(300)])


def _both_busy(ex: Executor, marks: Marks, gates: list[Gate]) -> list[Future[Any]]:
    busy = [ex.submit(work, marks, f"long {number}", gate) for number, gate in enumerate(gates)]
    marks.wait_for("start long", len(gates))
    return busy


def test_tasks_behind_long_ones_are_revoked(ex: Executor, marks: Marks, new_gate: Callable[[], Gate]) -> None:
    """C1 Tasks that wait behind running ones, wherever they wait, are cancelled at once and never run."""
    learn(ex)
    gates = [new_gate(), new_gate()]
    busy = _both_busy(ex, marks, gates)
    waiting = [ex.submit(work, marks, number) for number in range(60)]
    revoked = waiting[::2]
    assert [ex.cancel(future) for future in revoked] == [True] * len(revoked)
    for future in revoked:
        with pytest.raises(polyexec.TaskCancelled):
            future.result(LIMIT)
    for gate in gates:
        gate.open()
    assert [future.result(LIMIT) for future in waiting[1::2]] == list(range(1, 60, 2))
    assert [future.result(LIMIT) for future in busy] == ["long 0", "long 1"]
    assert sorted(map(int, marks.values("start ")[2:])) == list(range(1, 60, 2))


def test_an_idle_worker_takes_what_waits_behind_a_long_task(
    ex: Executor, marks: Marks, new_gate: Callable[[], Gate]
) -> None:
    """R9 Tasks that were given out while all workers were busy go to the first that is free, each once."""
    learn(ex)
    gates = [new_gate(), new_gate()]
    busy = _both_busy(ex, marks, gates)
    waiting = [ex.submit(work, marks, number) for number in range(60)]
    gates[1].open()
    assert [future.result(LIMIT) for future in waiting] == list(range(60))
    assert busy[1].result(LIMIT) == "long 1"
    assert not busy[0].done()
    gates[0].open()
    assert busy[0].result(LIMIT) == "long 0"
    assert Counter(marks.lines()[2:]) == Counter([f"start {number}" for number in range(60)])


def die_or_work(marks: Marks, name: int, how: str | None) -> int:
    """End this process, or take a moment."""
    marks.add(f"start {name}")
    if how is None:
        time.sleep(0.0005)
        return name
    if how == "exit":
        os._exit(3)
    os.kill(os.getpid(), signal.Signals[how])
    time.sleep(LIMIT)
    return name


WAYS_TO_DIE = ("SIGKILL", "SIGSEGV", "exit")


def test_each_death_costs_one_task(ex: Executor, tmp_path: Path) -> None:
    """F3 F5 Of 40 tasks, one kills its worker: that one fails, and each body starts exactly once; again and again."""
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    for number in range(KILLS):
        marks = Marks(str(tmp_path / f"starts-{number}"))
        victim, how = chance.randrange(40), chance.choice(WAYS_TO_DIE)
        futures = [ex.submit(die_or_work, marks, n, how if n == victim else None) for n in range(40)]
        outcomes = [future.exception(LIMIT) or future.result() for future in futures]
        error = outcomes.pop(victim)
        assert isinstance(error, polyexec.WorkerDied), (seed, number, error)
        assert outcomes == [n for n in range(40) if n != victim], (seed, number)
        assert sorted(map(int, marks.values("start"))) == list(range(40)), (seed, number)
        assert [future.attempts for future in futures] == [1] * 40, (seed, number)


def start_and_work(marks: Marks, name: int) -> int:
    """Say who runs this, and take a moment."""
    marks.add(f"start {name} {os.getpid()}")
    time.sleep(0.001)
    return name


def _kill_one(marks: Marks, after: int) -> None:
    """Kill the worker that has started a task last, once so many have started."""
    marks.wait_for("start", after)
    pid = int(marks.lines()[-1].split()[2])
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def test_a_kill_at_any_moment_costs_at_most_one_task(ex: Executor, tmp_path: Path) -> None:
    """F3 F13 A worker killed from outside, at whatever point, costs one task at most, and no body starts twice."""
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    for number in range(KILLS):
        marks = Marks(str(tmp_path / f"starts-{number}"))
        killer = threading.Thread(target=_kill_one, args=(marks, chance.randrange(1, 50)))
        killer.start()
        futures = [ex.submit(start_and_work, marks, n) for n in range(60)]
        errors = {n: error for n, future in enumerate(futures) if (error := future.exception(LIMIT)) is not None}
        killer.join()
        assert all(isinstance(error, polyexec.WorkerDied) for error in errors.values()), (seed, number, errors)
        assert len(errors) <= 1, (seed, number, errors)
        started = Counter(int(line.split()[1]) for line in marks.lines())
        # One that was killed with its worker may have been just before its first line.
        assert [started[n] for n in range(60) if n not in errors] == [1] * (60 - len(errors)), (seed, number)
        assert all(started[n] <= 1 for n in errors), (seed, number)


@attrs.frozen
class Held:
    """What this process and its workers hold.

    Attributes:
        descriptors: of this process, by kind.
        threads: of this process.
        processes: below this one.
        segments: files in memory that any of them has open or mapped.
    """

    descriptors: Counter[str]
    threads: int
    processes: int
    segments: int

    @staticmethod
    def now() -> Held:
        """Look."""
        gc.collect()
        pids = [os.getpid(), *(process.pid for process in family())]
        return Held(descriptors(), threading.active_count(), len(pids) - 1, len(set().union(*map(_segments, pids))))


def _segments(pid: int) -> set[str]:
    found = set()
    try:
        for path in Path(f"/proc/{pid}/fd").iterdir():
            if os.readlink(path).startswith("/memfd:"):
                found.add(str(path.stat().st_ino))
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            if "/memfd:" in line:
                found.add(line.split()[4])
    except OSError:
        pass
    return found


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def soak(number: int, killer: bool, large: bool) -> Any:
    """Return something, now and then something large if that is wanted; or die."""
    if killer:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(LIMIT)
    return bytes(2**20) if large and number % 50 == 0 else number


def _soak(ex: Executor, tasks: int, kills: int) -> list[int]:
    """Run tasks, some of which kill their workers; give the driver's memory after each part."""
    parts = 20
    sizes = []
    for part in range(parts):
        count = tasks // parts
        every = max(1, count // max(1, kills // parts))
        futures = [ex.submit(soak, n, kills > 0 and n % every == every - 1, kills > 0) for n in range(count)]
        dead = sum(isinstance(future.exception(LIMIT), polyexec.WorkerDied) for future in futures)
        assert dead == (count // every if kills else 0), part
        del futures
        gc.collect()
        sizes.append(_resident())
    return sizes


def _slope(sizes: list[int], tasks: int) -> float:
    """Give the median growth in bytes for 100 000 tasks, of all pairs in the later half."""
    later = sizes[len(sizes) // 2 :]
    each = tasks / len(sizes)
    pairs = [(b - a) / (j - i) for i, a in enumerate(later) for j, b in enumerate(later) if j > i]
    return statistics.median(pairs) / each * 100_000


def _full(ex: Executor) -> bool:
    found = ex.resources()
    return found.available == found.total


def test_nothing_is_left_by_many_tasks_and_deaths(record_property: Callable[[str, object], None]) -> None:
    """F9 F13 After thousands of tasks and some deaths there are as many descriptors, threads, processes as before."""
    before = Held.now()
    with polyexec.connect(f"process?workers={WORKERS}") as ex:
        _soak(ex, 400, 20)
        eventually(lambda: _full(ex) and Held.now().processes >= before.processes + WORKERS)
        warm = Held.now()
        sizes = _soak(ex, SOAK_TASKS, 0)
        _soak(ex, SOAK_KILLS * 20, SOAK_KILLS)
        eventually(lambda: _full(ex) and _grown(warm, Held.now()) == [], lambda: f"more: {_grown(warm, Held.now())}")
        ex.submit(int).result(LIMIT)
    eventually(lambda: _grown(before, Held.now()) == [], lambda: f"left: {_grown(before, Held.now())}")
    slope = _slope(sizes, SOAK_TASKS)
    record_property("resident_bytes_per_100k_tasks", int(slope))
    print(f"\nresident memory of the driver: {slope / 2**20:+.2f} MiB for 100 000 tasks ({SOAK_TASKS} run)")


def _grown(then: Held, now: Held) -> list[str]:
    found = []
    if sum(now.descriptors.values()) > sum(then.descriptors.values()):
        found.append(f"descriptors {dict(now.descriptors - then.descriptors)}")
    for name in ("threads", "processes", "segments"):
        # A worker has a page of its own, shared with nobody else, from when it is first needed.
        spare = WORKERS if name == "segments" and now.processes else 0
        if getattr(now, name) > getattr(then, name) + spare:
            found.append(f"{name} {getattr(then, name)} -> {getattr(now, name)}")
    return found

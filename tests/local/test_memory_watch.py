"""F11: which calls have outgrown their ``memory=``; with real processes, and with readings made up."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import attrs
import pytest

from polyexec import memory_usage
from polyexec.memory_usage import SLACK, Machine
from polyexec_local.memory_watch import Findings, MemoryWatch, Outgrown, Reader, Shortage

MIB = 2**20

_BODY = """
import mmap, os, subprocess, sys

held = []

def take(size):
    held.append(bytearray(b"x") * size)

def map_shared(size):
    descriptor = os.memfd_create("test")
    os.truncate(descriptor, size)
    held.append(mmap.mmap(descriptor, size))
    held[-1].write(b"x" * size)

def child(size):
    code = f"held = bytearray(b'x') * {size}; print('ready', flush=True); input()"
    held.append(subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE))
    held[-1].stdout.readline()

def leave_children():
    for process in held:
        process.communicate()

def fork(count):
    global ends
    ends = []
    for _ in range(count):
        (theirs, write), (read, answer) = os.pipe(), os.pipe()
        if os.fork() == 0:
            os.close(write)
            while os.read(theirs, 1):
                held[0][:] = b"y" * len(held[0])
                os.write(answer, b"x")
            os._exit(0)
        ends.append((write, read))

def write_in_forks():
    for write, read in ends:
        os.write(write, b"x")
        os.read(read, 1)

for line in sys.stdin:
    exec(line)
    print("done", flush=True)
"""


@attrs.frozen
class Worker:
    """A process that does what it is told, a line at a time."""

    process: subprocess.Popen[str]

    @property
    def pid(self) -> int:
        return self.process.pid

    def do(self, line: str) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(line, file=self.process.stdin, flush=True)
        assert self.process.stdout.readline() == "done\n"


@pytest.fixture
def new_worker() -> Iterator[Callable[[], Worker]]:
    """Starts workers; they end with the test, and what they started with them."""
    made: list[Worker] = []

    def start() -> Worker:
        command = [sys.executable, "-c", _BODY]
        made.append(Worker(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)))
        made[-1].do("pass")
        return made[-1]

    yield start
    for worker in made:
        worker.process.communicate(timeout=60)


@pytest.fixture
def worker(new_worker: Callable[[], Worker]) -> Worker:
    return new_worker()


class Clock:
    """Moves by itself, so far that everything is due at each check."""

    def __init__(self) -> None:
        self.now = 1000.0

    def later(self) -> float:
        self.now += 10.0
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def roomy() -> Machine:
    """Give a machine that is never short, whatever the one has that the tests run on."""
    return Machine(2**40, 2**41)


def watch_of(worker: Worker, limit: int, clock: Clock) -> MemoryWatch:
    """Watch a worker of which a call begins."""
    watch = MemoryWatch(reader=Reader(machine=roomy))
    watch.begin(worker.pid, limit, clock.now)
    return watch


def test_a_call_that_outgrows_its_memory_is_named_once(worker: Worker, clock: Clock) -> None:
    watch = watch_of(worker, 50 * MIB, clock)
    worker.do(f"take({40 * MIB})")
    assert watch.check(clock.later()) == Findings()
    worker.do(f"take({100 * MIB})")
    (found,) = watch.check(clock.later()).outgrown
    assert (found.pid, found.limit) == (worker.pid, 50 * MIB)
    assert 140 * MIB <= found.used < 160 * MIB
    assert str(found) == memory_usage.describe(found.used, 50 * MIB)
    assert "out of memory" in str(found)
    assert watch.check(clock.later()) == Findings()


def test_what_was_there_before_does_not_count(worker: Worker, clock: Clock) -> None:
    worker.do(f"take({100 * MIB})")
    worker.do(f"child({50 * MIB})")
    watch = watch_of(worker, 50 * MIB, clock)
    worker.do(f"take({40 * MIB})")
    assert watch.check(clock.later()) == Findings()


def test_child_processes_count(worker: Worker, clock: Clock) -> None:
    watch = watch_of(worker, 50 * MIB, clock)
    worker.do(f"child({60 * MIB})")
    worker.do(f"child({60 * MIB})")
    (found,) = watch.check(clock.later()).outgrown
    assert (found.pid, found.limit) == (worker.pid, 50 * MIB)
    assert found.used >= 120 * MIB


def test_processes_that_have_ended_do_not_count(worker: Worker, clock: Clock) -> None:
    """Not even while they are still on the list of the call's processes."""
    watch = watch_of(worker, 50 * MIB, clock)
    worker.do(f"child({20 * MIB})")
    assert watch.check(clock.later()) == Findings()
    worker.do("leave_children()")
    worker.do(f"held[:] = []; take({45 * MIB})")
    assert watch.check(clock.now + 0.1) == Findings()


def test_pages_shared_by_a_fork_count_once(worker: Worker, clock: Clock) -> None:
    watch = watch_of(worker, 150 * MIB, clock)
    worker.do(f"take({100 * MIB})")
    worker.do("fork(3)")
    assert memory_usage.used_by(worker.pid) > 400 * MIB
    assert watch.check(clock.later()) == Findings()
    worker.do("write_in_forks()")
    (found,) = watch.check(clock.later()).outgrown
    assert found.used > 390 * MIB


def test_shared_memory_does_not_count(worker: Worker, clock: Clock) -> None:
    watch = watch_of(worker, 50 * MIB, clock)
    worker.do(f"map_shared({200 * MIB})")
    assert watch.check(clock.later()) == Findings()


def test_a_call_that_has_ended_is_not_named(worker: Worker, clock: Clock) -> None:
    watch = watch_of(worker, 50 * MIB, clock)
    worker.do(f"take({100 * MIB})")
    watch.end(worker.pid)
    watch.end(worker.pid)
    assert watch.check(clock.later()) == Findings()


def test_a_worker_that_has_died_is_not_named(worker: Worker, clock: Clock) -> None:
    watch = watch_of(worker, 50 * MIB, clock)
    worker.process.kill()
    worker.process.wait()
    assert watch.check(clock.later()) == Findings()
    watch.begin(worker.pid, 50 * MIB, clock.now)
    assert watch.check(clock.later()) == Findings()


def test_only_who_has_outgrown_is_named(new_worker: Callable[[], Worker], clock: Clock) -> None:
    large, small = new_worker(), new_worker()
    watch = MemoryWatch(reader=Reader(machine=roomy))
    watch.begin(large.pid, 50 * MIB, clock.now)
    watch.begin(small.pid, 50 * MIB, clock.now)
    large.do(f"take({100 * MIB})")
    assert [found.pid for found in watch.check(clock.later()).outgrown] == [large.pid]


class Made:
    """Readings that a test makes up: sizes of processes, their children, the machine."""

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}
        self.children: dict[int, tuple[int, ...]] = {}
        self.shared = 0
        self.left = Machine(100 * 2**30, 128 * 2**30)
        self.counted = 0

    def reader(self) -> Reader:
        return Reader(self.sizes.get, self.count, self.family, lambda: self.left)

    def family(self, pid: int) -> tuple[int, ...]:
        return pid, *self.children.get(pid, ())

    def count(self, pids: object) -> int:
        self.counted += 1
        assert isinstance(pids, tuple)
        return sum(self.sizes[pid] for pid in pids) - self.shared


@pytest.fixture
def made() -> Made:
    return Made()


def test_the_pause_is_as_long_as_is_safe(made: Made) -> None:
    """A far limit is looked at seldom, a near one often, and one that is reached soon in time."""
    watch = MemoryWatch(reader=made.reader())
    watch.check(0.0)
    assert watch.due() == pytest.approx(1.0)
    made.sizes[1] = 50 * MIB
    watch.begin(1, 100 * 2**30, 0.0)
    assert watch.due() == pytest.approx(0.5)
    watch.begin(2, 240 * MIB, 0.0)
    assert watch.due() == pytest.approx(0.25)
    watch.end(2)
    # 60 GiB in a second, and 40 GiB to the limit: a third of a second until then.
    made.sizes[1] += 60 * 2**30
    assert watch.check(1.0) == Findings()
    assert watch.due() == pytest.approx(1.0 + (40 * 2**30 + SLACK) / (120 * 2**30))
    made.sizes[1] += 40 * 2**30
    assert watch.check(2.0) == Findings()
    assert watch.due() == pytest.approx(2.05)


def test_the_pause_is_as_long_as_the_machine_has_room(made: Made) -> None:
    watch = MemoryWatch(reader=made.reader())
    made.sizes[1] = 0
    made.left = Machine(2 * 10**9 + 200 * MIB, 128 * 2**30)
    watch.begin(1, 100 * 2**30, 0.0)
    watch.check(1.0)
    assert watch.due() == pytest.approx(1.0 + 200 / 1024)


def test_calls_are_looked_at_when_they_are_due(made: Made) -> None:
    """A check that comes early looks at nothing, so that many calls cost no more than they must."""
    watch = MemoryWatch(reader=made.reader())
    made.sizes[1] = 0
    watch.begin(1, 100 * MIB, 0.0)
    made.sizes[1] = 200 * MIB
    assert watch.check(watch.due() - 0.02) == Findings()
    assert watch.check(watch.due()).outgrown == (Outgrown(1, 200 * MIB, 100 * MIB),)


def test_pages_are_counted_seldom(made: Made) -> None:
    """Counting costs time by size: when it finds nothing it is not repeated at once."""
    watch = MemoryWatch(reader=made.reader())
    made.sizes[1] = 0
    watch.begin(1, 2**30, 0.0)
    made.children[1] = (2, 3)
    made.sizes.update({1: 2**30, 2: 2**30, 3: 2**30})
    made.shared = 2 * 2**30
    for step in range(10):
        assert watch.check(1.0 + step * 0.05) == Findings()
    assert made.counted == 1
    made.shared = 0
    assert watch.check(1.7).outgrown == (Outgrown(1, 3 * 2**30, 2**30),)
    assert made.counted == 2


def test_pages_are_not_counted_without_new_processes(made: Made) -> None:
    """What a worker and the process above it share was there before."""
    watch = MemoryWatch(reader=made.reader())
    made.sizes.update({1: 10 * MIB, 2: 10 * MIB})
    made.children[1] = (2,)
    made.shared = 10 * MIB
    watch.begin(1, 100 * MIB, 0.0)
    made.sizes[2] = 130 * MIB
    assert watch.check(1.0).outgrown == (Outgrown(1, 120 * MIB, 100 * MIB),)
    assert made.counted == 0


def test_there_is_no_slack_when_the_machine_is_short(made: Made) -> None:
    watch = MemoryWatch(lambda: [1, 2], made.reader())
    made.sizes.update({1: 0, 2: 90 * 2**30})
    watch.begin(1, 100 * MIB, 0.0)
    made.sizes[1] = 101 * MIB
    assert watch.check(1.0) == Findings()
    made.left = Machine(2**30, 128 * 2**30)
    assert watch.check(1.01) == Findings((Outgrown(1, 101 * MIB, 100 * MIB),))


def test_a_shortage_is_told_once(made: Made) -> None:
    """Calls that keep within their memory, and those that promised nothing, are not ended; the largest is named."""
    watch = MemoryWatch(lambda: [1, 2, 3], made.reader())
    made.sizes.update({1: 0, 2: 40 * 2**30, 3: 50 * 2**30, 4: 20 * 2**30})
    made.children[2] = (4,)
    watch.begin(1, 100 * MIB, 0.0)
    made.sizes[1] = 100 * MIB
    made.left = Machine(2**30, 128 * 2**30)
    assert watch.check(1.0) == Findings((), Shortage(2**30, 128 * 2**30, 2, 60 * 2**30))
    assert watch.due() == pytest.approx(1.05)
    assert watch.check(1.05) == Findings()
    made.left = Machine(3 * 10**9, 128 * 2**30)
    assert watch.check(2.0) == Findings()
    made.left = Machine(2**30, 128 * 2**30)
    assert watch.check(3.0) == Findings()
    made.left = Machine(5 * 10**9, 128 * 2**30)
    assert watch.check(4.0) == Findings()
    made.left = Machine(2**30, 128 * 2**30)
    assert watch.check(5.0).shortage is not None


def test_a_shortage_with_nothing_running(made: Made) -> None:
    watch = MemoryWatch(reader=made.reader())
    made.left = Machine(0, 2**30)
    assert watch.check(0.0) == Findings((), Shortage(0, 2**30, None, 0))


@pytest.mark.parametrize(
    ("total", "left", "short"),
    [
        (128 * 10**9, 1_900_000_000, True),
        (128 * 10**9, 2_100_000_000, False),
        (20 * 10**9, 390_000_000, True),
        (20 * 10**9, 410_000_000, False),
        (4 * 10**9, 190_000_000, True),
        (4 * 10**9, 210_000_000, False),
        (500 * 10**6, 40_000_000, True),
        (500 * 10**6, 60_000_000, False),
    ],
)
def test_what_counts_as_short(made: Made, total: int, left: int, short: bool) -> None:
    """2 %, at least 200 MB, at most 2 GB; but a small container may use nine tenths."""
    made.left = Machine(left, total)
    assert (MemoryWatch(reader=made.reader()).check(0.0).shortage is not None) == short


def test_a_system_that_tells_nothing() -> None:
    watch = MemoryWatch(lambda: [1], Reader(lambda pid: None, lambda pids: 0, lambda pid: (pid,), lambda: None))
    watch.begin(1, 100, 0.0)
    assert watch.check(1.0) == Findings()

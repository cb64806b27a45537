"""Rows of workers that are killed or stopped from outside, and of what is run again."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import polyexec
from polyexec import Future
from polyexec.testing import bodies as common
from polyexec.testing import hostile
from polyexec.testing.executors import until_idle
from polyexec.testing.faults import bodies, values
from polyexec.testing.faults.model import PROCESSES, Case, Row
from polyexec.testing.faults.trial import Trial
from polyexec.testing.tools import PATIENCE, TASK_LIMIT, Marks, eventually
from polyexec.testing.watch import alive

_LARGE = 400_000_000
_KILLS = 5
"""Number of moments, evenly over the time that the unharmed way takes, at which a worker is killed on its way."""


def make(marks: Marks, size: int) -> bytes:
    """Make a value, and mark that it is about to be sent."""
    value = bytes(size)
    bodies.begin(marks)
    return value


def take(marks: Marks, value: Any) -> int:
    """Mark the start, and give the length of the argument."""
    bodies.begin(marks)
    return len(value)


def pids(trial: Trial) -> list[int]:
    """Give the ids of all workers."""
    marks, gate = Marks(str(trial.folder / f"pids-{time.monotonic()}")), trial.gate(f"pids-{time.monotonic()}")
    count = int(trial.ex.resources().total.cpus)
    futures = [trial.ex.submit(common.pid_at, marks, gate) for _ in range(count)]
    marks.wait_for("start", count)
    gate.open()
    return [trial.value(future) for future in futures]


def kill(*numbers: int) -> None:
    """Kill processes; one that has ended already is as good."""
    for number in numbers:
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)


def _value_or_death(trial: Trial, future: Future[Any], good: Callable[[Any], bool]) -> None:
    """A task whose worker is killed at some moment has its value, or ``WorkerDied``."""
    try:
        found = trial.value(future)
    except polyexec.WorkerDied as error:
        trial.saw(error)
    else:
        trial.saw("a value")
        assert good(found), "the value is wrong"


def _killed_sending(trial: Trial) -> None:
    """Kill the worker at several moments from its last step on until its result is there."""
    assert len(trial.value(trial.ex.submit(make, trial.marks, _LARGE))) == _LARGE
    whole = time.monotonic() - float(trial.marks.values("fault")[-1])
    for number in range(1, _KILLS + 1):
        others = trial.bystanders()
        victim = trial.ex.submit(make, trial.marks, _LARGE)
        others.queue()
        trial.marks.wait_for("start", number + 1)
        time.sleep(whole * (number - 1) / _KILLS)  # places the fault; what holds, holds wherever it falls
        since = time.monotonic()
        kill(int(trial.marks.values("start")[number]))
        _value_or_death(trial, victim, lambda found: len(found) == _LARGE)
        trial.injected(since)
        del victim
        others.check()
    trial.starts(_KILLS + 1, _KILLS + 1)
    trial.usable()


def _killed_serialising(trial: Trial) -> None:
    """Kill the worker while it is in the middle of serialising its result."""
    others = trial.bystanders()
    victim = trial.ex.options(name="victim").submit(make_half, trial.marks, trial.gate("send"))
    others.queue()
    trial.marks.wait_for("sending")
    since = time.monotonic()
    kill(int(trial.marks.values("sending")[0]))
    error = trial.error(victim)
    trial.injected(since)
    assert isinstance(error, polyexec.WorkerDied), repr(error)
    assert error.signal == signal.SIGKILL
    others.check()
    trial.starts(1, 1)
    trial.usable()


def make_half(marks: Any, gate: Any) -> Any:
    """Return a large value, and behind it one that waits while it is serialised."""
    bodies.begin(marks)
    return [bytes(100_000_000), hostile.WaitsWhenSent(marks, gate)]


def _killed_rebuilding(trial: Trial) -> None:
    """Kill the worker while it is in the middle of rebuilding its argument, a large part of which is there."""
    gate = trial.gate("rebuild")
    others = trial.bystanders()
    argument = [bytes(_LARGE), hostile.WaitsWhenRebuilt(trial.marks, gate)]
    victim = trial.ex.submit(take, trial.marks, argument)
    others.queue()
    trial.marks.wait_for("rebuilding")
    gate.open()
    since = time.monotonic()
    kill(int(trial.marks.values("rebuilding")[0]))
    _value_or_death(trial, victim, lambda found: found == 2)
    trial.injected(since)
    others.check()
    trial.starts(1)
    trial.usable()


def _killed_receiving(trial: Trial) -> None:
    """Kill all workers at several moments while an argument is on its way to one of them."""
    argument = bytes(_LARGE)
    begun = time.monotonic()
    assert trial.value(trial.ex.submit(take, trial.marks, argument)) == _LARGE
    whole = time.monotonic() - begun
    for number in range(_KILLS):
        workers = pids(trial)
        victim = trial.ex.submit(take, trial.marks, argument)
        time.sleep(whole * number / _KILLS)  # places the fault; what holds, holds wherever it falls
        since = time.monotonic()
        kill(*workers)
        _value_or_death(trial, victim, lambda found: found == _LARGE)
        trial.injected(since)
    trial.starts(_KILLS + 1)
    trial.usable()


def _idle_killed(trial: Trial, count: int) -> None:
    """Killing idle workers costs no task."""
    for number in pids(trial)[:count]:
        kill(number)
    since = time.monotonic()
    futures = [trial.ex.submit(common.mark, trial.marks, f"start {number}") for number in range(10)]
    assert trial.value(futures[0]) == "start 0"
    trial.injected(since, count)
    assert [trial.value(future) for future in futures] == [f"start {number}" for number in range(10)]
    trial.saw("no error")
    trial.starts(10, 10)
    trial.usable()


def _killed_after_task(trial: Trial) -> None:
    """A worker that is killed as soon as its result is there costs nothing, the next task neither."""
    for _ in range(10):
        pid = trial.value(trial.ex.submit(os.getpid))
        kill(pid)
        since = time.monotonic()
        assert trial.value(trial.ex.submit(common.add, 1, 1)) == 2
        trial.injected(since)
    trial.saw("no error")
    trial.usable()


def _killed_before_task(trial: Trial) -> None:
    """A worker that dies before a task's body has begun costs nothing: the task runs on another."""
    for _ in range(10):
        workers = pids(trial)
        since = time.monotonic()
        futures = [trial.ex.submit(common.add, number, 1) for number in range(4)]
        kill(*workers)
        for number, future in enumerate(futures):
            _value_or_death(trial, future, partial(_is, number + 1))
        trial.injected(since)
    trial.usable()


def _is(expected: Any, found: Any) -> bool:
    return bool(found == expected)


MARKS = "POLYEXEC_FAULTS_MARKS"
"""The variable that tells initializers where to leave marks."""


def die_at_first_start() -> None:
    """Initializer whose process is killed the first time."""
    marks = Marks(os.environ[MARKS])
    marks.add(f"start {os.getpid()}")
    if marks.count("start") == 1:
        bodies.now(marks)
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(TASK_LIMIT)


def _killed_starting(trial: Trial) -> None:
    """A worker that is killed while it starts is replaced, and costs no task."""
    os.environ[MARKS] = trial.marks.path
    with trial.opened(workers=2, initializer=f"{__name__}:die_at_first_start") as ex:
        futures = [ex.submit(common.add, number, 0) for number in range(6)]
        assert [trial.value(future) for future in futures] == list(range(6))
        trial.injected()
    trial.saw("no error")


def stop(marks: Marks) -> None:
    """Stop this process, as SIGSTOP does to one that hangs."""
    bodies.begin(marks)
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(TASK_LIMIT)


def _stopped(trial: Trial) -> None:
    """A worker that does nothing any more is ended by its task's time limit, and its slot is free again."""
    error = trial.strike(stop, trial.marks, timeout=1.0)
    assert isinstance(error, polyexec.TaskTimeout), repr(error)
    _ended(trial)


def _stopped_and_cancelled(trial: Trial) -> None:
    """So it is by force."""
    others = trial.bystanders()
    victim = trial.ex.submit(stop, trial.marks)
    others.queue()
    trial.marks.wait_for("fault")
    since = time.monotonic()
    assert trial.ex.cancel(victim, force=True) is True
    assert isinstance(trial.error(victim), polyexec.TaskCancelled)
    trial.injected(since)
    others.check()
    trial.usable()
    _ended(trial)


def _ended(trial: Trial) -> None:
    pid = int(trial.marks.values("start")[-1])
    eventually(lambda: not alive(pid), f"the stopped worker {pid} has ended")


def _stopped_and_continued(trial: Trial) -> None:
    """A worker that stands still for a while and goes on costs nothing."""
    others = trial.bystanders()
    gate = trial.gate("victim")
    victim = trial.ex.submit(common.pid_at, trial.marks, gate)
    trial.marks.wait_for("start")
    pid = int(trial.marks.values("start")[0])
    os.kill(pid, signal.SIGSTOP)
    others.queue()
    gate.open()
    time.sleep(1.0)  # the fault is that nothing happens for a while
    os.kill(pid, signal.SIGCONT)
    since = time.monotonic()
    assert trial.value(victim) == pid
    trial.injected(since)
    trial.saw("no error")
    others.check()
    trial.starts(1, 1)
    trial.usable()


def _in_c(trial: Trial) -> str | None:
    """A task that is in C code is ended by its time limit, or, as declared, when it comes back from there."""
    if trial.target.declared("F6") is None:
        error = trial.strike(common.sleep_in_c, trial.marks, timeout=1.0)
        assert isinstance(error, polyexec.TaskTimeout), repr(error)
        return None
    pipe = str(trial.folder / "pipe")
    os.mkfifo(pipe)

    def release() -> None:
        trial.marks.wait_for("start")
        time.sleep(1.0)  # the time limit passes meanwhile
        trial.marks.add("released")
        with suppress(BrokenPipeError), open(pipe, "wb") as file:
            file.write(b"data")

    releaser = threading.Thread(target=release)
    releaser.start()
    error = trial.error(trial.ex.options(timeout=0.2).submit(common.read_pipe, trial.marks, pipe))
    releaser.join(PATIENCE)
    trial.injected()
    assert isinstance(error, polyexec.TaskTimeout), repr(error)
    assert trial.marks.lines()[-2:] == ["released", "finally"], trial.marks.lines()
    trial.usable()
    return "F6"


@contextmanager
def _killing(trial: Trial, pause: float) -> Iterator[list[int]]:
    """Kill the worker that has begun a task last, again and again; gives the ids of those that were killed."""
    killed: list[int] = []
    end = threading.Event()

    def work() -> None:
        while not end.wait(pause):
            started = [int(line.split()[1]) for line in trial.marks.lines()[-4:]]
            if started and started[-1] not in killed:
                kill(started[-1])
                killed.append(started[-1])

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield killed
    finally:
        end.set()
        thread.join()


def numbered(marks: Marks, number: int) -> int:
    """Mark the start with a number and the process, take a little while, and give the number."""
    marks.add(f"{number} {os.getpid()}")
    time.sleep(0.002)
    return number


def _many_kills(trial: Trial, count: int) -> None:
    """All results come, and no body starts more often than its retries allow."""
    retries = 20
    begun = time.monotonic()
    with _killing(trial, 0.2) as killed:
        futures = [trial.ex.options(retries=retries).submit(numbered, trial.marks, number) for number in range(count)]
        for number, future in enumerate(futures):
            assert trial.value(future) == number
            assert 1 <= future.attempts <= retries + 1
    trial.injected(begun, len(killed))
    trial.result.detected.clear()
    starts: dict[str, int] = {}
    for line in trial.marks.lines():
        starts[line.split()[0]] = starts.get(line.split()[0], 0) + 1
    wrong = {n: f.attempts for n, f in enumerate(futures) if starts[str(n)] > f.attempts}
    trial.result.starts = sum(starts.values())
    trial.result.duplicates = sum(max(0, number - retries - 1) for number in starts.values())
    assert not wrong, f"bodies started more often than attempts say: {wrong}"
    assert killed, "no worker was killed"
    trial.saw(f"all {count} results; {len(killed)} workers killed")
    trial.usable()


def _poison(trial: Trial) -> None:
    """A task that kills each worker that runs it fails after all its attempts, and nobody else does."""
    others = trial.bystanders()
    victim = trial.ex.options(name="victim", retries=3).submit(bodies.die, trial.marks, "SIGKILL")
    others.queue()
    error = trial.error(victim)
    trial.injected(float(trial.marks.values("fault")[0]), 4)
    assert type(error) is polyexec.WorkerDied, repr(error)
    assert victim.attempts == 4, f"attempts says {victim.attempts}"
    others.check()
    trial.starts(4, 4)
    trial.usable()


def _once(trial: Trial) -> None:
    """Without retries no fault makes a body start twice, nor those around it."""
    others = trial.bystanders()
    kinds: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
        (bodies.leave, (3,)),
        (bodies.fail, (ValueError("bad"),)),
        (bodies.fail, (KeyboardInterrupt(),)),
        (bodies.recurse, (None,)),
        (values.make_lock, ()),
        (values.make_bomb, ("ValueError",)),
    ]
    if trial.target.capabilities.processes:
        kinds += [(bodies.die, ("SIGKILL",)), (bodies.die, ("exit 0",)), (bodies.crash, ()), (stop, ())]
    futures = []
    for number, (function, arguments) in enumerate(kinds):
        marks = Marks(str(trial.folder / f"kind-{number}"))
        timeout = 1.0 if function is stop else None
        futures.append((marks, trial.ex.options(timeout=timeout).submit(function, marks, *arguments)))
    others.queue()
    for marks, future in futures:
        trial.ex.wait([future], timeout=PATIENCE)
        assert future.done()
        assert (marks.count("start"), future.attempts) == (1, 1), f"{marks.lines()}, attempts {future.attempts}"
        trial.result.injected += 1
        trial.result.starts = (trial.result.starts or 0) + marks.count("start")
        with suppress(BaseException):
            future.result(0)
    trial.saw("each started once")
    others.check()
    trial.usable()


def _maker_killed(trial: Trial, size: int) -> None:
    """A result that is there already survives its worker, or is known to be lost; nothing is run again."""
    victim = trial.ex.options(name="victim").submit(make, trial.marks, size)
    trial.ex.wait([victim], timeout=PATIENCE)
    until_idle(trial.ex)
    maker = int(trial.marks.values("start")[0])
    kill(maker)
    eventually(lambda: not alive(maker), "the worker has ended")
    since = time.monotonic()
    try:
        assert len(trial.value(victim)) == size
        trial.saw("a value")
    except polyexec.ObjectLost as error:
        trial.saw(error)
    trial.injected(since)
    trial.starts(1, 1)
    trial.usable()


_WORKERS = (PROCESSES,)

ROWS = (
    Row(
        "F12",
        "A worker is killed while it sends a large result",
        "`WorkerDied`, or the result if it was there already; nobody else is harmed",
        ("F13",),
        (
            Case("while it serialises 100 MB", _killed_serialising, _WORKERS),
            Case("at moments of its sending 400 MB", _killed_sending, _WORKERS, limit=240.0),
        ),
        3.0,
    ),
    Row(
        "F13",
        "A worker is killed while it receives a large argument",
        "`WorkerDied`, or the result, because a body that has not begun may run elsewhere",
        ("F13", "F5"),
        (
            Case("while it rebuilds 400 MB", _killed_rebuilding, _WORKERS, limit=180.0),
            Case("at moments of its receiving 400 MB", _killed_receiving, _WORKERS, limit=240.0),
        ),
        3.0,
    ),
    Row(
        "F14",
        "A worker is killed while it runs no task",
        "no task is lost; the worker is replaced",
        ("F13",),
        (
            Case("an idle one", partial(_idle_killed, count=1), _WORKERS),
            Case("all idle ones at once", partial(_idle_killed, count=2), _WORKERS),
            Case("just after a task", _killed_after_task, _WORKERS, limit=180.0),
            Case("just before and in tasks", _killed_before_task, _WORKERS, limit=180.0),
            Case("while it starts", _killed_starting, _WORKERS, own=True, limit=120.0),
        ),
        3.0,
    ),
    Row(
        "F15",
        "A worker stands still",
        "`timeout` and force end it; without them it may go on later",
        ("F6", "C3"),
        (
            Case("SIGSTOP, with a timeout of 1 s", _stopped, _WORKERS),
            Case("SIGSTOP, cancelled by force", _stopped_and_cancelled, _WORKERS),
            Case("SIGSTOP, and SIGCONT after 1 s", _stopped_and_continued, _WORKERS),
            Case("in C code, with a timeout", _in_c),
        ),
        3.0,
    ),
    Row(
        "F16",
        "Workers are killed every 0.2 s while tasks with retries run",
        "all results are right; no body starts more often than allowed",
        ("F3", "F5"),
        (Case("5,000 tasks", partial(_many_kills, count=5000), _WORKERS, limit=400.0),),
        120.0,
    ),
    Row(
        "F17",
        "A task kills each worker that runs it, with 3 retries",
        "`WorkerDied` after 4 starts; nobody else is harmed",
        ("F5",),
        (Case("SIGKILL", _poison, _WORKERS, limit=120.0),),
        20.0,
    ),
    Row(
        "F18",
        "Faults of many kinds, without retries",
        "each body starts once",
        ("F5",),
        (Case("one after the other", _once),),
        10.0,
    ),
    Row(
        "F19",
        "The worker that has made a result is killed before the result is asked for",
        "the result, or `ObjectLost`; nothing is run again",
        ("O7", "F5"),
        (
            Case("1,000 bytes", partial(_maker_killed, size=1000), _WORKERS),
            Case("20 MB", partial(_maker_killed, size=20_000_000), _WORKERS),
        ),
        5.0,
    ),
)

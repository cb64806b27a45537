"""Rows of engines whose own processes are harmed, and of clocks and versions that do not agree."""

from __future__ import annotations

import os
import re
import signal
import time
from functools import partial
from typing import Any

import polyexec
from polyexec import Executor, Future
from polyexec.testing import bodies, skew
from polyexec.testing.drivers import Driver
from polyexec.testing.faults.model import PROCESSES, Case, Row
from polyexec.testing.faults.trial import HungError, Trial
from polyexec.testing.tools import Gate, Marks, eventually
from polyexec.testing.watch import Process, family, read_process

_LIMIT = 75.0
"""Seconds within which an engine must have noticed; most look every few seconds whether all is well."""


def _label(process: Process, everyone: dict[int, Process]) -> str:
    """Name a process by its program, and by how far below this one it is: those of a kind stand at one height."""
    words = re.findall(r"(?:ray::)?[A-Za-z_][\w.]*", process.command.replace("/", " "))
    ours = [word for word in words if word.startswith(("polyexec_", "ray::"))]
    scripts = [word.removesuffix(".py") for word in words if word.endswith(".py")]
    program = process.command.split(" ")[0].rpartition("/")[2]
    height, one = 0, process
    while one.parent in everyone:
        height, one = height + 1, everyone[one.parent]
    return f"{[*ours, *scripts, program][0]} ({height + 1} below the driver)"


class _Spare:
    """Whoever serves no task: the processes of an engine that are no workers."""

    def __init__(self, trial: Trial, ex: Executor, before: set[Process]) -> None:
        gate, marks = Gate(str(trial.folder / f"pids-{time.monotonic_ns()}")), Marks(str(trial.folder / "pids"))
        found = [ex.submit(bodies.pid_at, marks, gate) for _ in range(2)]
        gate.open()
        workers = {trial.value(future) for future in found}
        everyone = {one.pid: one for one in family() - before}
        self.processes: dict[str, Process] = {}
        for one in sorted(everyone.values(), key=lambda one: one.start):
            if one.pid not in workers:
                self.processes.setdefault(_label(one, everyone), one)


def _end_of(trial: Trial, future: Future[Any], end: float) -> str:
    """Give how a Future has ended, which it must do by that time."""
    try:
        future.result(max(0.1, end - time.monotonic()))
    except polyexec.PolyexecError as error:
        return type(error).__name__
    except TimeoutError:
        raise HungError(f"{future!r} did not end") from None
    return "a value"


def _harm(trial: Trial, label: str, number: signal.Signals, before: set[Process]) -> None:
    """Harm one process while tasks run and wait; all end, and the executor works on or says that it does not."""
    with trial.opened(workers=2) as ex:
        process = _Spare(trial, ex, before).processes.get(label)
        if process is None:
            return
        gate = Gate(str(trial.folder / f"go-{time.monotonic_ns()}"))
        marks = Marks(str(trial.folder / f"marks-{time.monotonic_ns()}"))
        running = [ex.submit(bodies.pass_gate, marks, gate, f"running {index}") for index in range(2)]
        marks.wait_for("start", 2)
        pending = [ex.submit(bodies.mark, marks, f"pending {index}") for index in range(4)]
        begun = time.monotonic()
        os.kill(process.pid, number)
        try:
            if number == signal.SIGKILL:
                eventually(lambda: read_process(process.pid) != process, "it has died")
            gate.open()
            ends = {_end_of(trial, future, begun + _LIMIT) for future in (*running, *pending)}
            ends.add(_later(trial, ex, begun + 2 * _LIMIT))
            trial.injected(begun)
            trial.saw(f"{label}: {', '.join(sorted(ends))}")
            for line in set(marks.lines()):
                assert marks.lines().count(line) == 1, f"{label}: {line!r} came twice"
        finally:
            if number == signal.SIGSTOP and read_process(process.pid) == process:
                os.kill(process.pid, signal.SIGCONT)


def _later(trial: Trial, ex: Executor, end: float) -> str:
    """Submit one more task, and say how it ended."""
    try:
        return _end_of(trial, ex.submit(bodies.add, 20, 22), end)
    except (polyexec.BackendLost, polyexec.BackendBroken) as error:
        return type(error).__name__


def _harm_all(trial: Trial, number: signal.Signals) -> None:
    before = family()
    with trial.opened(workers=2) as ex:
        labels = list(_Spare(trial, ex, before).processes)
    for label in labels:
        _harm(trial, label, number, before)


def _skewed(trial: Trial) -> None:
    begun = time.monotonic()
    answer = skew.told(Driver(trial.target, trial.folder), trial.folder)
    trial.injected(begun)
    trial.saw(str(answer["error"]))
    assert answer["error"] == "BackendBroken"
    assert answer["version"] in answer["text"]
    assert skew.VERSION in answer["text"]


_CLOCK = """
import os, time

def _jump(real, unit):
    def now():
        try:
            return real() + unit * int(open(os.environ["POLYEXEC_TESTING_CLOCK"]).read() or 0)
        except (OSError, KeyError, ValueError):
            return real()
    return now

time.time = _jump(time.time, 1)
time.time_ns = _jump(time.time_ns, 10**9)
"""

_JUMPING = """
    import json, os, sys, time
    import polyexec
    from polyexec.testing import bodies
    from polyexec.testing.tools import Gate, Marks

    def set_clock(days):
        with open(os.environ["POLYEXEC_TESTING_CLOCK"] + ".new", "w") as file:
            file.write(str(int(days * 86400)))
        os.replace(file.name, os.environ["POLYEXEC_TESTING_CLOCK"])

    marks = Marks(sys.argv[2])
    inline = sys.argv[3] == "inline"
    with polyexec.connect(sys.argv[1]) as ex:
        found = {}
        for number, days in enumerate((1, -1, 0)):
            gate = Gate(f"{sys.argv[2]}-gate-{number}")
            if inline:
                gate.open()
            patient = ex.options(timeout=600).submit(bodies.pass_gate, marks, gate, f"task {number}")
            if not inline:
                try:
                    patient.result(timeout=0.2)
                except TimeoutError:
                    pass
            set_clock(days)
            late = ex.options(timeout=0.5).submit(bodies.beat, marks)
            found[days] = [type(late.exception(30)).__name__, len(ex.wait([patient], timeout=0.1)[1])]
            gate.open()
            found[days].append(patient.result(30))
            found[days].append(ex.submit(lambda: __import__("time").time()).result(30) > 0)
        print(json.dumps(list(found.values())), flush=True)
"""


def _clock_jumps(trial: Trial) -> None:
    """Neither too early nor too late does a time limit strike, though the wall clock jumps by a day and back."""
    folder = trial.folder / "clock"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_CLOCK, encoding="utf-8")
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH", "")])])
    environment = {"PYTHONPATH": path, "POLYEXEC_TESTING_CLOCK": str(folder / "offset")}
    inline = trial.target.capabilities.inline
    begun = time.monotonic()
    ended = Driver(trial.target, trial.folder).run(
        _JUMPING, trial.marks.path, "inline" if inline else "", environment=environment
    )
    trial.injected(begun, 3)
    assert ended.code == 0, f"{ended.code}: {ended.errors}"
    pending = 0 if inline else 1
    assert ended.said == [[["TaskTimeout", pending, f"task {number}", True] for number in range(3)]], ended.said


ROWS = (
    Row(
        "F42",
        "A process of the engine's own is killed, or stopped",
        "every Future ends, none runs twice; the executor goes on, or says that it is broken or lost",
        ("F10", "F13"),
        (
            Case("each is killed", partial(_harm_all, number=signal.SIGKILL), (PROCESSES,), own=True, limit=1200.0),
            Case("each is stopped", partial(_harm_all, number=signal.SIGSTOP), (PROCESSES,), own=True, limit=1200.0),
        ),
        60.0,
    ),
    Row(
        "F43",
        "Workers have another version than the driver",
        "`BackendBroken` that names both",
        ("D3",),
        (Case("another polyexec", _skewed, (PROCESSES,), own=True),),
        5.0,
    ),
    Row(
        "F44",
        "The wall clock jumps by a day, and back",
        "time limits are kept as before",
        ("F6", "W2", "W5"),
        (Case("in all processes", _clock_jumps, own=True),),
        1.0,
    ),
)

"""Rows of drivers that end, or are interrupted, while tasks run."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import attrs

import polyexec
from polyexec import Executor
from polyexec.testing import bodies
from polyexec.testing.drivers import Driver
from polyexec.testing.faults.model import QUEUE, Case, Row
from polyexec.testing.faults.trial import Trial
from polyexec.testing.things import Things
from polyexec.testing.tools import PATIENCE, TASK_LIMIT, Gate, Marks, eventually
from polyexec.testing.watch import alive

_GRACE = 10.0
_LONG_GRACE = 80.0
"""Seconds for the engine's own processes where they are declared to need about a minute (F8)."""

_TASKS = 4
"""Of a driver: two run, and two wait behind them."""

_SCRIPT = """
    import sys
    from polyexec.testing.faults.endings import main

    if __name__ == "__main__":
        main(*sys.argv[1:])
"""


def run(marks: Marks, gate: Gate) -> None:
    """Mark the start; end when the gate is open, or, with another mark, when interrupted."""
    marks.add(f"start {os.getpid()}")
    try:
        gate.wait()
    except BaseException:
        marks.add("saw an interrupt")
        raise
    marks.add("end")


def defy(marks: Marks, gate: Gate) -> None:
    """Mark the start; end when the gate is open, whoever interrupts."""
    marks.add(f"start {os.getpid()}")
    end = time.monotonic() + TASK_LIMIT
    while time.monotonic() < end and not gate.is_open():
        with suppress(BaseException):
            gate.wait(1.0)


def _waits(ex: Executor, marks: Marks, gate: Gate) -> None:
    ex.wait([ex.submit(run, marks, gate) for _ in range(_TASKS)])


def _submits(ex: Executor, marks: Marks, gate: Gate) -> None:
    if not ex.submit(run, marks, gate).done():
        ex.submit(run, marks, gate)
    while True:
        ex.submit(bodies.add, 1, 1)
        time.sleep(0.001)


def _maps(ex: Executor, marks: Marks, gate: Gate) -> None:
    for _ in ex.map(lambda _: run(marks, gate), itertools.count()):
        pass


def _closes(ex: Executor, marks: Marks, gate: Gate) -> None:
    for _ in range(2):
        ex.submit(run, marks, gate)
    ex.close()


def _defies(ex: Executor, marks: Marks, gate: Gate) -> None:
    ex.wait([ex.submit(defy, marks, gate) for _ in range(_TASKS)])


def _raises(ex: Executor, marks: Marks, gate: Gate) -> None:
    for _ in range(_TASKS):
        ex.submit(run, marks, gate)
    marks.wait_for("start", 2)
    raise LookupError("uncaught")


def _ends(ex: Executor, marks: Marks, gate: Gate) -> None:
    for _ in range(_TASKS):
        ex.submit(run, marks, gate)
    marks.wait_for("start", 2)
    marks.add("the program ends")


_USES = {use.__name__: use for use in (_waits, _submits, _maps, _closes, _defies, _raises, _ends)}


def main(specification: str, how: str, use: str, path: str, gate_path: str, exit_path: str) -> None:
    """Be a driver: use an executor in some way, in a block that closes it, that goes on after Ctrl-C, or neither."""
    # Shells let background jobs ignore it, and so would this program then.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    marks, gate = Marks(path), Gate(gate_path)
    threading.Thread(target=_exit_when_told, args=(Gate(exit_path),), daemon=True).start()
    if how == "open":
        _USES[use](polyexec.connect(specification), marks, gate)
        return
    with polyexec.connect(specification) as ex:
        try:
            _USES[use](ex, marks, gate)
        except KeyboardInterrupt:
            marks.add(f"interrupted {time.monotonic()}")
            if how == "closing":
                raise
            gate.open()
            if use != "_closes":
                marks.add(f"after {ex.submit(bodies.add, 1, 1).result(PATIENCE)}")


def _exit_when_told(gate: Gate) -> None:
    gate.wait(2 * TASK_LIMIT)
    os._exit(3)


@attrs.define(eq=False)
class _Scene:
    """A driver with tasks, and what there was before it."""

    trial: Trial
    how: str
    use: str
    gate: Gate = attrs.field(init=False)
    leave: Gate = attrs.field(init=False)
    before: Things = attrs.field(factory=Things.now)

    def __attrs_post_init__(self) -> None:
        self.gate, self.leave = (Gate(str(self.trial.folder / name)) for name in ("go on", "leave"))

    def play(self, act: Callable[[_Scene, subprocess.Popen[str]], float], code: int) -> str | None:
        """Start the driver, do something to it when tasks run, and look at what it leaves.

        Args:
            act: does it, waits for the driver's end, and gives the time of the fault.
            code: exit status that the driver must have.

        Returns:
            ``"F8"`` if something was left as that deviation declares.
        """
        marks, declared = self.trial.marks, self.trial.target.declared("F8") is not None
        found: list[bool] = []

        def meanwhile(process: subprocess.Popen[str]) -> None:
            marks.wait_for("start", 1 if self.trial.target.capabilities.inline else 2)
            since = act(self, process)
            process.wait(PATIENCE)
            found.append(self._nothing_left(process.pid, since, lenient=declared and code in (-9, -15, 3)))

        ended = Driver(self.trial.target, self.trial.folder).run(
            _SCRIPT, self.how, self.use, marks.path, self.gate.path, self.leave.path, meanwhile=meanwhile
        )
        assert "killed by the suite" not in ended.errors, ended.errors
        assert ended.code == code, f"exit status {ended.code}, not {code}: {ended.errors}"
        assert found, ended.errors
        self.trial.saw(f"the driver ends with {signal.Signals(-code).name if code < 0 else f'exit code {code}'}")
        return None if found[0] else "F8"

    def _nothing_left(self, driver: int, since: float, *, lenient: bool) -> bool:
        """Wait until everything is gone; tells whether it went in time, and all of it."""
        pids = {int(pid) for pid in self.trial.marks.values("start")} - {driver}
        eventually(lambda: not any(map(alive, pids)), lambda: f"workers have ended, of {pids}", _GRACE)
        left = self.before.processes_left
        try:
            eventually(lambda: not left(), lambda: f"no process is left; left are {left()}", _GRACE)
            if not lenient:
                eventually(lambda: not self.before.files_left(), lambda: f"left are {self.before.files_left()}", _GRACE)
        except AssertionError:
            if not lenient:
                raise
            eventually(lambda: not left(), lambda: f"no process is left; left are {left()}", _LONG_GRACE)
        self.trial.injected(since)
        files = self.before.files_left()
        self.before.remove_files()
        return not files


def _sends(scene: _Scene, process: subprocess.Popen[str], number: signal.Signals, *, group: bool = False) -> float:
    since = time.monotonic()
    if group:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    return since


def _killed(trial: Trial, number: signal.Signals) -> str | None:
    return _Scene(trial, "closing", "_waits").play(partial(_sends, number=number), -number)


def _interrupted(trial: Trial, *, group: bool) -> str | None:
    found = _Scene(trial, "closing", "_waits").play(partial(_sends, number=signal.SIGINT, group=group), -signal.SIGINT)
    running = 1 if trial.target.capabilities.inline else 2
    assert trial.marks.count("saw an interrupt") == running, trial.marks.lines()
    trial.starts(running)
    return found


def _leaves(trial: Trial) -> str | None:
    def act(scene: _Scene, process: subprocess.Popen[str]) -> float:
        since = time.monotonic()
        scene.leave.open()
        return since

    return _Scene(trial, "closing", "_waits").play(act, 3)


def _fails(trial: Trial) -> str | None:
    """An exception that leaves the block cancels what runs, and what waits never does."""
    found = _Scene(trial, "closing", "_raises").play(lambda scene, process: time.monotonic(), 1)
    assert trial.marks.count("saw an interrupt") == 2, trial.marks.lines()
    trial.starts(2)
    return found


def _ends_with_work(trial: Trial) -> str | None:
    """A program that ends without ``close`` has its tasks run to their end first."""

    def act(scene: _Scene, process: subprocess.Popen[str]) -> float:
        trial.marks.wait_for("the program ends")
        scene.gate.open()
        return time.monotonic()

    found = _Scene(trial, "open", "_ends").play(act, 0)
    assert trial.marks.count("end") == _TASKS, trial.marks.lines()
    trial.starts(_TASKS, _TASKS)
    return found


def _interrupted_in(trial: Trial, use: str) -> None:
    """Ctrl-C comes once, out of what was waited in; the executor goes on."""

    def act(scene: _Scene, process: subprocess.Popen[str]) -> float:
        _until_it_waits(process.pid)
        since = time.monotonic()
        process.send_signal(signal.SIGINT)
        trial.marks.wait_for("interrupted")
        trial.result.detected.append(round(float(trial.marks.values("interrupted")[0]) - since, 4))
        return since

    _Scene(trial, "going on", use).play(act, 0)
    trial.result.detected.pop()
    assert trial.marks.count("interrupted") == 1
    assert use == "_closes" or trial.marks.values("after") == ["2"], trial.marks.lines()
    trial.result.outcome = "KeyboardInterrupt, once"


def _until_it_waits(pid: int) -> None:
    status = Path(f"/proc/{pid}/status")
    if status.exists():
        eventually(lambda: "State:\tS" in status.read_text(), "the driver waits")


def _interrupted_twice(trial: Trial) -> str | None:
    """The second Ctrl-C ends a driver whose tasks do not let themselves be interrupted."""

    def act(scene: _Scene, process: subprocess.Popen[str]) -> float:
        process.send_signal(signal.SIGINT)
        trial.marks.wait_for("interrupted")
        _until_it_waits(process.pid)
        since = time.monotonic()
        process.send_signal(signal.SIGINT)
        return since

    return _Scene(trial, "closing", "_defies").play(act, -signal.SIGINT)


def _signal(number: signal.Signals) -> Case:
    return Case(number.name, partial(_killed, number=number), own=True, limit=180.0)


ROWS = (
    Row(
        "F21",
        "The driver ends while tasks run",
        "no process, memory or file is left",
        ("F8", "F9"),
        (
            _signal(signal.SIGKILL),
            _signal(signal.SIGTERM),
            Case("`os._exit`", _leaves, own=True, limit=180.0),
            Case("SIGINT", partial(_interrupted, group=False), own=True, limit=120.0),
            Case("SIGINT to its process group", partial(_interrupted, group=True), own=True, limit=120.0),
            Case("an exception that nobody catches", _fails, (QUEUE,), own=True, limit=120.0),
            Case("its last line, with work pending", _ends_with_work, (QUEUE,), own=True, limit=120.0),
        ),
        5.0,
    ),
    Row(
        "F22",
        "Ctrl-C in the driver",
        "KeyboardInterrupt once, where it was waited; the executor goes on, and closes",
        ("W7", "F9"),
        (
            Case("in `wait`", partial(_interrupted_in, use="_waits"), own=True, limit=120.0),
            Case("in `submit`", partial(_interrupted_in, use="_submits"), own=True, limit=120.0),
            Case("in `map`", partial(_interrupted_in, use="_maps"), own=True, limit=120.0),
            Case("in `close`", partial(_interrupted_in, use="_closes"), (QUEUE,), own=True, limit=120.0),
            Case("twice, and tasks that defy the first", _interrupted_twice, (QUEUE,), own=True, limit=120.0),
        ),
        0.5,
    ),
)

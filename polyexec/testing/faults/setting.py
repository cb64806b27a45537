"""Rows of the setting in which tasks run: main modules, GPUs, and what others on this machine may see."""

from __future__ import annotations

import os
import signal
import stat
import tempfile
import time
from pathlib import Path

import polyexec
from polyexec.testing import bodies
from polyexec.testing.drivers import Driver
from polyexec.testing.faults.model import PROCESSES, Case, Row
from polyexec.testing.faults.trial import Trial
from polyexec.testing.leftovers import listening_addresses
from polyexec.testing.tools import Marks
from polyexec.testing.watch import family

_WITHOUT_GUARD = """
    import json, sys
    import polyexec
    from polyexec.testing.tools import Marks

    Marks(sys.argv[2]).add("main runs")

    class Thing:
        def __init__(self, value):
            self.value = value

    def doubled(value):
        return Thing(2 * value)

    ex = polyexec.connect(sys.argv[1])
    found = [ex.submit(doubled, number) for number in range(4)]
    things = [future.result(30) for future in found]
    print(json.dumps([isinstance(thing, Thing) for thing in things]))
    print(json.dumps(ex.submit(lambda: sum(thing.value for thing in things)).result(30)))
    ex.close()
"""


def _no_guard(trial: Trial) -> None:
    """The script runs once, in the driver alone, though it has no guard; its functions and classes are its own."""
    marks = Marks(str(trial.folder / "main"))
    begun = time.monotonic()
    ended = Driver(trial.target, trial.folder).run(_WITHOUT_GUARD, marks.path)
    trial.injected(begun)
    assert ended.code == 0, ended.errors
    assert ended.said == [[True] * 4, 12], ended.said
    assert marks.lines() == ["main runs"]


def _gpus_come_back(trial: Trial) -> None:
    """What a killed task held is there for the next one, which needs all of it."""
    others = trial.bystanders()
    needs_all = trial.ex.options(gpus=2, cpus=0)
    victim = needs_all.submit(bodies.sleep_in_c, trial.marks)
    trial.marks.wait_for("start")
    others.queue()
    waits = needs_all.submit(bodies.variables, "CUDA_VISIBLE_DEVICES")
    begun = time.monotonic()
    os.kill(int(trial.marks.values("start")[0]), signal.SIGKILL)
    assert type(trial.error(victim)) is polyexec.WorkerDied
    (devices,) = trial.value(waits)
    trial.injected(begun)
    assert devices is not None
    assert len(devices.split(",")) == 2
    others.check()
    trial.usable()


_LOOPBACK = ("127.", "::1:")


def _nobody_listens_outside(trial: Trial) -> None:
    """No process listens where another host could reach it."""
    begun = time.monotonic()
    assert trial.value(trial.ex.submit(bodies.add, 1, 1)) == 2
    found = {address for one in family() for address in listening_addresses(one.pid)}
    trial.injected(begun)
    trial.saw(f"{len(found)} sockets listen" if found else "no socket listens")
    outside = {address for address in found if not address.startswith(_LOOPBACK)}
    assert not outside, outside


_SECRET = "canary-5b1d"


def _no_secrets(trial: Trial) -> None:
    """A task's arguments and variables are in nobody's command line, and in no file's name."""
    begun = time.monotonic()
    gate = trial.gate("secret")
    held = trial.ex.options(env={"TOKEN": _SECRET}).submit(bodies.pass_gate, trial.marks, gate, _SECRET)
    trial.marks.wait_for("start")
    commands = [one.command for one in family()]
    names = [name for _, folders, files in os.walk(tempfile.gettempdir()) for name in (*folders, *files)]
    gate.open()
    assert trial.value(held) == _SECRET
    trial.injected(begun)
    assert not [text for text in (*commands, *names) if _SECRET in text]


def _private_files(trial: Trial) -> None:
    """What lies in the folder for temporary files is for its owner alone, at its top."""
    begun = time.monotonic()
    assert trial.value(trial.ex.submit(bodies.add, 1, 1)) == 2
    trial.ex.put(bytes(2**20))
    found = [path for path in Path(tempfile.gettempdir()).iterdir() if not path.is_relative_to(trial.folder)]
    trial.injected(begun)
    open_to_others = [f"{path.name} {stat.filemode(path.lstat().st_mode)}" for path in found if _is_open(path)]
    assert not open_to_others, open_to_others


def _is_open(path: Path) -> bool:
    return bool(path.lstat().st_mode & (stat.S_IRWXG | stat.S_IRWXO))


ROWS = (
    Row(
        "F45",
        'A script without `if __name__ == "__main__"`',
        "it runs once; its functions and classes can be submitted",
        ("S3",),
        (Case("functions and classes of the script", _no_guard, own=True),),
        20.0,
    ),
    Row(
        "F46",
        "A task that holds all GPUs is killed",
        "they are there for the next one",
        ("R5", "C7"),
        (Case("SIGKILL", _gpus_come_back, (PROCESSES,)),),
        5.0,
    ),
    Row(
        "F47",
        "Others look at what runs",
        "no socket for other hosts, no secret, no file that is open to others",
        ("F8",),
        (
            Case("listening sockets", _nobody_listens_outside),
            Case("command lines and names of files", _no_secrets),
            Case("temporary files", _private_files),
        ),
        1.0,
    ),
)

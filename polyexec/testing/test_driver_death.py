"""Chapter F: what is left when the driver is killed."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from polyexec.testing.drivers import Driver
from polyexec.testing.marks import alone, clause, deviation
from polyexec.testing.things import Things
from polyexec.testing.tools import eventually
from polyexec.testing.watch import LINUX, alive

_MINUTE = 80.0
"""Seconds within which an engine's own processes must have ended where they are declared to need about a minute."""

_SCRIPT = """
    import json, os, subprocess, sys, time
    import polyexec

    def busy(path, number, payload, starts):
        child = subprocess.Popen(["sleep", "600"]) if starts else None
        with open(f"{path}-{number}.part", "w") as file:
            file.write(" ".join(str(pid) for pid in (os.getpid(), child and child.pid) if pid))
        os.rename(f"{path}-{number}.part", f"{path}-{number}")
        time.sleep(600)

    def make(size):
        return bytearray(size)

    def say(**values):
        print(json.dumps(values), flush=True)

    if __name__ == "__main__":
        state, path, kind = sys.argv[2:5]
        inline, starts = kind == "inline", kind == "processes"
        ex = polyexec.connect(sys.argv[1]).options(working_dir=sys.argv[5])
        stored = ex.put(bytearray(20_000_000))
        made = ex.submit(make, 20_000_000)
        made.result(60)
        if state == "busy" and not inline:
            futures = [ex.submit(busy, path, number, made, starts) for number in range(4)]
            while not all(os.path.exists(f"{path}-{number}") for number in range(2)):
                time.sleep(0.01)
        say(ready=os.getpid())
        if state == "busy" and inline:
            ex.submit(busy, path, 0, made, starts)
        time.sleep(600)
"""


@pytest.fixture
def before(driver: Driver) -> Iterator[Things]:
    """What there was before; processes and files that are left at the end are taken away."""
    if not LINUX:
        pytest.skip("processes are found on Linux alone")
    found = Things.now()
    yield found
    found.end_others(5.0)
    found.remove_files()


@alone
@clause("F8", "F16")
@pytest.mark.parametrize(
    ("how", "state"),
    [("SIGKILL", "busy"), ("SIGKILL", "idle"), ("SIGTERM", "busy")],
    ids=["SIGKILL-busy", "SIGKILL-idle", "SIGTERM-busy"],
)
def test_a_killed_driver_leaves_nothing(driver: Driver, before: Things, tmp_path: Path, how: str, state: str) -> None:
    """F8 When the driver is killed, its workers end, and what their tasks have started; no memory or file is left."""

    def check(then: Things) -> None:
        eventually(
            lambda: not before.processes_left(), lambda: f"no process is left; left are {before.processes_left()}"
        )
        eventually(
            lambda: not before.memory_left(then.processes),
            lambda: f"memory is left: {before.memory_left(then.processes)}",
        )
        eventually(lambda: not before.files_left(), lambda: f"no file is left; left are {before.files_left()}")

    kill_a_driver(driver, before, str(tmp_path / "pids"), how, state, check)


@alone
@deviation("F8")
@pytest.mark.timeout(120, method="signal")
def test_a_killed_driver_leaves_no_worker(driver: Driver, before: Things, tmp_path: Path) -> None:
    """F8 (declared) Workers, and what tasks have started, end at once; the engine's own processes later; files stay."""

    def check(then: Things) -> None:
        pids = [int(pid) for path in tmp_path.glob("pids-?") for pid in path.read_text().split()]
        eventually(lambda: not any(map(alive, pids)), lambda: f"of {pids} are left {list(filter(alive, pids))}")
        eventually(
            lambda: not before.memory_left(then.processes),
            lambda: f"memory is left: {before.memory_left(then.processes)}",
        )
        eventually(lambda: not before.processes_left(), lambda: f"left are {before.processes_left()}", _MINUTE)
        assert before.files_left(), "nothing is left: the deviation need not be declared"
        sent = [name for name in before.files_left() if "packages" in name]
        assert not sent, f"what was sent along with tasks is left: {sent}"

    kill_a_driver(driver, before, str(tmp_path / "pids"), "SIGKILL", "busy", check)


def kill_a_driver(
    driver: Driver, before: Things, path: str, how: str, state: str, check: Callable[[Things], None]
) -> None:
    """Run a driver, kill it when it is in some state, and check what is left, given what there was just before."""
    seen: list[Things] = []

    def kill(process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        assert json.dumps({"ready": process.pid}) + "\n" in process.stdout, "the script ended"
        seen.append(Things.now())
        process.send_signal(signal.Signals[how])
        process.wait(30)
        check(seen[0])

    can = driver.target.capabilities
    kind = "inline" if can.inline else "processes" if can.processes else "threads"
    sent = driver.folder / "sent"
    sent.mkdir()
    (sent / "data.txt").write_text("goes along with the tasks")
    ended = driver.run(_SCRIPT, state, path, kind, str(sent), meanwhile=kill)
    assert seen, ended.errors
    assert "killed by the suite" not in ended.errors, ended.errors
    assert ended.code == -signal.Signals[how], ended.errors
    if can.processes:
        assert len(seen[0].processes - before.processes) > 2, "no worker was seen"

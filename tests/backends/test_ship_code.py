"""Folders and modules reach clusters that others have started: with their own commands, in other folders, as others."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

import polyexec
from polyexec.testing.tools import eventually
from polyexec.testing.watch import family, marked_environment

LIMIT = 60.0
BIN = Path(sys.executable).parent
ROOT = Path(polyexec.__file__).parents[1]

DRIVER = """
    import json, os, socket, sys, time
    import polyexec

    specification, shelf, how = sys.argv[1:]
    with polyexec.connect(specification) as ex:
        # Only now, so that workers do not look here.
        sys.path.insert(0, shelf)
        import package.inner, single

        view = ex.options(working_dir=f"{shelf}/folder", py_modules=[single, f"{shelf}/package"])
        if how == "killed":
            print(json.dumps(view.submit(os.getcwd).result(60)), flush=True)
            view.submit(time.sleep, 600)
            time.sleep(600)
        doubled = view.submit(package.inner.double, view.submit(single.make, 20)).result(60)
        seen = view.submit(package.inner.look).result(60)
        nested = view.submit(package.inner.nest, single.make).result(60)
        without = ex.submit(os.getcwd).result(60)
        print(json.dumps([doubled.value, seen, nested.value, without]), flush=True)
"""

SHELF = {
    "single.py": """
        class Thing:
            def __init__(self, value):
                self.value = value

        def make(value):
            return Thing(value)
    """,
    "package/__init__.py": "",
    "package/.gitignore": "secret*",
    "package/secret.txt": "stays here",
    "package/inner.py": """
        import os
        import polyexec
        import single
        from . import __file__ as here

        def double(thing):
            return single.make(2 * thing.value)

        def look():
            files = sorted(os.listdir(os.path.dirname(here)))
            return here, files, open("data.txt").read(), os.getcwd(), os.environ["HOME"]

        def nest(function):
            return polyexec.current().submit(function, 3).result()
    """,
    "folder/data.txt": "some data",
}


@attrs.frozen
class Away:
    """Where a cluster lives that shares nothing with the driver but the machine.

    Attributes:
        folder: its current directory, its home, and its temporary files; the path is short, for sockets.
        environment: of its processes.
        started: its programs.
    """

    folder: Path
    environment: dict[str, str]
    started: list[subprocess.Popen[bytes]] = attrs.field(factory=list)

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Start one of its programs."""
        log = (self.folder / "log").open("ab")
        process = subprocess.Popen(
            command, cwd=self.folder / "here", env=self.environment, stdout=log, stderr=log, start_new_session=True
        )
        self.started.append(process)
        return process

    def stop(self) -> None:
        """Let its programs end by themselves, so that they take their semaphores away."""
        for process in reversed(self.started):
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)

    def log(self) -> str:
        """Give what its programs have written."""
        return (self.folder / "log").read_text(errors="replace")[-4000:]

    def copies(self) -> list[Path]:
        """Give what was sent there and is not gone."""
        return list((self.folder / "tmp").glob("polyexec-packages-*"))


@pytest.fixture
def away(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Away]:
    # Not in the folder that is for the cluster alone.
    tmp_path_factory.getbasetemp()
    before = family()
    with marked_environment(), tempfile.TemporaryDirectory(prefix="pxc-") as name:
        folder = Path(name)
        for inner in ("here", "home", "tmp"):
            (folder / inner).mkdir()
        (folder / "token").write_text(secrets.token_hex(32))
        found = Away(
            folder,
            {
                **os.environ,
                "HOME": str(folder / "home"),
                "TMPDIR": str(folder / "tmp"),
                "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "backends")]),
                **settings(folder),
            },
        )
        yield found
        found.stop()
        for process in family() - before:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        eventually(lambda: not family() - before, "the cluster has ended")


def settings(folder: Path) -> dict[str, str]:
    """Give what driver and cluster have in common for Ray."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token"), "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    for name, text in SHELF.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(textwrap.dedent(text))
    return tmp_path


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def start_dask(away: Away) -> str:
    pytest.importorskip("distributed")
    known = away.folder / "scheduler.json"
    dask = str(BIN / "dask")
    away.start(
        dask, "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(known)
    )
    eventually(lambda: known.exists() and known.stat().st_size, away.log, LIMIT)
    address = json.loads(known.read_text())["address"]
    away.start(dask, "worker", address, "--host", "127.0.0.1", "--nthreads", "1", "--nworkers", "2", "--no-dashboard")
    return f"dask?address={address}&connect_timeout=30"


def start_ray(away: Away) -> str:
    pytest.importorskip("ray")
    port = free_port()
    head = away.start(
        str(BIN / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}",
        "--dashboard-agent-listen-port=0", "--include-dashboard=false",
        "--num-cpus=2", "--object-store-memory=100000000", f"--temp-dir={away.folder / 'ray'}", "--disable-usage-stats",
    )  # fmt: skip
    eventually(lambda: "Ray runtime started" in away.log() or head.poll() is not None, away.log, LIMIT)
    return f"ray?address=127.0.0.1:{port}"


@contextlib.contextmanager
def driver(specification: str, shelf: Path, away: Away, how: str) -> Iterator[subprocess.Popen[str]]:
    """Run a driver in the folder of the modules."""
    script = shelf / "driver.py"
    script.write_text(textwrap.dedent(DRIVER))
    environment = {**os.environ, "PYTHONPATH": away.environment["PYTHONPATH"], **settings(away.folder)}
    process = subprocess.Popen(
        [sys.executable, str(script), specification, str(shelf), how],
        cwd=shelf, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("start", [start_dask, start_ray])
def test_modules_reach_a_cluster(start: Callable[[Away], str], away: Away, shelf: Path) -> None:
    specification = start(away)
    with driver(specification, shelf, away, "closes") as process:
        output, errors = process.communicate(timeout=LIMIT)
        assert process.returncode == 0, errors + away.log()
        check(json.loads(output), away)
    eventually(lambda: not away.copies(), lambda: f"left are {away.copies()}")
    with driver(specification, shelf, away, "killed") as process:
        assert process.stdout is not None
        folder = json.loads(process.stdout.readline() or "null")
        assert folder, away.log()
        assert [Path(folder).parent] == away.copies()
        process.kill()
        eventually(lambda: not away.copies(), lambda: f"left are {away.copies()}")


def check(answer: list[Any], away: Away) -> None:
    """Look at what a driver has found out about its tasks."""
    doubled, (here, files, data, folder, home), nested, without = answer
    assert (doubled, data, nested) == (40, "some data", 3)
    assert [name for name in files if name != "__pycache__"] == [".gitignore", "__init__.py", "inner.py"]
    assert home == str(away.folder / "home")
    assert Path(here).is_relative_to(away.folder / "tmp")
    assert Path(folder).is_relative_to(away.folder / "tmp")
    assert not Path(without).is_relative_to(away.folder / "tmp")

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from . import intruders, outside

PROGRAM = Path(__file__).with_name("program.py")
SPECIFICATIONS = {name: f"{name}?workers=1" for name in ("threads", "process", "dask", "ray")} | {"serial": "serial"}
ENGINES = {"dask": "distributed", "ray": "ray"}


@attrs.frozen
class Seen:
    """What there was to see of a program while it ran, and what it had written when it had ended.

    Attributes:
        secret: what it has used for all that is nobody else's business.
        report: its ``Executor.security``.
        sockets: those on which it waited for others before it made the report, or after that.
        lasting: those of them that were there before and after.
        intruders: what those got who were not asked in, by what they tried.
        owned: somebody has run code in it.
    """

    backend: str
    secret: str
    report: dict[str, Any]
    sockets: set[outside.Socket]
    lasting: set[outside.Socket]
    commands: str
    public_paths: list[str]
    public_memory: set[str]
    files: dict[str, bytes]
    intruders: dict[str, object]
    owned: bool
    output: str


@pytest.fixture(scope="session", params=SPECIFICATIONS)
def seen(request: pytest.FixtureRequest) -> Seen:
    """Look at a program on one backend, once for all tests. Everybody may enter the folder of its temporary files."""
    backend = request.param
    if backend in ENGINES and importlib.util.find_spec(ENGINES[backend]) is None:
        pytest.skip(f"{ENGINES[backend]} is not installed")
    with open_folder() as folder:
        return look_at(backend, folder)


@contextlib.contextmanager
def open_folder() -> Iterator[Path]:
    # Not tmp_path, which is too long for the names of Ray's sockets, and which only its owner can enter.
    folder = Path(tempfile.mkdtemp(prefix="px-"))
    folder.chmod(0o777)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def look_at(backend: str, folder: Path) -> Seen:
    secret = f"canary-{uuid.uuid4().hex}"
    source, temporary, errors = folder / "source", folder / "t", folder / "errors"
    source.mkdir(0o700)
    (source / "settings.env").write_text(secret)
    temporary.mkdir()
    temporary.chmod(0o777)
    command = [sys.executable, str(PROGRAM), SPECIFICATIONS[backend], str(source)]
    # None of these may change where the program goes, or what it shows.
    foreign = {
        "RAY_ADDRESS": "192.0.2.1:6379",
        "DASK_SCHEDULER_ADDRESS": "tcp://192.0.2.1:8786",
        "RAY_AUTH_TOKEN": secret,
    }
    environment = {**os.environ, **foreign, "TMPDIR": str(temporary)}
    with errors.open("w") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, env=environment, text=True
        )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        print(secret, file=process.stdin, flush=True)
        # Engines, too, may write to the standard output.
        lines = (line for line in process.stdout if line.startswith("{"))
        assert next(lines, ""), errors.read_text()
        before = outside.sockets(outside.family(process.pid))
        print(file=process.stdin, flush=True)
        line = next(lines, "")
        assert line, errors.read_text()
        pids = outside.family(process.pid)
        after = outside.sockets(pids)
        seen = Seen(
            backend,
            secret,
            json.loads(line),
            before | after,
            before & after,
            outside.commands(pids),
            outside.public_paths(temporary),
            outside.public_memory(pids),
            {str(path): path.read_bytes() for path in temporary.rglob("*") if _is_text(path)},
            {},
            False,
            "",
        )
        mark = folder / "mark"
        tried = intrude(seen, mark)
        rest, _ = process.communicate("\n", timeout=60)
        assert "alive" in rest
        return attrs.evolve(seen, output=line + errors.read_text(), intruders=tried, owned=mark.exists())


def intrude(seen: Seen, mark: Path) -> dict[str, object]:
    """Try to get in."""
    tried: dict[str, object] = {}
    address = seen.report["address"]
    for listener in seen.report["listeners"]:
        if listener["protocol"] != "unix":
            port = int(listener["address"].rpartition(":")[2])
            intruders.send_pickles(port, mark)
            tried[f"http to {listener['process']}"] = intruders.http_client(port) if seen.backend == "ray" else 0
    if seen.backend == "dask":
        tried["client"] = intruders.dask_client(address, mark)
    if seen.backend == "ray":
        (token,) = (path["path"] for path in seen.report["paths"] if path["path"].endswith("token"))
        tried["client"] = intruders.ray_client(address)
        tried["member"] = intruders.ray_client(address, token)
    return tried


def _is_text(path: Path) -> bool:
    """Say whether this is a file in which somebody writes down what happens."""
    return path.is_file() and not path.is_symlink() and path.suffix in (".log", ".out", ".err", ".txt", ".json")

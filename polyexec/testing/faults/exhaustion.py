"""Rows of machines that have no memory, no descriptors and no room on disk left."""

from __future__ import annotations

import contextlib
import functools
import os
import resource
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import polyexec
from polyexec.testing import bodies
from polyexec.testing.disks import SMALL_DISK, keys_of_small_store, on_small_disk
from polyexec.testing.drivers import Driver
from polyexec.testing.faults import bodies as faults
from polyexec.testing.faults.model import PROCESSES, Case, Need, Row
from polyexec.testing.faults.trial import Trial
from polyexec.testing.tools import Marks

_MIB = 2**20
_LONG = Need(lambda _: "POLYEXEC_LONG" in os.environ, "Takes gigabytes of memory: done in the long form alone.")


@functools.cache
def _may_mount() -> bool:
    with contextlib.suppress(OSError):
        return subprocess.run(on_small_disk("/mnt", "true"), capture_output=True, check=False).returncode == 0
    return False


_MOUNTS = Need(lambda _: _may_mount(), "No file system may be mounted here, even in a namespace of its own.")


_STORE = Need(
    lambda target: keys_of_small_store(target, Path()) is not None,
    "It has no store whose limit and disk could be chosen.",
)


def _large(trial: Trial, size: int) -> None:
    """It arrives as it was, both ways."""
    others = trial.bystanders()
    begun = time.monotonic()
    given = trial.ex.submit(len, bytes(size))
    made = trial.ex.submit(bytes, size)
    others.queue()
    assert trial.value(given) == size
    assert len(trial.value(made)) == size
    trial.injected(begun, 2)
    others.check()
    del given, made
    trial.usable()


_SMALL_MEMORY = """
    import json, sys
    import numpy as np
    import polyexec
    from polyexec.testing import bodies
    from polyexec.testing.disks import started_on_small_disk

    started_on_small_disk()
    try:
        with polyexec.connect(sys.argv[1]) as ex:
            ends = []
            held = []
            for number in range(6):
                try:
                    value = np.full(5 * 2**20, number, dtype=float)
                    held.append(ex.put(value) if number % 2 else ex.submit(np.copy, value))
                    ends.append(ex.submit(bodies.total_of, held[-1]).result(60) == number * 5 * 2**20)
                except polyexec.PolyexecError as error:
                    ends.append(f"{type(error).__name__}: {error}"[:200])
            held.clear()
            print(json.dumps(ends), flush=True)
            print(json.dumps(ex.submit(bodies.add, 20, 22).result(60)), flush=True)
    except polyexec.BackendBroken as error:
        print(json.dumps([f"{type(error).__name__}: {error}"[:200]]), flush=True)
        print(json.dumps(42), flush=True)
"""


def _small_shared_memory(trial: Trial) -> None:
    """Values arrive, or an error says that there is no room; nobody is killed by SIGBUS, and small tasks run."""
    begun = time.monotonic()
    ended = Driver(trial.target, trial.folder).run(_SMALL_MEMORY, environment={"POLYEXEC_TESTING_DISK": "/dev/shm"})
    trial.injected(begun)
    assert ended.code == 0, f"{ended.code}: {ended.errors}"
    ends, answer = ended.said
    trial.saw("; ".join(sorted({str(end) if end is not True else "a value" for end in ends})))
    allowed = ("ResourceExhausted", "BackendBroken")
    assert all(end is True or str(end).startswith(allowed) for end in ends), ends
    assert answer == 42


def _full_disk(trial: Trial, how: str) -> None:
    """``ResourceExhausted`` names the disk; what was stored before is read all the same."""
    folder = Path(tempfile.gettempdir())
    specification = trial.target.with_keys(**(keys_of_small_store(trial.target, folder) or {}))
    environment = {"POLYEXEC_TESTING_DISK": str(folder)}
    begun = time.monotonic()
    ended = Driver(trial.target, trial.folder).run(SMALL_DISK, how, specification, environment=environment)
    trial.injected(begun)
    assert ended.code == 0, f"{ended.code}: {ended.errors}"
    (count, error), by_tasks, by_caller, later = ended.said
    assert error is not None
    trial.saw(f"ResourceExhausted({error[0]})")
    assert error[0] == "disk"
    assert by_tasks == by_caller == [[number] for number in range(count - 2)]
    assert later == [99]


_FEW_DESCRIPTORS = """
    import json, resource, sys
    import polyexec
    from polyexec.testing import bodies

    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    try:
        with polyexec.connect(sys.argv[1]) as ex:
            futures = [ex.submit(bodies.add, number, 0) for number in range(2000)]
            found = [future.result(60) for future in futures]
            print(json.dumps(found == list(range(2000))), flush=True)
    except polyexec.PolyexecError as error:
        print(json.dumps(f"{type(error).__name__}: {error}"[:300]), flush=True)
"""


def _few_descriptors(trial: Trial) -> None:
    """Thousands of tasks run with 64 descriptors; or an error says that an engine needs more."""
    begun = time.monotonic()
    ended = Driver(trial.target, trial.folder).run(_FEW_DESCRIPTORS)
    trial.injected(begun)
    assert ended.said, f"{ended.code}: {ended.errors}"
    trial.saw("a value" if ended.said[-1] is True else str(ended.said[-1]))
    assert ended.said[-1] is True or isinstance(ended.said[-1], str), ended.said


@contextlib.contextmanager
def _no_descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def _out_of_descriptors(trial: Trial) -> None:
    """While the driver can open nothing, tasks run or fail with an error of polyexec; afterwards all is as before."""
    ex = trial.ex
    assert trial.value(ex.submit(bodies.add, 1, 1)) == 2
    begun = time.monotonic()
    with _no_descriptors():
        futures = [ex.submit(bodies.add, number, 0) for number in range(20)]
        large = [ex.submit(len, bytes(_MIB)) for _ in range(2)]
        ex.wait([*futures, *large], timeout=10)
    for future, expected in [*zip(futures, range(20), strict=True), *((one, _MIB) for one in large)]:
        try:
            assert trial.value(future) == expected
        except polyexec.PolyexecError as error:
            trial.saw(error)
    trial.injected(begun)
    trial.usable()


def _hogs(marks: Marks) -> None:
    """Take memory without end, up to some gigabytes."""
    faults.begin(marks)
    _ = [bytearray(os.urandom(_MIB) * 16) for _ in range(256)]


def _hog(trial: Trial) -> None:
    error = trial.strike(_hogs, trial.marks, memory="100MB")
    assert type(error) is polyexec.WorkerDied, repr(error)
    assert "out of memory" in str(error)


_IN_GROUP = """
    import json, os, sys
    import polyexec
    from polyexec.testing import bodies
    from polyexec.testing.faults.exhaustion import _hogs
    from polyexec.testing.tools import Marks

    with open(sys.argv[2] + "/cgroup.procs", "w") as file:
        file.write(str(os.getpid()))
    with polyexec.connect(sys.argv[1]) as ex:
        error = ex.submit(_hogs, Marks(sys.argv[3])).exception(45)
        print(json.dumps([type(error).__name__, str(error)]), flush=True)
        print(json.dumps([ex.submit(bodies.add, 20, number).result(45) for number in range(10)]), flush=True)
"""


@contextlib.contextmanager
def _group(limit: int) -> Iterator[Path | None]:
    """Make a control group that may take so much memory, of either version; None if that is not allowed."""
    try:
        folder, name = _memory_folder()
        group = folder / f"polyexec-{uuid.uuid4().hex[:8]}"
        group.mkdir()
    except OSError:
        yield None
        return
    try:
        (group / name).write_text(str(limit))
        yield group
    except OSError:
        yield None
    finally:
        with contextlib.suppress(OSError):
            group.rmdir()


def _memory_folder() -> tuple[Path, str]:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            root = Path("/sys/fs/cgroup/memory")
            here = root / path.lstrip("/")
            return (here if here.exists() else root), "memory.limit_in_bytes"
    return Path("/sys/fs/cgroup"), "memory.max"


@functools.cache
def _may_group() -> bool:
    with _group(2**30) as group:
        return group is not None


def _killed_by_kernel(trial: Trial) -> None:
    """The kernel kills the process that takes most; its task alone fails, and the error says why."""
    with _group(1200 * _MIB) as group:
        begun = time.monotonic()
        ended = Driver(trial.target, trial.folder).run(_IN_GROUP, str(group), trial.marks.path)
        trial.injected(None if trial.marks.values("fault") else begun)
        assert ended.code == 0, f"{ended.code}: {ended.errors}"
        (kind, text), later = ended.said
        trial.saw(kind)
        assert kind == "WorkerDied", text
        assert "memory" in text, text
        assert later == [20 + number for number in range(10)]
        trial.starts(1, 1)


ROWS = (
    Row(
        "F33",
        "Arguments and results that are very large",
        "they arrive",
        ("O4", "O8"),
        (
            Case("128 MiB", partial(_large, size=128 * _MIB)),
            Case("more than 2 GiB", partial(_large, size=2**31 + 1), needs=(_LONG,), limit=600.0),
        ),
        60.0,
    ),
    Row(
        "F34",
        "`/dev/shm` has 96 MiB",
        "values arrive, or `ResourceExhausted`; no SIGBUS",
        ("O6",),
        (Case("six values of 40 MiB", _small_shared_memory, needs=(_MOUNTS,), own=True),),
        5.0,
    ),
    Row(
        "F35",
        "The disk for values is full",
        "`ResourceExhausted`; what was stored is readable",
        ("O6",),
        tuple(Case(how, partial(_full_disk, how=how), needs=(_STORE, _MOUNTS), own=True) for how in ("put", "result")),
        5.0,
    ),
    Row(
        "F36",
        "No descriptor is left",
        "results, or a clear error",
        ("F13", "O6"),
        (
            Case("64 for the program, 2000 Futures", _few_descriptors, own=True),
            Case("none for a while", _out_of_descriptors),
        ),
        30.0,
    ),
    Row(
        "F37",
        "A task takes memory without end",
        "`WorkerDied` that says out of memory; nobody else is harmed",
        ("F11", "F3"),
        (
            Case("beyond its `memory=`", _hog, needs=(PROCESSES,)),
            Case(
                "until the kernel kills it",
                _killed_by_kernel,
                needs=(PROCESSES, Need(lambda _: _may_group(), "No control group may be made here.")),
                own=True,
            ),
        ),
        10.0,
    ),
)

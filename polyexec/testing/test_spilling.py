"""Chapter O: more values than the store's memory holds. Only for engines whose store can be given a limit."""

from __future__ import annotations

import gc
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest

from polyexec import Executor, Future
from polyexec.testing import bodies
from polyexec.testing.disks import DISK, SIZE, SMALL_DISK, STORE, keys_of_small_store, made, numbers_of, on_small_disk
from polyexec.testing.drivers import Driver
from polyexec.testing.executors import Executors
from polyexec.testing.helpers import LIMIT
from polyexec.testing.marks import alone, clause
from polyexec.testing.places import own_memory
from polyexec.testing.target import Target
from polyexec.testing.tools import eventually
from polyexec.testing.watch import LINUX, family, memory_of_files

pytestmark = [pytest.mark.skipif(not LINUX, reason="reads /proc"), pytest.mark.timeout(120, method="signal")]

_COUNT = 14
_SLACK = 4 * SIZE
"""What may be in memory beside the store's limit: values on their way."""


def _keys(target: Target, folder: Path) -> dict[str, Any]:
    """Give the configuration of a small store; skip the test for a backend that lets none be chosen."""
    found = keys_of_small_store(target, folder)
    if found is None:
        pytest.skip("the backend has no store whose limit and disk could be chosen (store_limit=, spill_folder=)")
    folder.mkdir(exist_ok=True)
    return found


@pytest.fixture
def folder(target: Target, tmp_path: Path) -> Path:
    """The folder to which values go: the backend's own choice, in ``TMPDIR``, if it cannot be told one."""
    known = {field.name for field in attrs.fields(target.backend.Config)}
    return tmp_path / "spilled" if "spill_folder" in known else Path(tempfile.gettempdir())


@pytest.fixture
def small(target: Target, folder: Path, opened: Any) -> Callable[[], Any]:
    """Opens an executor with a small store."""
    keys = _keys(target, folder)

    @contextmanager
    def open_small() -> Iterator[Executor]:
        with opened(**keys) as executor:
            for future in [executor.submit(np.ones, 10) for _ in range(4)]:
                future.result(LIMIT)
            yield executor

    return open_small


def _stored(ex: Executor, how: str, number: int) -> Future[Any]:
    stored = ex.put(made(number)) if how == "put" else ex.submit(made, number)
    ex.wait([stored], timeout=LIMIT)
    return stored


def _held() -> int:
    """Give the memory in which values may be: what is shared, and what the driver has for itself."""
    return memory_of_files() + own_memory()


def _on_disk(folder: Path) -> int:
    """Give the size of the files in a folder in bytes, of those without a name that are open here or in workers too."""
    sizes: dict[tuple[int, int], int] = {}
    named = (Path(top) / name for top, _, names in os.walk(folder) for name in names)
    for path in (*named, *_open_in(folder)):
        try:
            found = path.stat()
        except OSError:
            continue
        sizes[found.st_dev, found.st_ino] = found.st_blocks * 512
    return sum(sizes.values())


def _open_in(folder: Path) -> Iterator[Path]:
    for pid in ("self", *(str(process.pid) for process in family())):
        try:
            paths = list(Path(f"/proc/{pid}/fd").iterdir())
        except OSError:
            continue
        for path in paths:
            try:
                if os.readlink(path).startswith(f"{folder.resolve()}/"):
                    yield path
            except OSError:
                continue


@alone
@clause("O6")
@pytest.mark.parametrize("how", ["put", "result"])
def test_values_beyond_the_limit_come_back(small: Any, folder: Path, how: str) -> None:
    """O6 Values of thrice the limit are kept: what is too much for memory is on disk, and all come back, twice."""
    with small() as ex:
        before, empty = _held(), _on_disk(folder)
        stored: list[Future[Any]] = []
        for number in range(_COUNT):
            stored.append(_stored(ex, how, number))
            assert _held() - before < STORE + _SLACK, f"after {number + 1} values of {SIZE >> 20} MiB"
        assert _on_disk(folder) - empty > _COUNT * SIZE - STORE - _SLACK
        for _ in range(2):
            found = [ex.submit(numbers_of, future).result(LIMIT) for future in stored]
            assert found == [[number] for number in range(_COUNT)]
            assert _held() - before < STORE + _SLACK
        # A Future holds the value that its caller has asked for, so each must go.
        assert [numbers_of(stored.pop(0).result(LIMIT)) for _ in range(_COUNT)] == found
        assert _held() - before < STORE + _SLACK


@alone
@clause("O6")
def test_values_from_disk_and_from_memory_meet_in_a_task(small: Any) -> None:
    """O6 Tasks get several values at a time, wherever each is, and all at once while others need room as well."""
    with small() as ex:
        stored = [_stored(ex, "put" if number % 2 else "result", number) for number in range(_COUNT)]
        pairs = [ex.submit(numbers_of, stored[n], stored[-1 - n]) for n in range(_COUNT)]
        chained = [ex.submit(np.add, stored[n], stored[n + 1]) for n in range(_COUNT - 1)]
        assert [pair.result(LIMIT) for pair in pairs] == [[n, _COUNT - 1 - n] for n in range(_COUNT)]
        assert [numbers_of(future.result(LIMIT)) for future in chained] == [[2 * n + 1] for n in range(_COUNT - 1)]


@alone
@clause("O6")
def test_a_value_larger_than_the_store(small: Any) -> None:
    """O6 A single value that is larger than the limit is kept like others, put or returned, and comes back."""
    with small() as ex:
        other = ex.put(made(7))
        count = (STORE + 2 * SIZE) // 8
        for stored in (ex.put(np.ones(count)), ex.submit(np.ones, count)):
            assert ex.submit(bodies.total_of, stored).result(LIMIT) == count
            assert stored.result(LIMIT).sum() == count
            del stored
        assert numbers_of(other.result(LIMIT)) == [7]


@alone
@clause("O6")
def test_the_disk_is_free_again_when_the_futures_go(small: Any, folder: Path) -> None:
    """O6 What values took on disk is given back when their last Future goes, and all of it at the end."""
    before_all = _on_disk(folder)
    with small() as ex:
        empty = _on_disk(folder)
        stored = [_stored(ex, "put", number) for number in range(_COUNT)]
        assert _on_disk(folder) - empty > _COUNT * SIZE - STORE - _SLACK
        del stored[1:]
        gc.collect()
        assert ex.submit(numbers_of, stored[0]).result(LIMIT) == [0]
        stored.clear()
        gc.collect()
        _until_free(ex, folder, empty)
    eventually(lambda: _on_disk(folder) - before_all < SIZE, lambda: f"{_on_disk(folder) >> 20} MiB are left")


def _until_free(ex: Executor, folder: Path, empty: int) -> None:
    def is_free() -> bool:
        # Some engines learn with the next task only that a Future has gone.
        ex.submit(bodies.add, 1, 1).result(LIMIT)
        return _on_disk(folder) - empty < SIZE

    eventually(is_free, lambda: f"{(_on_disk(folder) - empty) >> 20} MiB are left on disk")


@pytest.fixture
def small_disk(target: Target, executors: Executors) -> Path:
    """The folder for temporary files, at which the driver mounts a small disk that nobody else sees."""
    # Not a longer path: engines have sockets there, whose paths may have 107 characters.
    folder = Path(tempfile.gettempdir())
    _keys(target, folder)
    try:
        probe = subprocess.run(on_small_disk(str(folder), "true"), capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        pytest.skip(f"needs a small disk: {error}")
    if probe.returncode:
        pytest.skip(f"needs a small disk, but cannot mount one: {probe.stderr.strip()[:200]}")
    return folder


@alone
@clause("O6")
@pytest.mark.parametrize("how", ["put", "result"])
def test_a_full_disk(driver: Driver, target: Target, small_disk: Path, how: str) -> None:
    """O6 When the disk is full too, ``ResourceExhausted`` says so; what was stored is there, and room can be made.

    What is read then is all but two of the values, which are dropped first.
    """
    specification = target.with_keys(**_keys(target, small_disk))
    ended = driver.run(SMALL_DISK, how, specification, environment={"POLYEXEC_TESTING_DISK": str(small_disk)})
    assert ended.code == 0, ended.errors
    (count, error), by_tasks, by_caller, later = ended.said
    assert error is not None
    kind, text = error
    assert kind == "disk"
    assert "disk" in text
    assert STORE // SIZE - 1 <= count <= (STORE + DISK + _SLACK) // SIZE
    assert by_tasks == by_caller == [[number] for number in range(count - 2)]
    assert later == [99]

"""The store beyond its limit: values go to disk and come back, and a full disk is an error that harms nobody (O6)."""

from __future__ import annotations

import os
import queue
import stat
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from store_peer import Clock, Peer, bytes_in, files, made, memory, sum_of, trim_all

from polyexec.errors import ObjectLost, ResourceExhausted
from polyexec.spi import Stored
from polyexec_local.borrower import Loan
from polyexec_local.memory import Layout, Piece
from polyexec_local.spill import SpillFile, Spot
from polyexec_local.store import Account, Handle, Store

MIB = 1 << 20
SIZE = MIB - 4096
LIMIT = 60.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock, tmp_path: Path) -> Iterator[Store]:
    """A store with room for four values of the usual size."""
    made_store = Store(4 * MIB, folder=str(tmp_path), clock=clock)
    yield made_store
    made_store.close()


def put(store: Store, count: int, first: int = 0) -> list[Handle]:
    return [store.put(made(first + index, SIZE)) for index in range(count)]


def is_there(store: Store, handle: Handle) -> bool:
    """Say whether a value is in memory."""
    account = Account()
    found = store.lend([handle], account) is not None
    store.forget(account)
    return found


def lent(store: Store, handles: Iterable[Handle], account: Account) -> list[Loan] | Exception:
    """Wait until values are lent."""
    answers: queue.SimpleQueue[list[Loan] | Exception] = queue.SimpleQueue()
    store.lend_later(tuple(handles), account, answers.put)
    return answers.get(timeout=LIMIT)


def on_disk(folder: Path) -> int:
    return bytes_in(str(folder))


def test_values_go_to_disk_and_come_back(store: Store, tmp_path: Path) -> None:
    """O6."""
    handles = put(store, 12)
    assert memory() <= 4 * MIB
    assert on_disk(tmp_path) >= 7 * SIZE
    for _ in range(2):
        for seed, handle in enumerate(handles):
            assert sum_of(store.get(handle)) == sum_of(made(seed, SIZE))
            assert memory() <= 4 * MIB
    for handle in handles:
        store.free(handle)


def test_what_was_not_used_for_the_longest_time_goes_first(store: Store) -> None:
    """O6."""
    handles = put(store, 4)
    store.get(handles[0])
    store.get(handles[2])
    handles += put(store, 2, 4)
    assert [is_there(store, handle) for handle in handles] == [True, False, True, False, True, True]


def test_what_is_looked_at_stays(store: Store, tmp_path: Path) -> None:
    """O2, O6 A view here or in a worker stays good; what does not fit beside it is on disk from the beginning."""
    peer = Peer(store)
    handles = put(store, 4)
    views = [store.get(handle) for handle in handles[:2]]
    numbers = [peer.open(handle)[0] for handle in handles[2:]]
    handles += put(store, 3, 4)
    assert [is_there(store, handle) for handle in handles] == [True] * 4 + [False] * 3
    assert [sum_of(view) for view in views] == [sum_of(made(seed, SIZE)) for seed in (0, 1)]
    assert [peer.ask("sum", number) for number in numbers] == [sum_of(made(seed, SIZE)) for seed in (2, 3)]
    # What is stored is readable whatever is looked at.
    assert sum_of(store.get(handles[6])) == sum_of(made(6, SIZE))
    peer.kill()
    del views
    assert on_disk(tmp_path) < 3 * MIB


def test_a_value_larger_than_the_limit_is_kept(store: Store, clock: Clock) -> None:
    """O6."""
    handles = put(store, 2)
    large = store.put(made(9, 20 * MIB, 3))
    assert memory() <= 4 * MIB
    assert sum_of(store.get(large)) == sum_of(made(9, 20 * MIB, 3))
    assert [sum_of(store.get(handle)) for handle in handles] == [sum_of(made(seed, SIZE)) for seed in (0, 1)]
    for handle in (*handles, large):
        store.free(handle)
    trim_all(store, clock)
    assert memory() == 0


def test_values_come_back_for_a_worker(store: Store) -> None:
    """O6 Several at once, more than the limit together; the loop does not wait for them."""
    peer = Peer(store)
    handles = put(store, 8)
    assert store.lend(handles, peer.account) is None
    loans = lent(store, handles, peer.account)
    assert isinstance(loans, list)
    assert [peer.see(loan) for loan in loans] == [sum_of(made(seed, SIZE)) for seed in range(8)]
    peer.kill()


def test_what_cannot_be_lent_is_an_error(store: Store, clock: Clock) -> None:
    """O7 And nothing of the others stays lent."""
    handles = put(store, 6)
    store.free(handles[3])
    account = Account()
    assert isinstance(lent(store, handles, account), ObjectLost)
    assert account.loans == {}
    for handle in handles:
        store.free(handle)
    trim_all(store, clock)
    assert memory() == 0


def test_nothing_is_lent_to_a_process_that_has_died_meanwhile(store: Store, clock: Clock) -> None:
    """F3."""
    handles = put(store, 6)
    account = Account()
    store.forget(account)
    loans = lent(store, handles, account)
    assert isinstance(loans, list)
    for handle in handles:
        store.free(handle)
    trim_all(store, clock)
    assert memory() == 0


def test_room_for_a_result_is_made(store: Store, clock: Clock) -> None:
    """O4, O6 By moving values to disk; and beyond the limit if all of them are looked at."""
    peer = Peer(store)
    handles = put(store, 4)
    views: list[Stored] = []
    for seed in range(10, 12):
        stored = made(seed, 2 * MIB)
        assert store.reserve(Layout.of(stored), peer.account) is None
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        store.reserve_later(Layout.of(stored), peer.account, answers.put)
        (loan,) = answers.get(timeout=LIMIT)
        peer.write(loan, stored)
        handles.append(store.adopt(peer.account, loan.number))
        assert sum_of(store.get(handles[-1])) == sum_of(stored)
        views = [store.get(handle) for handle in handles]
    assert [sum_of(view) for view in views[:4]] == [sum_of(made(seed, SIZE)) for seed in range(4)]
    peer.kill()


def test_room_on_disk_is_given_back(store: Store, tmp_path: Path) -> None:
    """O5."""
    handles = put(store, 20)
    assert on_disk(tmp_path) >= 15 * SIZE
    for handle in handles:
        store.free(handle)
    # The thread that frees it takes one thing after the other.
    assert isinstance(lent(store, handles[:1], Account()), ObjectLost)
    assert on_disk(tmp_path) < MIB


def test_the_file_has_no_name_and_is_ours_alone(store: Store, tmp_path: Path) -> None:
    """F8 So nothing is left of it whatever happens to the driver."""
    assert list(tmp_path.iterdir()) == []
    put(store, 6)
    assert list(tmp_path.iterdir()) == []
    (path,) = files(str(tmp_path)).values()
    status = os.stat(path)
    assert (status.st_nlink, stat.S_IMODE(status.st_mode)) == (0, 0o600)


class Disk:
    """Stands in for the disk's slowness: each write waits until it is allowed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.allowed = threading.Semaphore(0)
        write = SpillFile.write

        def slow(file: SpillFile, length: int, pieces: Iterable[Piece]) -> Spot:
            self.begun.put(length)
            assert self.allowed.acquire(timeout=LIMIT)
            return write(file, length, pieces)

        monkeypatch.setattr(SpillFile, "write", slow)


def test_nobody_but_the_thread_that_puts_waits_for_the_disk(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O6 What is asked of the store meanwhile is done at once; a value that is asked for stays where it is seen."""
    peer, disk = Peer(store), Disk(monkeypatch)
    handles = put(store, 4)
    thread = threading.Thread(target=lambda: handles.extend(put(store, 1, 4)))
    thread.start()
    disk.begun.get(timeout=LIMIT)
    loans = store.lend(handles, peer.account)
    assert loans is not None
    assert sum_of(store.get(handles[1])) == sum_of(made(1, SIZE))
    store.give_back(peer.account, [loan.number for loan in loans[1:3]])
    assert store.try_put(made(5, SIZE)) is None
    assert store.reserve(Layout(SIZE, ()), peer.account) is None
    store.trim()
    disk.allowed.release(10)
    thread.join(LIMIT)
    assert peer.see(loans[0]) == sum_of(made(0, SIZE))
    assert [sum_of(store.get(handle)) for handle in handles] == [sum_of(made(seed, SIZE)) for seed in range(5)]
    assert peer.ask("sum", loans[0].number) == sum_of(made(0, SIZE))
    peer.kill()
    for handle in handles:
        store.free(handle)
    assert isinstance(lent(store, handles[:1], Account()), ObjectLost)
    assert on_disk(tmp_path) < MIB


def test_a_value_may_be_freed_while_it_goes_to_disk(
    store: Store, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O5."""
    disk = Disk(monkeypatch)
    handles = put(store, 4)
    thread = threading.Thread(target=lambda: handles.extend(put(store, 1, 4)))
    thread.start()
    disk.begun.get(timeout=LIMIT)
    for handle in handles:
        store.free(handle)
    disk.allowed.release(10)
    thread.join(LIMIT)
    store.free(handles[4])
    trim_all(store, clock)
    assert isinstance(lent(store, handles[:1], Account()), ObjectLost)
    assert memory() == 0
    assert on_disk(tmp_path) < MIB


def run(script: str, *args: str) -> None:
    """Run a script in a process of its own, since it changes the limits of its process."""
    folder = os.path.dirname(__file__)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([folder, *sys.path])}
    command = [sys.executable, "-c", script, *args]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert ended.returncode == 0, ended.stderr


FULL_DISK = """
import resource, sys
from store_peer import Clock, made, sum_of
from polyexec.errors import ResourceExhausted
from polyexec_local.store import Store

store = Store(2 << 20, folder=sys.argv[1], clock=Clock())
handles = [store.put(made(0, 1 << 20))]
# No file may become longer: neither the one on disk nor, though it has more room at the beginning, that in memory.
resource.setrlimit(resource.RLIMIT_FSIZE, (8 << 20, 8 << 20))
for seed in range(1, 100):
    try:
        handles.append(store.put(made(seed, (1 << 20) - 4096)))
    except ResourceExhausted as error:
        assert error.kind == "disk", error
        break
assert 5 < len(handles) < 20, len(handles)
for _ in range(2):
    for seed, handle in enumerate(handles):
        size = 1 << 20 if not seed else (1 << 20) - 4096
        assert sum_of(store.get(handle)) == sum_of(made(seed, size))
for handle in handles:
    store.free(handle)
again = [store.put(made(seed, (1 << 20) - 4096)) for seed in range(len(handles))]
assert [sum_of(store.get(handle)) for handle in again] == [sum_of(made(i, (1 << 20) - 4096)) for i in range(len(again))]
store.close()
"""


def test_a_full_disk_is_an_error_of_that_put_alone(tmp_path: Path) -> None:
    """O6 What is stored stays readable, and there is room again when something is freed."""
    run(FULL_DISK, str(tmp_path))


NO_MEMORY = """
import resource
from store_peer import Clock, made, memory, sum_of
from polyexec.errors import ResourceExhausted
from polyexec_local.store import Store

store = Store(1 << 30, clock=Clock())
kept = store.put(made(0, 1 << 20))
resource.setrlimit(resource.RLIMIT_FSIZE, (6 << 20, 6 << 20))
for attempt in range(3):
    try:
        store.put(made(1, 16 << 20))
    except ResourceExhausted as error:
        assert error.kind == "shared-memory", error
    else:
        raise AssertionError("it fits")
    assert memory() < 2 << 20, memory()
assert sum_of(store.get(kept)) == sum_of(made(0, 1 << 20))
store.close()
"""


def test_a_lack_of_memory_is_an_error_of_that_put_alone() -> None:
    """O6 Not a signal that kills the process; what was half written is given back."""
    run(NO_MEMORY)


NO_DESCRIPTORS = """
import os, resource
from store_peer import Clock, made, sum_of
from polyexec.errors import ResourceExhausted
from polyexec_local.store import Store

store = Store(1 << 30, clock=Clock())
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
for attempt in range(2):
    try:
        store.put(made(1, 1 << 20))
    except ResourceExhausted as error:
        assert error.kind == "descriptors", error
    else:
        raise AssertionError("it fits")
resource.setrlimit(resource.RLIMIT_NOFILE, (4, hard))
handle = store.put(made(1, 1 << 20))
for attempt in range(2):
    try:
        store.get(handle)
    except ResourceExhausted as error:
        assert error.kind == "descriptors", error
    else:
        raise AssertionError("it fits")
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
assert sum_of(store.get(handle)) == sum_of(made(1, 1 << 20))
store.free(handle)
store.close()
"""


def test_a_lack_of_descriptors_is_an_error_of_that_call_alone() -> None:
    """O6."""
    run(NO_DESCRIPTORS)


FEW_ADDRESSES = """
import resource
from store_peer import Clock, made, sum_of
from polyexec_local.store import Store

with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (512 << 20), resource.getrlimit(resource.RLIMIT_AS)[1]))
store = Store(100 << 30, clock=Clock())
handles = [store.put(made(seed, 10 << 20)) for seed in range(8)]
views = [store.get(handle) for handle in handles]
assert [sum_of(view) for view in views] == [sum_of(made(seed, 10 << 20)) for seed in range(8)]
store.close()
"""


def test_a_process_with_few_addresses_can_store() -> None:
    """O1 Batch systems limit them."""
    run(FEW_ADDRESSES)


def test_a_value_that_cannot_be_read_is_lost(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """O7 And the others are not."""
    handles = put(store, 6)

    def broken(file: SpillFile, spot: Spot, into: memoryview) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(SpillFile, "read", broken)
        with pytest.raises(ObjectLost, match="Input/output"):
            store.get(handles[0])
    assert [sum_of(store.get(handle)) for handle in handles] == [sum_of(made(seed, SIZE)) for seed in range(6)]


def test_a_full_disk_here_and_now(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """O6 An attempt to write is made once for each ``put``."""
    handles = put(store, 4)
    attempts: list[int] = []

    def full(file: SpillFile, length: int, pieces: Iterable[Piece]) -> Spot:
        attempts.append(length)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SpillFile, "write", full)
    for _ in range(3):
        with pytest.raises(ResourceExhausted, match=r"disk.*No space left"):
            store.put(made(9, SIZE))
    assert len(attempts) == 3
    assert [sum_of(store.get(handle)) for handle in handles] == [sum_of(made(seed, SIZE)) for seed in range(4)]

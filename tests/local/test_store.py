"""The store's values in memory: who sees them, and when their memory is used again or given back (O1-O5, F8, F13)."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Iterator

import pytest
from store_peer import (
    Clock,
    Peer,
    descriptor_count,
    made,
    mapping_count,
    memory,
    sum_of,
    trim_all,
)

from polyexec.errors import ExecutorClosed, ObjectLost
from polyexec.spi import Stored
from polyexec_local.memory import Layout
from polyexec_local.store import Account, Handle, Store

MIB = 1 << 20


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> Iterator[Store]:
    made_store = Store(1 << 30, clock=clock)
    yield made_store
    made_store.close()


@pytest.fixture
def peer(store: Store) -> Iterator[Peer]:
    made_peer = Peer(store)
    yield made_peer
    made_peer.kill()


def store_many(store: Store, size: int, count: int = 20) -> None:
    """Write over all memory that may be used again for values of a size."""
    for handle in [store.put(made(1000 + index, size)) for index in range(count)]:
        store.free(handle)


@pytest.mark.parametrize(
    "stored",
    [
        made(1, MIB),
        made(2, 300_001, 5),
        Stored(b"only data" * 100_000),
        Stored(b"", [b"", bytearray(400_000), b"", memoryview(b"x" * 70_000)]),
    ],
    ids=["one", "several", "data", "empty"],
)
def test_a_value_comes_back_equal_here_and_elsewhere(store: Store, peer: Peer, stored: Stored) -> None:
    """O1, O8."""
    handle = store.put(stored)
    found = store.get(handle)
    assert found.data == stored.data
    assert [bytes(buffer) for buffer in found.buffers] == [bytes(buffer) for buffer in stored.buffers]
    for _ in range(2):
        assert peer.open(handle)[1] == sum_of(stored)


def test_a_value_is_read_only_here_and_elsewhere(store: Store, peer: Peer) -> None:
    """O2."""
    handle = store.put(made(1, MIB))
    number, _ = peer.open(handle)
    assert "read-only" in peer.ask("overwrite", number)
    assert memoryview(store.get(handle).buffers[0]).readonly


def test_a_private_view_is_writable_and_seen_by_nobody_else(store: Store, peer: Peer) -> None:
    """S2."""
    stored = made(1, MIB)
    handle = store.put(stored)
    number, before = peer.open(handle, private=True)
    assert peer.ask("overwrite", number) == ""
    assert peer.ask("sum", number) != before
    assert sum_of(store.get(handle)) == peer.open(handle)[1] == sum_of(stored)


def test_reading_copies_nothing(store: Store, peer: Peer) -> None:
    """O3 The memory that is a process's own does not grow when it reads a large value, here or elsewhere."""
    handle = store.put(made(1, 64 * MIB))
    before = peer.anonymous_memory()
    peer.open(handle)
    assert peer.anonymous_memory() - before < 8 * MIB
    left, right = store.get(handle).buffers[0], store.get(handle).buffers[0]
    assert address_of(left) == address_of(right)


def address_of(buffer: object) -> int:
    import numpy as np

    return int(np.frombuffer(buffer, np.uint8).ctypes.data)  # type: ignore[call-overload]  # any buffer will do


def test_memory_is_back_within_a_second(store: Store, clock: Clock) -> None:
    """O5 It is kept for the next value for a moment, and then given to the system."""
    handles = [store.put(made(index, 5 * MIB + 17)) for index in range(20)]
    assert memory() >= 100 * MIB
    kept = handles.pop()
    for handle in handles:
        store.free(handle)
    assert store.trim() is not None
    assert memory() >= 100 * MIB
    trim_all(store, clock)
    assert memory() < 6 * MIB
    assert sum_of(store.get(kept)) == sum_of(made(19, 5 * MIB + 17))
    store.free(kept)
    store.free(kept)
    trim_all(store, clock)
    assert memory() == 0
    assert store.trim() is None


def test_one_call_gives_back_a_part_of_much(store: Store, clock: Clock) -> None:
    """Nobody waits long for ``trim``, however large a value was."""
    store.free(store.put(made(1, 100 * MIB)))
    clock.now += 1.0
    due = store.trim()
    assert due is not None
    assert due <= clock.now
    assert 30 * MIB < memory() < 40 * MIB
    trim_all(store, clock)
    assert memory() == 0


def test_a_loop_of_puts_uses_the_same_memory(store: Store, clock: Clock) -> None:
    """O5 Whatever the clock says meanwhile."""
    sizes = set()
    for index in range(30):
        handle = store.put(made(index, 3 * MIB))
        sizes.add(memory())
        assert sum_of(store.get(handle)) == sum_of(made(index, 3 * MIB))
        store.free(handle)
        clock.now += 0.1
        store.trim()
    assert max(sizes) < 4 * MIB


def test_a_view_keeps_its_content(store: Store, clock: Clock) -> None:
    """O2, O5 The memory of a value that was freed is not used again, nor given back, until its last view goes."""
    handle = store.put(made(1, MIB))
    view = store.get(handle).buffers[0]
    part = memoryview(view)[MIB // 2 :]
    del view
    store.free(handle)
    store_many(store, MIB)
    trim_all(store, clock)
    assert part == made(1, MIB).buffers[0][MIB // 2 :]
    assert memory() >= MIB
    assert store.trim() is not None
    del part
    trim_all(store, clock)
    assert memory() == 0


def test_a_view_in_a_cycle_lets_go_when_it_is_collected(store: Store, clock: Clock) -> None:
    """O5."""
    handle = store.put(made(1, MIB))
    cycle: list[object] = [store.get(handle)]
    cycle.append(cycle)
    store.free(handle)
    del cycle
    gc.collect()
    trim_all(store, clock)
    assert memory() == 0


def test_a_loan_keeps_its_content(store: Store, peer: Peer, clock: Clock) -> None:
    """O2, O5 So it is with what a worker looks at, as an object or as an argument of its own."""
    stored = made(1, MIB)
    handle = store.put(stored)
    numbers = [peer.open(handle)[0], peer.open(handle, private=True)[0], peer.open(handle)[0]]
    store.free(handle)
    for number in numbers:
        store_many(store, MIB)
        trim_all(store, clock)
        assert memory() >= MIB
        assert [peer.ask("sum", other) for other in numbers[numbers.index(number) :]].count(sum_of(stored)) > 0
        assert peer.ask("sum", number) == sum_of(stored)
        peer.ask("drop", number)
        assert peer.returned() == [number]
        assert peer.returned() == []
    trim_all(store, clock)
    assert memory() == 0


def test_a_dead_process_holds_nothing(store: Store, clock: Clock) -> None:
    """F3, F13 Nor is anything lent to it any more."""
    peer = Peer(store)
    handle, other = store.put(made(1, MIB)), store.put(made(2, MIB))
    peer.open(handle)
    peer.open(other)
    store.free(handle)
    peer.kill()
    assert len(store.lend([other], peer.account) or []) == 1
    store.free(other)
    trim_all(store, clock)
    assert memory() == 0


def test_a_forked_child_keeps_its_content(store: Store, peer: Peer, clock: Clock) -> None:
    """O2 A worker gives nothing back that a child of its own still sees."""
    handle = store.put(made(1, MIB))
    number, found = peer.open(handle)
    peer.ask("fork")
    peer.ask("drop", number)
    later = store.put(made(2, MIB))
    number_later, _ = peer.open(later)
    peer.ask("drop", number_later)
    assert peer.returned() == [number_later]
    store.free(handle)
    store_many(store, MIB)
    assert peer.ask("end_child") == {number: found}
    assert peer.returned() == [number]
    store.free(later)
    trim_all(store, clock)
    assert memory() == 0


def test_a_forked_child_of_the_driver_keeps_its_content(store: Store, clock: Clock) -> None:
    """O2, F15 And what it does to the store changes nothing for its parent."""
    handle, other = store.put(made(1, MIB)), store.put(made(2, MIB))
    views = [store.get(handle)]

    def child(go_on: int) -> bool:
        store.free(other)
        store.trim()
        store.close()
        os.read(go_on, 1)
        return sum_of(views[0]) == sum_of(made(1, MIB))

    with forked(child) as go_on:
        views.clear()
        store.free(handle)
        store_many(store, MIB)
        trim_all(store, clock)
        assert memory() >= 2 * MIB
        go_on()
    trim_all(store, clock)
    assert memory() < 2 * MIB
    assert sum_of(store.get(other)) == sum_of(made(2, MIB))


class forked:
    """A child that runs a function; at the end it must have given True."""

    def __init__(self, function: Callable[[int], bool]) -> None:
        self._function = function

    def __enter__(self) -> Callable[[], None]:
        reading, self._writing = os.pipe()
        self._pid = os.fork()
        if not self._pid:
            os.close(self._writing)
            code = 1
            try:
                code = 0 if self._function(reading) else 2
            finally:
                os._exit(code)
        os.close(reading)
        return self._go_on

    def _go_on(self) -> None:
        os.write(self._writing, b"\n")
        _, status = os.waitpid(self._pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0

    def __exit__(self, *error: object) -> None:
        os.close(self._writing)


def test_a_worker_writes_a_value_where_the_store_wants_it(store: Store, peer: Peer, clock: Clock) -> None:
    """O4."""
    numbers = []
    for seed in range(3):
        stored = made(seed, 2 * MIB, 2)
        loan = store.reserve(Layout.of(stored), peer.account)
        assert loan is not None
        numbers.append(loan.number)
        peer.write(loan, stored)
        handle = store.adopt(peer.account, loan.number)
        assert sum_of(store.get(handle)) == peer.open(handle)[1] == sum_of(stored)
        store.free(handle)
    peer.kill()
    trim_all(store, clock)
    assert memory() == 0
    with pytest.raises(KeyError):
        store.adopt(peer.account, numbers[0])


def test_a_worker_with_few_addresses_can_read(store: Store, peer: Peer) -> None:
    """O1, S2 It maps each value by itself, and descriptors are as few as ever."""
    peer.ask("limit_addresses", 64 * MIB)
    handles = [store.put(made(seed, MIB)) for seed in range(100)]
    for seed, handle in enumerate(handles):
        number, found = peer.open(handle, private=seed % 2 == 0)
        assert found == sum_of(made(seed, MIB))
        peer.ask("drop", number)
        assert peer.returned() == [number]


@pytest.mark.parametrize("how", ["killed", "refused"])
def test_a_value_half_written_is_nothing(store: Store, clock: Clock, how: str) -> None:
    """F13."""
    peer = Peer(store)
    loan = store.reserve(Layout.of(made(1, 8 * MIB)), peer.account)
    assert loan is not None
    peer.introduce(loan)
    peer.ask("write_half", loan, b"half" * MIB)
    assert memory() >= 4 * MIB
    if how == "refused":
        peer.ask("refuse", loan)
        assert peer.returned() == [loan.number]
        trim_all(store, clock)
        assert memory() == 0
    peer.kill()
    trim_all(store, clock)
    assert memory() == 0


def test_ten_thousand_values_need_no_more_descriptors_than_one(store: Store, peer: Peer) -> None:
    """RLIMIT_NOFILE is 1024 for most users."""
    views, handles = [store.get(store.put(made(0, 5000)))], []
    peer.open(store.put(made(0, 5000)))
    descriptors, mappings = descriptor_count(), mapping_count()
    for seed in range(10_000):
        handles.append(store.put(made(seed, 5000)))
        views.append(store.get(handles[-1]))
    assert (descriptor_count(), mapping_count()) == (descriptors, mappings)
    for seed in range(0, 10_000, 97):
        assert sum_of(views[seed + 1]) == sum_of(made(seed, 5000))
        assert peer.open(handles[seed])[1] == sum_of(made(seed, 5000))


def test_close_leaves_nothing_but_what_is_looked_at(clock: Clock) -> None:
    """F9."""
    before = descriptor_count(), mapping_count(), threading.active_count()
    store = Store(4 * MIB, clock=clock)
    handles = [store.put(made(seed, MIB)) for seed in range(10)]
    views = [store.get(handles[0]), store.get(handles[5])]
    store.free(handles[5])
    store.close()
    assert (descriptor_count(), threading.active_count()) == (before[0], before[2])
    assert [sum_of(view) for view in views] == [sum_of(made(0, MIB)), sum_of(made(5, MIB))]
    with pytest.raises(ExecutorClosed):
        store.put(made(1, MIB))
    with pytest.raises((ExecutorClosed, ObjectLost)):
        store.get(handles[1])
    del views
    assert mapping_count() == before[1]
    store.free(handles[0])
    store.close()


def test_a_freed_value_cannot_be_had(store: Store) -> None:
    handle = store.put(made(1, MIB))
    store.free(handle)
    with pytest.raises(ObjectLost):
        store.get(handle)
    assert store.lend([handle], Account()) is None


def test_threads_put_get_and_free(clock: Clock) -> None:
    """S8 At the limit, so that values go to disk and come back meanwhile."""
    store = Store(6 * MIB, clock=clock)
    failures: list[BaseException] = []

    def work(first: int) -> None:
        try:
            held: list[tuple[int, Handle]] = []
            for step in range(40):
                seed = first + step
                held.append((seed, store.put(made(seed, MIB // 2))))
                for kept, handle in held:
                    assert sum_of(store.get(handle)) == sum_of(made(kept, MIB // 2))
                if len(held) > 5:
                    store.free(held.pop(0)[1])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(1000 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.close()
    assert failures == []

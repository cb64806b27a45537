"""The store against a model, with two processes that borrow, for many seeds (O1, O2, O5, O6).

The model is what each value was made from. At each step something random is done; what anybody still looks at must
be what it was, and in the end nothing may be left.
"""

from __future__ import annotations

import queue
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from store_peer import Clock, Peer, bytes_in, descriptor_count, made, memory, sum_of, trim_all

from polyexec.errors import ObjectLost
from polyexec.spi import Stored
from polyexec_local.borrower import Loan
from polyexec_local.memory import Layout
from polyexec_local.segments import Arena, Block, Buddy
from polyexec_local.store import Account, Handle, Store

MIB = 1 << 20
LIMIT = 60.0
SIZES = (1, 5000, 70_000, 300_000, 300_001, 1_000_000, 1_048_576, 1_300_000, 5_000_000)


@attrs.define(eq=False)
class Seen:
    """What somebody looks at: the checksum that it must have, and the view or the number of the loan.

    What has no buffers is copied, and comes back at once.
    """

    expected: int
    what: Any
    shared: bool = True


class Story:
    """One run."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.random = random.Random(seed)
        self.folder = folder
        self.clock = Clock()
        self.store = Store(6 * MIB, folder=str(folder), clock=self.clock)
        self.values: list[tuple[Handle, int]] = []
        self.views: list[Seen] = []
        self.peers = {Peer(self.store): list[Seen](), Peer(self.store): list[Seen]()}
        self.forked: dict[Peer, dict[int, int]] = {}

    def run(self, steps: int) -> None:
        actions = [self.put] * 5 + [self.free] * 4 + [self.get, self.lend, self.write, self.drop, self.give_back] * 3
        actions += [self.drop_view] * 2 + [self.trim, self.check, self.fork, self.end_child, self.replace]
        for _ in range(steps):
            self.random.choice(actions)()
        self.check()
        self.end()

    def new(self) -> Stored:
        count = self.random.choice((0, 1, 1, 3))
        return made(self.random.randrange(1 << 30), self.random.choice(SIZES), count)

    def put(self) -> None:
        stored = self.new()
        handle = self.store.put(stored) if self.random.random() < 0.8 else self.store.try_put(stored)
        if handle is not None:
            self.values.append((handle, sum_of(stored)))

    def free(self) -> None:
        if self.values:
            self.store.free(self.values.pop(self.random.randrange(len(self.values)))[0])

    def get(self) -> None:
        if self.values:
            handle, expected = self.random.choice(self.values)
            stored = self.store.get(handle)
            assert sum_of(stored) == expected
            self.views.append(Seen(expected, stored))

    def drop_view(self) -> None:
        if self.views:
            self.views.pop(self.random.randrange(len(self.views)))

    def peer(self) -> Peer:
        return self.random.choice(tuple(self.peers))

    def lend(self) -> None:
        if not self.values:
            return
        peer = self.peer()
        chosen = [self.random.choice(self.values) for _ in range(self.random.randint(1, 3))]
        handles = [handle for handle, _ in chosen]
        loans = self.store.lend(handles, peer.account)
        if loans is None:
            answers: queue.SimpleQueue[list[Loan] | Exception] = queue.SimpleQueue()
            self.store.lend_later(handles, peer.account, answers.put)
            answer = answers.get(timeout=LIMIT)
            assert isinstance(answer, list)
            loans = answer
        for loan, (_, expected) in zip(loans, chosen, strict=True):
            private = self.random.random() < 0.3
            assert peer.see(loan, private=private) == expected
            self.peers[peer].append(Seen(expected, loan.number, bool(loan.layout.buffers)))

    def drop(self) -> None:
        peer = self.peer()
        seen = self.peers[peer]
        if seen:
            peer.ask("drop", seen.pop(self.random.randrange(len(seen))).what)

    def give_back(self) -> None:
        peer = self.peer()
        assert not set(peer.returned()) & {seen.what for seen in self.peers[peer] if seen.shared}

    def write(self) -> None:
        peer, stored = self.peer(), self.new()
        loan = self.store.reserve(Layout.of(stored), peer.account)
        if loan is None:
            answers: queue.SimpleQueue[list[Loan] | Exception] = queue.SimpleQueue()
            self.store.reserve_later(Layout.of(stored), peer.account, answers.put)
            answer = answers.get(timeout=LIMIT)
            assert isinstance(answer, list)
            (loan,) = answer
        peer.write(loan, stored)
        if self.random.random() < 0.8:
            self.values.append((self.store.adopt(peer.account, loan.number), sum_of(stored)))
        else:
            self.store.give_back(peer.account, [loan.number])

    def trim(self) -> None:
        self.clock.now += self.random.random()
        self.store.trim()

    def fork(self) -> None:
        peer = self.peer()
        if peer not in self.forked:
            self.forked[peer] = {seen.what: seen.expected for seen in self.peers[peer]}
            peer.ask("fork")

    def end_child(self) -> None:
        peer = self.peer()
        if peer in self.forked:
            found = peer.ask("end_child")
            assert found == self.forked.pop(peer)

    def replace(self) -> None:
        peer = self.peer()
        if peer in self.forked:
            return
        del self.peers[peer]
        peer.kill()
        self.peers[Peer(self.store)] = []

    def check(self) -> None:
        for seen in self.views:
            assert sum_of(seen.what) == seen.expected
        for peer, all_seen in self.peers.items():
            for seen in all_seen:
                assert peer.ask("sum", seen.what) == seen.expected

    def end(self) -> None:
        for handle, expected in self.values:
            assert sum_of(self.store.get(handle)) == expected
            self.store.free(handle)
        self.views.clear()
        for peer in tuple(self.peers):
            if peer in self.forked:
                assert peer.ask("end_child") == self.forked.pop(peer)
            peer.kill()
        trim_all(self.store, self.clock)
        assert memory() == 0
        answers: queue.SimpleQueue[list[Loan] | Exception] = queue.SimpleQueue()
        self.store.lend_later([Handle(Layout(1, ()))], Account(), answers.put)
        assert isinstance(answers.get(timeout=LIMIT), ObjectLost)
        assert bytes_in(str(self.folder)) < 64 * 1024
        self.store.close()


@pytest.fixture
def same_descriptors() -> Iterator[None]:
    before = descriptor_count()
    yield
    assert descriptor_count() == before


@pytest.mark.usefixtures("same_descriptors")
@pytest.mark.parametrize("seed", range(12))
def test_nothing_changes_and_nothing_is_left(seed: int, tmp_path: Path) -> None:
    """O1, O2, O5, O6."""
    Story(seed, tmp_path).run(150)


@pytest.mark.parametrize("seed", range(5))
def test_blocks_of_addresses_never_overlap(seed: int) -> None:
    """Whatever comes and goes; and all is one block again in the end."""
    chance, size = random.Random(seed), 1 << 20
    buddy, taken = Buddy(size), dict[int, int]()
    for _ in range(2000):
        if taken and chance.random() < 0.5:
            offset = chance.choice(tuple(taken))
            buddy.give(offset, taken.pop(offset))
            continue
        wanted = 1 << chance.randrange(8, 19)
        found = buddy.take(wanted)
        if found is not None:
            assert found % wanted == 0
            assert 0 <= found <= size - wanted
            assert all(found >= other + length or found + wanted <= other for other, length in taken.items())
            taken[found] = wanted
    for offset, length in taken.items():
        buddy.give(offset, length)
    assert buddy.take(size) == 0
    assert buddy.take(1) is None


@pytest.mark.parametrize("seed", range(5))
def test_what_is_counted_is_what_is_taken(seed: int) -> None:
    """O6 The limit is kept, and no block is used twice."""
    chance, now = random.Random(seed), 0.0
    arena, used = Arena(20 * MIB), list[Block]()
    for _ in range(1000):
        now += 1.0
        if chance.random() < 0.5:
            block = arena.take(chance.choice(SIZES))
            if block is not None:
                assert all(block is not other for other in used)
                block.ready = block.taken
                used.append(block)
        elif used and chance.random() < 0.8:
            arena.give(used.pop(chance.randrange(len(used))), now)
        else:
            cuts = arena.cold(now - chance.randrange(10), chance.randrange(8 * MIB))
            for cut in cuts:
                assert cut.block not in used
                cut.block.punch(cut.keep)
                assert cut.block.ready <= cut.keep
            arena.punched(cuts)
        assert sum(block.taken for block in used) <= arena.taken <= arena.limit
    for block in used:
        arena.give(block, now)
    while (since := arena.idle_since()) is not None:
        assert since <= now
        arena.punched(arena.cold(now, MIB))
    assert arena.taken == 0
    places = {(segment.number, segment.addresses.take(segment.size)) for segment in arena.segments}
    assert places == {(number, 0) for number in range(len(arena.segments))}

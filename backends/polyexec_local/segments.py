"""Room for values: a few large anonymous files, mapped once and used again and again.

A segment has far more addresses than memory: it takes memory only where it is written, and gives it back where it is
punched. So it needs one descriptor for any number of values, and blocks may be powers of two without waste. A block
that is given back stays warm for a moment, since a copy into pages that are there is several times faster than one
into pages that the system must find and clear first.

Nothing here is thread-safe but ``Block.write`` and ``Block.punch``, each for one user of the block; the store's lock
guards the rest.
"""

from __future__ import annotations

import mmap
import os
from collections import deque
from collections.abc import Iterable, Iterator

import attrs

from polyexec_local import memory
from polyexec_local.memory import Mapping, Piece

_UNIT = 64 * 1024
"""Bytes of the smallest block; a multiple of every page size."""

_LEAST_SEGMENT = 1 << 30
_SPARE = 4
"""Addresses in a segment for each byte that the store may take, so that fragmentation is no trouble."""

_SHARE_OF_ADDRESSES = 16
"""A segment takes at most this part of the addresses that a limited process may have."""

_WASTE = 1.25
"""A warm block is used for a value if it has at most this many times its bytes."""


_LOOKED_AT = 16
"""Warm blocks that are looked at for each value."""


class Buddy:
    """Hands out blocks of addresses, powers of two, and joins them again when they come back.

    Args:
        size: number of addresses, a power of two.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._free: dict[int, set[int]] = {size: {0}}

    def take(self, size: int) -> int | None:
        """Give the offset of a free block, or None."""
        found = size
        while not self._free.get(found):
            found *= 2
            if found > self._size:
                return None
        offset = self._free[found].pop()
        while found > size:
            found //= 2
            self._free.setdefault(found, set()).add(offset + found)
        return offset

    def give(self, offset: int, size: int) -> None:
        """Take a block back."""
        while size < self._size and (buddy := offset ^ size) in self._free.get(size, ()):
            self._free[size].remove(buddy)
            offset, size = min(offset, buddy), size * 2
        self._free.setdefault(size, set()).add(offset)


class Segment:
    """An anonymous file and its mapping; both end with the last reference to this object and its memory.

    Args:
        number: unique in the store.
        size: addresses in bytes, a power of two.

    Raises:
        OSError: no descriptor, or not so many addresses, are left.
    """

    def __init__(self, number: int, size: int) -> None:
        self.descriptor = -1
        self.number = number
        self.size = size
        self.addresses = Buddy(size)
        self.descriptor = memory.anonymous_file(size)
        self.mapping = Mapping(self.descriptor, size, writable=True)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


@attrs.define(eq=False)
class Block:
    """Room in a segment.

    Attributes:
        segment: where it is.
        offset: where it begins there.
        size: its addresses, a power of two.
        taken: bytes from its beginning that may have memory; what is counted.
        ready: bytes from its beginning that have memory, mapped here, and can simply be copied into.
        warm: it has been in use before, and most of what is taken has memory.
        idle_since: when it was given back.
    """

    segment: Segment
    offset: int
    size: int
    taken: int = 0
    ready: int = 0
    warm: bool = False
    idle_since: float = 0.0

    def memory(self, length: int) -> memoryview:
        """Give its first bytes, writable."""
        return self.segment.mapping.memory(self.offset, length)

    def write(self, length: int, pieces: Iterable[Piece]) -> None:
        """Copy a value into it.

        The first value is written through the descriptor: that needs no mapped pages, which a value that is put once
        would not repay. Either way a lack of memory is an error here, not a signal that kills the process.

        Args:
            length: of the value.
            pieces: its parts.

        Raises:
            OSError: there is no memory left.
        """
        if self.warm and self.ready < length and self.segment.mapping.populate(self.offset, length):
            self.ready = length
        if self.ready >= length:
            memory.copy(self.memory(length), pieces)
        else:
            memory.write(self.segment.descriptor, self.offset, pieces)

    def punch(self, keep: int) -> None:
        """Give its memory back, but for the first bytes; ``Arena.punched`` must know of it."""
        self.ready = min(self.ready, keep)
        memory.punch(self.segment.descriptor, self.offset + keep, self.taken - keep)


@attrs.frozen
class Cut:
    """A block that is to be punched.

    Attributes:
        block: the block.
        keep: bytes that stay.
    """

    block: Block
    keep: int


class Arena:
    """Blocks in use, warm blocks, and how much memory both take.

    Args:
        limit: bytes that they may take.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0
        self.segments: list[Segment] = []
        self._warm: dict[int, deque[Block]] = {}

    def take(self, length: int, *, beyond: bool = False) -> Block | None:
        """Give a block for a value, a warm one if there is one of about that size.

        Args:
            length: of the value.
            beyond: give it even beyond the limit.

        Returns:
            The block, or None if that would go beyond the limit.

        Raises:
            OSError: no descriptor, or no addresses, are left.
        """
        wanted, size = _pages(length), _block_size(length)
        block = self._warm_block(size, int(wanted * _WASTE))
        more = max(0, wanted - (block.taken if block else 0))
        if self.taken + more > self.limit and not beyond:
            if block is not None:
                self._warm[size].append(block)
            return None
        if block is None:
            block = self._new_block(size)
        block.taken += more
        self.taken += more
        return block

    def _warm_block(self, size: int, most: int) -> Block | None:
        """Take the newest that does not take more than that; it is the likeliest to be mapped by all."""
        blocks = self._warm.get(size, deque())
        for index in range(-1, -1 - min(len(blocks), _LOOKED_AT), -1):
            block = blocks[index]
            if block.taken <= most:
                del blocks[index]
                return block
        return None

    def _new_block(self, size: int) -> Block:
        for segment in self.segments:
            offset = segment.addresses.take(size)
            if offset is not None:
                return Block(segment, offset, size)
        segment = self._new_segment(size)
        offset = segment.addresses.take(size)
        assert offset is not None
        return Block(segment, offset, size)

    def _new_segment(self, least: int) -> Segment:
        size = max(least, _segment_size(self.limit))
        while True:
            try:
                segment = Segment(len(self.segments), size)
            except OSError:
                if size == least:
                    raise
                size //= 2
            else:
                self.segments.append(segment)
                return segment

    def give(self, block: Block, now: float) -> None:
        """Take a block back that nobody looks at any more."""
        block.warm, block.idle_since = True, now
        self._warm.setdefault(block.size, deque()).append(block)

    def cold(self, until: float, most: int) -> list[Cut]:
        """Choose warm blocks to be punched, and keep them back until ``punched``.

        Args:
            until: those given back until then.
            most: bytes in all.

        Returns:
            What is to be punched, the oldest first; the last may be a part of a block.
        """
        cuts = []
        while most > 0 and (block := self._oldest()) is not None and block.idle_since <= until:
            self._warm[block.size].popleft()
            keep = max(0, block.taken - most) // _UNIT * _UNIT
            cuts.append(Cut(block, keep))
            most -= block.taken - keep
        return cuts

    def punched(self, cuts: Iterable[Cut]) -> None:
        """Note what was punched."""
        for cut in cuts:
            block = cut.block
            self.taken -= block.taken - cut.keep
            block.taken = cut.keep
            if block.taken:
                self._warm.setdefault(block.size, deque()).appendleft(block)
            else:
                block.segment.addresses.give(block.offset, block.size)

    def missing(self, length: int) -> int:
        """Give by how many bytes a value of that length would go beyond the limit."""
        return self.taken + _pages(length) - self.limit

    def clear(self) -> list[Block]:
        """Let go of all segments, and give the warm blocks."""
        blocks = [block for blocks in self._warm.values() for block in blocks]
        self._warm.clear()
        self.segments = []
        return blocks

    def idle_since(self) -> float | None:
        """Say when the oldest of the warm blocks was given back; None if there is none."""
        oldest = self._oldest()
        return None if oldest is None else oldest.idle_since

    def _oldest(self) -> Block | None:
        return min(self._firsts(), key=lambda block: block.idle_since, default=None)

    def _firsts(self) -> Iterator[Block]:
        return (blocks[0] for blocks in self._warm.values() if blocks)


def _pages(length: int) -> int:
    return -(-length // mmap.PAGESIZE) * mmap.PAGESIZE


def _block_size(length: int) -> int:
    return max(_UNIT, 1 << (length - 1).bit_length())


def _segment_size(limit: int) -> int:
    wanted = max(_LEAST_SEGMENT, _block_size(limit * _SPARE))
    addresses = _address_limit()
    return wanted if addresses is None else min(wanted, _block_size(addresses // _SHARE_OF_ADDRESSES))


def _address_limit() -> int | None:
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft

"""Which running calls have outgrown their ``memory=``, and whether the machine is short of memory (F11).

What counts is what a call's worker and the processes that it has started take beyond what they took when the call
began, so that a worker's modules and what earlier calls have left in it are nobody's fault. See
``polyexec.memory_usage`` for what is counted as theirs. How soon a call is looked at again depends on how far it is
from its limit, how fast it grows, and how much the machine has left.

When the machine is nearly out of memory, calls lose the slack that they have otherwise. A call without ``memory=`` is
never named as outgrown, however large: it has broken no promise, and the largest need not be what grows. The shortage
is reported instead, with the largest call, once until there is memory again. If that does not help, the kernel kills
something; ``polyexec.memory_usage.oom_kills`` tells.

All state belongs to one thread, that of the pool; there is no thread and no timer in here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import attrs

from polyexec import memory_usage
from polyexec.memory_usage import SLACK, Machine

_SHORTEST, _LONGEST = 0.05, 0.5
"""Seconds from one look at a call to the next."""

_TOGETHER = 0.01
"""Seconds by which a look may come early, so that many calls are looked at together."""

_PATROL = 1.0
"""Seconds from one look at the machine to the next when no call has asked for memory."""

_FAMILY = 0.25
"""Seconds for which a list of processes is good; the costly part of a look is to find them."""

_GROWTH = 2**30
"""Bytes a second by which a call may grow suddenly: what a thread gets that touches fresh memory."""

_WALK = 0.2 / 2**30
"""Seconds to wait for each byte that was counted page by page, so that counting costs a twentieth of the time."""


@attrs.frozen
class Outgrown:
    """A call that has outgrown its ``memory=``.

    Attributes:
        pid: its worker.
        used: bytes that it uses.
        limit: bytes that it asked for.
    """

    pid: int
    used: int
    limit: int

    def __str__(self) -> str:
        return memory_usage.describe(self.used, self.limit)


@attrs.frozen
class Shortage:
    """The machine is nearly out of memory, and no call is to blame for it by its own promise.

    Attributes:
        available: bytes left.
        total: bytes in all.
        pid: the worker of the largest call, None if none runs.
        used: bytes that this worker and what it has started use.
    """

    available: int
    total: int
    pid: int | None
    used: int


@attrs.frozen
class Findings:
    """What a check has found.

    Attributes:
        outgrown: calls to be ended; each is named once.
        shortage: to be told to the user, None if there is none or if it was told before.
    """

    outgrown: tuple[Outgrown, ...] = ()
    shortage: Shortage | None = None


@attrs.frozen
class Reader:
    """Where readings come from; see ``polyexec.memory_usage``."""

    own_bytes: Callable[[int], int | None] = memory_usage.own_bytes
    counted_once: Callable[[Iterable[int]], int] = memory_usage.counted_once
    family: Callable[[int], tuple[int, ...]] = memory_usage.family
    machine: Callable[[], Machine | None] = memory_usage.machine

    def sum(self, members: Sequence[int]) -> int:
        """Give what some processes use, pages that they share once for each."""
        return sum(self.own_bytes(member) or 0 for member in members)


@attrs.define(eq=False)
class _Watched:
    """A call that asked for memory.

    Attributes:
        pid: its worker.
        limit: bytes that it asked for.
        first: its processes when it began.
        before: bytes in use then.
        members: its processes, as found at ``found``.
        used: bytes at the last look, at ``at``.
        due: when to look again.
        countable: when its pages may be counted again.
    """

    pid: int
    limit: int
    first: frozenset[int]
    before: int
    members: tuple[int, ...]
    found: float
    at: float
    used: int = 0
    due: float = 0.0
    countable: float = 0.0

    def plan(self, now: float, used: int, room: float) -> None:
        """Set when to look again, by the bytes that it may grow until something must be done."""
        seen = (used - self.used) / (now - self.at) if now > self.at else 0.0
        self.at, self.used = now, used
        self.due = now + min(_LONGEST, max(_SHORTEST, room / max(2 * seen, _GROWTH)))


class MemoryWatch:
    """Watches the calls of a pool; for one thread.

    Args:
        running: gives the workers that run calls, those among them that asked for nothing.
        reader: where readings come from.
    """

    def __init__(self, running: Callable[[], Iterable[int]] = tuple, reader: Reader | None = None) -> None:
        self._running = running
        self._reader = reader or Reader()
        self._watched: dict[int, _Watched] = {}
        self._due = 0.0
        self._told = False

    def begin(self, pid: int, limit: int, now: float) -> None:
        """Watch a call from now on; to be called before it can have taken anything.

        Args:
            pid: its worker, which runs no other call; or a process above it, if that adopts what is orphaned there.
            limit: bytes that it asked for.
            now: the monotonic time.
        """
        members = self._reader.family(pid)
        before = self._reader.sum(members)
        watched = _Watched(pid, limit, frozenset(members), before, members, found=now, at=now)
        watched.plan(now, 0, limit + SLACK)
        self._watched[pid] = watched
        self._due = min(self._due, watched.due)

    def end(self, pid: int) -> None:
        """Forget the call of a worker, if one is watched."""
        self._watched.pop(pid, None)

    def due(self) -> float:
        """Give the monotonic time of the next check. A pool in which nothing runs need not keep to it."""
        return self._due

    def check(self, now: float) -> Findings:
        """Look at what is due, and say what is to be done. May be called early; reads some files, and never waits.

        Args:
            now: the monotonic time.
        """
        machine = self._reader.machine()
        room = float("inf") if machine is None else max(0, machine.available - _reserve(machine.total))
        due = [watched for watched in self._watched.values() if room == 0 or watched.due <= now + _TOGETHER]
        outgrown = tuple(found for watched in due if (found := self._look(watched, now, room)) is not None)
        for found in outgrown:
            del self._watched[found.pid]
        self._due = min([now + _PATROL, *(watched.due for watched in self._watched.values())])
        return Findings(outgrown, None if outgrown else self._shortage(machine))

    def _look(self, watched: _Watched, now: float, room: float) -> Outgrown | None:
        allowed = watched.limit + (SLACK if room else 0)
        if now - watched.found >= _FAMILY:
            self._find(watched, now)
        used = self._reader.sum(watched.members) - watched.before
        if used > allowed:
            used = self._used_exactly(watched, now, allowed)
        watched.plan(now, used, min(allowed - used, room))
        return Outgrown(watched.pid, used, watched.limit) if used > allowed else None

    def _find(self, watched: _Watched, now: float) -> None:
        watched.members, watched.found = self._reader.family(watched.pid), now

    def _used_exactly(self, watched: _Watched, now: float, allowed: int) -> int:
        """Count anew what seems too much: processes may have ended, and those that the call has forked share pages.

        Pages that were shared with processes outside when the call began are then missing, to the call's benefit.
        """
        self._find(watched, now)
        used = self._reader.sum(watched.members) - watched.before
        if used <= allowed or watched.first.issuperset(watched.members):
            return used
        if now < watched.countable:
            return allowed
        watched.countable = now + used * _WALK
        return self._reader.counted_once(watched.members) - watched.before

    def _shortage(self, machine: Machine | None) -> Shortage | None:
        if machine is None or machine.available > 2 * _reserve(machine.total):
            self._told = False
        elif machine.available <= _reserve(machine.total) and not self._told:
            self._told = True
            sizes = ((self._reader.sum(self._reader.family(pid)), pid) for pid in self._running())
            used, pid = max(sizes, default=(0, None))
            return Shortage(machine.available, machine.total, pid, used)
        return None


def _reserve(total: int) -> int:
    """Give the bytes that should always be left: 2 %, but at least 200 MB, though less in a small container."""
    return min(max(total // 50, 200 * 10**6), total // 10, 2 * 10**9)

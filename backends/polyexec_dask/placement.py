"""Which worker process a call goes to."""

from __future__ import annotations

from collections.abc import Sequence

from polyexec.spi import Call
from polyexec_dask.remote import Remote

_AHEAD = 32


class Workers:
    """The worker processes that can be used, by their addresses.

    Args:
        limit: number of calls that run at the same time in one process.
        width: number of workers among which calls that were handed over ahead of time are spread; None for all.
        secedes: whether a call that waits makes room for another in its own process.
    """

    def __init__(self, limit: int, width: int | None, *, secedes: bool) -> None:
        self.remotes: dict[str, Remote] = {}
        self._limit = limit
        self._width = width
        self._secedes = secedes

    def choose(self, call: Call) -> Remote | None:
        """Find a worker for a call, on its node; None if it must wait."""
        usable = self._usable(call.lease.node)
        if call.queued:
            return self._choose_ahead(usable)
        best = min(usable, key=Remote.load, default=None)
        # Where no more processes can be started, a call that holds a part of a cpu, or none, runs beside another.
        may_share = self._secedes and call.lease.held.cpus < 1
        return best if best is not None and (may_share or best.load() < self._limit) else None

    def _choose_ahead(self, usable: Sequence[Remote]) -> Remote | None:
        # Calls are sent ahead in batches, because each batch costs Dask's scheduler as much as a single call.
        full, refill = self._limit + _AHEAD, self._limit + _AHEAD // 2
        is_wide = self._is_wide(usable)
        found = [
            remote
            for remote in usable
            if (remote.records or not is_wide) and remote.load() < (full if remote.fresh else refill)
        ]
        return min(found, key=Remote.load, default=None)

    def rival_of(self, idle: Remote) -> Remote | None:
        """Find the worker that has most calls waiting which an idle one could take over."""
        if self._is_wide(self._usable(idle.node)):
            return None
        rivals = [remote for remote in self.remotes.values() if remote.node == idle.node and not remote.gone]
        rival = max(rivals, key=Remote.load, default=None)
        return rival if rival is not None and rival is not idle and rival.load() > self._limit else None

    def _usable(self, node: str) -> list[Remote]:
        return [
            remote
            for remote in self.remotes.values()
            if remote.node == node and not remote.gone and (self._secedes or not remote.blocked_count)
        ]

    def _is_wide(self, usable: Sequence[Remote]) -> bool:
        """Say whether as many workers are busy as may be with calls that hold a cpu."""
        return self._width is not None and sum(bool(remote.records) for remote in usable) >= self._width

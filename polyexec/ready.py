"""The ready queue: tasks that could run if there were room, grouped by what they need.

Within a group tasks stand in order of priority and submission. Across groups the first that fits starts; one that does
not fit has what it waits for kept back from those behind it, so that none starves.
"""

from __future__ import annotations

import heapq
from typing import TypeAlias

from polyexec.ledger import Grant, Ledger, Need

_Key: TypeAlias = tuple[bool, tuple[tuple[str, int], ...]]


class _Group:
    __slots__ = ("heap", "is_seats", "need")

    def __init__(self, need: Need, is_seats: bool) -> None:
        self.need = need
        self.is_seats = is_seats
        self.heap: list[tuple[float, int, int]] = []


class ReadyQueue:
    """Orders ready tasks; owned by the scheduler."""

    def __init__(self) -> None:
        self._groups: dict[_Key, _Group] = {}
        self._present: dict[int, _Key] = {}

    def __len__(self) -> int:
        return len(self._present)

    def push(self, task_id: int, need: Need, priority: float, *, is_seat: bool = False) -> None:
        """Add a task, or a seat; its id is its place among those of equal priority."""
        key = is_seat, tuple(need.items())
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = _Group(need, is_seat)
        self._present[task_id] = key
        heapq.heappush(group.heap, (-priority, task_id, task_id))

    def discard(self, task_id: int) -> None:
        """Remove a task if it is there."""
        self._present.pop(task_id, None)

    def pop_fitting(
        self, ledger: Ledger, kept: dict[str, dict[str, int]], *, keep_back: bool = True
    ) -> tuple[int, Grant] | None:
        """Take the first task for which there is room, and what it needs.

        Args:
            ledger: where to take it.
            kept: what must be left alone, by node; tasks that do not fit add to it.
            keep_back: let them.

        Returns:
            The task and its grant, or None if nothing fits.
        """
        if not self._present:
            return None
        for group in sorted(self._living(), key=lambda group: group.heap[0]):
            grant = ledger.place(group.need, kept)
            if grant is not None:
                task_id = heapq.heappop(group.heap)[2]
                del self._present[task_id]
                return task_id, grant
            if keep_back:
                ledger.earmark(group.need, kept)
        return None

    def head(self) -> tuple[int, Need] | None:
        """Give the first task in order, and what it needs."""
        first = min(self._living(), key=lambda group: group.heap[0], default=None)
        return None if first is None else (first.heap[0][2], first.need)

    def pop(self, task_id: int) -> None:
        """Take a task that ``head`` has given."""
        heapq.heappop(self._groups[self._present.pop(task_id)].heap)

    def barrier(self, ledger: Ledger) -> float:
        """Give the id from which on plain calls must wait, because a task before them lacks nothing but cpus."""
        lowest = float("inf")
        for group in self._living():
            if not group.is_seats and ledger.lacks_only_cpus(group.need):
                negative_priority, task_id, _ = group.heap[0]
                if negative_priority <= 0:
                    lowest = min(lowest, 0 if negative_priority else task_id)
        return lowest

    def _living(self) -> list[_Group]:
        for key, group in list(self._groups.items()):
            while group.heap and self._present.get(group.heap[0][2]) != key:
                heapq.heappop(group.heap)
            if not group.heap:
                del self._groups[key]
        return list(self._groups.values())

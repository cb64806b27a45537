"""The ready queue: tasks that could run if there were room, grouped by what they need.

Within a group tasks stand in order of priority and submission. Across groups the first that fits starts; one that does
not fit has what it waits for kept back from those behind it, so that none starves.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Protocol, TypeAlias

from polyexec.ledger import SLOT, Grant, Ledger, Need, add_up_needs
from polyexec.placement import Placement

_Key: TypeAlias = tuple[bool, tuple[tuple[str, int], ...], Placement | None] | int

Share: TypeAlias = tuple[int, Grant]
"""A bundle, by its index, and what it gets."""


class Want(Protocol):
    """What something needs at once that is not one call."""

    def take(self, ledger: Ledger, kept: dict[str, dict[str, int]]) -> tuple[Share, ...] | None:
        """Take it if there is room."""

    def earmark(self, ledger: Ledger, kept: dict[str, dict[str, int]]) -> None:
        """Keep what it waits for."""

    def lacks_only_cpus(self, ledger: Ledger) -> bool:
        """Say whether it would fit at once if calls that hold nothing but a cpu ended."""


class _Group:
    __slots__ = ("heap", "is_seats", "need", "placement")

    def __init__(self, need: Need, is_seats: bool, placement: Placement | None) -> None:
        self.need = need
        self.is_seats = is_seats
        self.placement = placement
        self.heap: list[tuple[float, int, int]] = []

    def take(self, ledger: Ledger, kept: dict[str, dict[str, int]]) -> Grant | tuple[Share, ...] | None:
        return ledger.place(self.need, kept, self.placement)

    def earmark(self, ledger: Ledger, kept: dict[str, dict[str, int]]) -> None:
        ledger.earmark(self.need, kept, self.placement)

    def lacks_only_cpus(self, ledger: Ledger) -> bool:
        return ledger.lacks_only_cpus(self.need, self.placement)


class _Single(_Group):
    """Something that is alone in its group."""

    __slots__ = ("want",)

    def __init__(self, want: Want) -> None:
        super().__init__({}, False, None)
        self.want = want

    def take(self, ledger: Ledger, kept: dict[str, dict[str, int]]) -> tuple[Share, ...] | None:
        return self.want.take(ledger, kept)

    def earmark(self, ledger: Ledger, kept: dict[str, dict[str, int]]) -> None:
        self.want.earmark(ledger, kept)

    def lacks_only_cpus(self, ledger: Ledger) -> bool:
        return self.want.lacks_only_cpus(ledger)


class ReadyQueue:
    """Orders ready tasks; owned by the scheduler."""

    def __init__(self) -> None:
        self._groups: dict[_Key, _Group] = {}
        self._present: dict[int, _Key] = {}

    def __len__(self) -> int:
        return len(self._present)

    def push(
        self,
        task_id: int,
        need: Need,
        priority: float,
        *,
        is_seat: bool = False,
        placement: Placement | None = None,
    ) -> None:
        """Add a task, or a seat; its id is its place among those of equal priority."""
        key = is_seat, tuple(need.items()), placement
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = _Group(need, is_seat, placement)
        self._present[task_id] = key
        heapq.heappush(group.heap, (-priority, task_id, task_id))

    def push_want(self, want_id: int, want: Want, priority: float) -> None:
        """Add something that is no task; its id is its place among tasks."""
        group = self._groups[want_id] = _Single(want)
        self._present[want_id] = want_id
        heapq.heappush(group.heap, (-priority, want_id, want_id))

    def discard(self, task_id: int) -> None:
        """Remove a task if it is there."""
        self._present.pop(task_id, None)

    def pop_fitting(
        self,
        ledger: Ledger,
        kept: dict[str, dict[str, int]],
        lent: Callable[[], dict[str, dict[str, int]]] = dict,
        *,
        keep_back: bool = True,
    ) -> tuple[int, Grant | tuple[Share, ...]] | None:
        """Take the first task for which there is room, and what it needs.

        Args:
            ledger: where to take it.
            kept: what must be left alone, by node; tasks that do not fit add to it.
            lent: gives what those must leave alone, besides, who take no slot: what they get they keep.
            keep_back: let them.

        Returns:
            The task and its grant, or None if nothing fits.
        """
        if not self._present:
            return None
        for group in sorted(self._living(), key=lambda group: group.heap[0]):
            lives_on = SLOT not in group.need and "cpus" in group.need
            grant = group.take(ledger, add_up_needs(kept, lent()) if lives_on else kept)
            if grant is not None:
                task_id = heapq.heappop(group.heap)[2]
                del self._present[task_id]
                return task_id, grant
            if keep_back:
                group.earmark(ledger, kept)
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
            if not group.is_seats and group.lacks_only_cpus(ledger):
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

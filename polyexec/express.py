"""The short way of plain calls: events in, actions out. No input or output, no thread, no clock of its own.

A seat is a worker with a lease of one cpu, which the scheduler grants like any other. Calls are handed to seats in
the order of their submission: one to each that has nothing to do, and as many more as will, by what is known of their
functions, be done within ``AHEAD``. What has been handed over and not started can be taken back at any time; that
happens when a call takes longer than expected, so that those behind it can go elsewhere.

``pending`` may be added to, on the right, by any thread, which looks at ``hungry`` then; everything else belongs to
one thread.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Iterable
from typing import TypeAlias

import attrs

from polyexec.plain import PlainCall, PlainFunction

AHEAD = 0.01
"""Seconds of work that may lie before a worker: it hides a round trip, and hardly matters for order or fairness."""

LADEN = 0.004
"""Seconds of work with which a worker can be left alone for a while."""

OVERHEAD = 10e-6
"""Seconds that a call costs its worker besides its own work."""

OVERDUE = 0.02
"""Seconds beyond what was expected after which the calls behind a call are taken back."""

_SMALL = 16
"""Calls dealt to one seat before another is looked at, so that they start nearly in order."""

_WEIGHT = 0.2


class SeatState(enum.Enum):
    """Where a seat is on its way."""

    OPENING = "opening"
    OPEN = "open"
    RECALLED = "recalled"
    CLOSED = "closed"


@attrs.define(eq=False)
class Seat:
    """One worker that takes plain calls.

    Attributes:
        id: of the scheduler's call that holds the lease.
        state: calls are handed to open seats only.
        calls: handed over and not reported, in the order of their start.
        load: seconds that they cost together.
        since: when the first of them came first; 0 if it is alone, or that was not looked at.
        handed: when the latest of them were handed over.
        node: where its worker is.
        pid: the worker's process id, 0 if unknown.
    """

    id: int
    state: SeatState = SeatState.OPENING
    calls: dict[int, PlainCall] = attrs.field(factory=dict)
    load: float = 0.0
    since: float = 0.0
    handed: float = 0.0
    node: str = ""
    pid: int = 0


@attrs.frozen
class AskForSeat:
    """Let the scheduler grant one more seat; ``place`` is the id of the call for which it is."""

    place: int


@attrs.frozen
class Withdraw:
    """One of the seats that were asked for is not needed any more."""


@attrs.frozen(eq=False)
class Hand:
    """Give calls to a seat."""

    seat: int
    calls: list[PlainCall]


@attrs.frozen
class Recall:
    """Take back what a seat has not started."""

    seat: int


@attrs.frozen
class Leave:
    """Give a seat back, on which nothing runs."""

    seat: int


ExpressAction: TypeAlias = AskForSeat | Withdraw | Hand | Recall | Leave


class Express:
    """Decides which seat runs which plain call.

    Args:
        clock: gives seconds; never goes back.
        general: takes a call that must become an ordinary task instead of waiting here again.
    """

    def __init__(self, clock: Callable[[], float], general: Callable[[PlainCall], None]) -> None:
        self.actions: list[ExpressAction] = []
        self.pending: deque[PlainCall] = deque()
        self.seats: dict[int, Seat] = {}
        self.asked = 0
        self.limit = 0
        self.hungry = True
        self._clock = clock
        self._general = general

    # Events

    def granted(self, seat_id: int, node: str = "") -> None:
        """Learn that the scheduler has granted a seat that was asked for."""
        self.asked -= 1
        self.seats[seat_id] = Seat(seat_id, node=node)

    def seated(self, seat_id: int, pid: int = 0) -> None:
        """Learn that a seat has a worker."""
        seat = self.seats.get(seat_id)
        if seat is not None:
            seat.state, seat.pid = SeatState.OPEN, pid

    def refused(self, seat_id: int) -> None:
        """Learn that no worker would start for a seat; the scheduler will try again."""
        if self.seats.pop(seat_id, None) is not None:
            self.asked += 1

    def finished(self, seat_id: int, call_id: int, seconds: float) -> PlainCall | None:
        """Learn that a call has ended on its seat; give the call, unless it is not known here any more."""
        seat = self.seats.get(seat_id)
        if seat is None:
            return None
        call = seat.calls.pop(call_id, None)
        if call is not None:
            seat.load = seat.load - call.cost if seat.calls else 0.0
            seat.since = 0.0
            _learn(call.function, seconds)
        return call

    def kept(self, seat_id: int, running: int) -> None:
        """Learn that of all calls of a seat only one has started, if any, and that no other ever will there."""
        seat = self.seats.get(seat_id)
        if seat is not None:
            seat.state = SeatState.CLOSED
            victim = seat.calls.pop(running, None)
            waiting, seat.calls = seat.calls, {} if victim is None else {running: victim}
            seat.load = 0.0 if victim is None else victim.cost
            self._take_back(waiting.values())

    def vacated(self, seat_id: int) -> bool:
        """Learn that the worker of a seat has died while none of its calls ran; False if the seat is not known."""
        seat = self.seats.pop(seat_id, None)
        if seat is not None:
            self._take_back(seat.calls.values())
        return seat is not None

    def seat_of(self, call_id: int) -> Seat | None:
        """Give the seat to which a call has been handed, if any."""
        return next((seat for seat in self.seats.values() if call_id in seat.calls), None)

    def is_laden(self) -> bool:
        """Say whether calls are pending, and all seats have work for a while."""
        return bool(self.pending) and all(
            seat.state is SeatState.OPEN and len(seat.calls) > 1 and seat.load > LADEN for seat in self.seats.values()
        )

    def has_at_most_one(self) -> bool:
        """Say whether there is hardly anything to do. From any thread; what it says may be out of date."""
        return not self.pending and sum([len(seat.calls) for seat in tuple(self.seats.values())]) <= 1

    def is_closed(self, seat_id: int) -> bool:
        """Say whether it is known that what a seat holds has started."""
        seat = self.seats.get(seat_id)
        return seat is not None and seat.state is SeatState.CLOSED

    def promoted(self, call: PlainCall) -> None:
        """Learn that a call which runs has become an ordinary task, and has taken the lease of its seat with it."""
        seat = self.seats.pop(call.seat)
        del seat.calls[call.id]
        self._take_back(seat.calls.values())

    def drop(self, call: PlainCall) -> bool:
        """Take a call out that waits here; False if it has been handed over."""
        if call.seat or call.dropped:
            return False
        call.dropped = True
        return True

    def recall(self, seat_id: int) -> None:
        """Take back what a seat has not started."""
        seat = self.seats.get(seat_id)
        if seat is not None and seat.state is SeatState.OPEN:
            seat.state = SeatState.RECALLED
            self.actions.append(Recall(seat_id))

    def clear(self) -> list[PlainCall]:
        """Give up everything, and give all calls that have not ended."""
        calls = []
        while self.pending:
            call = self.pending.popleft()
            if not call.dropped:
                calls.append(call)
        for seat in self.seats.values():
            calls += seat.calls.values()
        self.seats.clear()
        self.actions.clear()
        self.asked = 0
        return calls

    # Decisions

    def decide(self, barrier: float) -> None:
        """Hand over what there is room for; to be called after each batch of events.

        Args:
            barrier: calls with ids from here on must wait for ordinary tasks that came before them.
        """
        pending = self.pending
        while pending and pending[0].dropped:
            pending.popleft()
        if pending and pending[0].id < barrier:
            self._deal(barrier)
        self._look_after_seats(barrier)
        if pending or self.asked:
            self._ask(barrier)
        # Whoever adds a call looks at this afterwards, and wakes the thread if it is set. It is not as long as seats
        # have something to do: then their results wake the thread, and many calls travel together.
        self.hungry = self._has_room()
        if self.hungry and pending and not self._can_serve(pending[0], barrier):
            self.hungry = False

    def give_up_idle(self) -> None:
        """Give back the seats on which nothing runs: somebody else needs what they hold."""
        for seat in tuple(self.seats.values()):
            if not seat.calls and seat.state is not SeatState.OPENING:
                self._leave(seat)

    def pause(self) -> float | None:
        """Give the seconds until calls may be overdue, None if that cannot be."""
        return OVERDUE if any(self._may_be_overdue(seat) for seat in self.seats.values()) else None

    def _can_serve(self, call: PlainCall, barrier: float) -> bool:
        """Say whether something can be done about a call that came during the decision."""
        if call.dropped:
            return True
        idle = any(seat.state is SeatState.OPEN and not seat.calls for seat in self.seats.values())
        return call.id < barrier and (idle or self.asked < self._wanted(barrier))

    def _has_room(self) -> bool:
        if len(self.seats) + self.asked < self.limit:
            return True
        return any(seat.state is SeatState.OPEN and not seat.calls for seat in self.seats.values())

    def _deal(self, barrier: float) -> None:
        open_seats = [seat for seat in self.seats.values() if seat.state is SeatState.OPEN]
        portions: dict[int, list[PlainCall]] = {}
        for seat in open_seats:
            if not seat.calls and not self._deal_to(seat, 1, barrier, portions):
                break
        # A seat is filled up when it is half empty, so that there are few messages.
        thirsty = [seat for seat in open_seats if seat.load < AHEAD / 2]
        while thirsty and self.pending:
            seat = min(thirsty, key=_load)
            portion = max(1, min(_SMALL, len(self.pending) // len(thirsty)))
            if self._deal_to(seat, portion, barrier, portions) < portion:
                thirsty.remove(seat)
        now = self._clock() if portions else 0.0
        for seat_id, calls in portions.items():
            self.seats[seat_id].handed = now
            self.actions.append(Hand(seat_id, calls))

    def _deal_to(self, seat: Seat, most: int, barrier: float, portions: dict[int, list[PlainCall]]) -> int:
        """Hand calls to a seat as long as they fit; give their number."""
        dealt = 0
        portion = portions.setdefault(seat.id, [])
        while dealt < most and self.pending:
            call = self.pending[0]
            if call.dropped:
                self.pending.popleft()
                continue
            if call.id >= barrier or (seat.calls and not _fits(seat, call)):
                break
            self.pending.popleft()
            call.seat, call.cost = seat.id, _cost(call)
            seat.calls[call.id] = call
            seat.load += call.cost
            portion.append(call)
            dealt += 1
        if not portion:
            portions.pop(seat.id, None)
        return dealt

    def _look_after_seats(self, barrier: float) -> None:
        """Leave seats that have done their part, and take back what waits too long."""
        idle, left, laden = False, [], []
        for seat in self.seats.values():
            if len(seat.calls) > 1:
                laden.append(seat)
            elif not seat.calls:
                idle = idle or seat.state is SeatState.OPEN
                if seat.state is SeatState.CLOSED:
                    left.append(seat)
        for seat in left:
            self._leave(seat)
        now = self._clock() if laden else 0.0
        for seat in laden:
            if not seat.since:
                seat.since = now
            if seat.state is SeatState.OPEN and (
                next(reversed(seat.calls)) >= barrier
                or self._is_better_shared(seat, now, idle=idle and not self.pending)
            ):
                self.recall(seat.id)

    @staticmethod
    def _may_be_overdue(seat: Seat) -> bool:
        return seat.state is SeatState.OPEN and len(seat.calls) > 1

    @staticmethod
    def _is_better_shared(seat: Seat, now: float, *, idle: bool) -> bool:
        first = next(iter(seat.calls.values()))
        if now - seat.since > OVERDUE + 2 * first.cost:
            return True
        return idle and seat.load - first.cost > AHEAD / 10

    def _ask(self, barrier: float) -> None:
        wanted = self._wanted(barrier)
        while self.asked < wanted and len(self.seats) + self.asked < self.limit:
            self.asked += 1
            self.actions.append(AskForSeat(self.pending[0].id))
        while self.asked > wanted:
            self.asked -= 1
            self.actions.append(Withdraw())

    def _wanted(self, barrier: float) -> int:
        if not self.pending or self.pending[0].id >= barrier:
            return 0
        if any(not seat.calls and seat.state is SeatState.OPEN for seat in self.seats.values()):
            return 0
        opening = sum(seat.state is SeatState.OPENING for seat in self.seats.values())
        return max(0, len(self.pending) - opening)

    def _leave(self, seat: Seat) -> None:
        del self.seats[seat.id]
        self.actions.append(Leave(seat.id))

    def _take_back(self, calls: Iterable[PlainCall]) -> None:
        waiting = []
        for call in calls:
            call.seat = 0
            if call.entry.watched:
                self._general(call)
            else:
                waiting.append(call)
        # They keep their place; what is pending came later, but for what was taken back from others.
        last = max(waiting, key=_id, default=None)
        while last is not None and self.pending and self.pending[0].id < last.id:
            waiting.append(self.pending.popleft())
        waiting.sort(key=_id, reverse=True)
        self.pending.extendleft(waiting)


def _load(seat: Seat) -> float:
    return seat.load


def _id(call: PlainCall) -> int:
    return call.id


def _cost(call: PlainCall) -> float:
    """Give what a call counts; behind one that may take any time nothing is handed over."""
    seconds = call.function.seconds
    return AHEAD if seconds is None else seconds + OVERHEAD


def _fits(seat: Seat, call: PlainCall) -> bool:
    seconds = call.function.seconds
    return seconds is not None and seat.load + seconds + OVERHEAD <= AHEAD


def _learn(function: PlainFunction, seconds: float) -> None:
    """Take over how long a call took; one that takes much longer than others raises the estimate twofold at most."""
    known = function.seconds
    if known is None:
        function.seconds = seconds
    else:
        function.seconds = min(known + _WEIGHT * (seconds - known), 2 * known + OVERHEAD)

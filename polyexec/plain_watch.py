"""Recording what happens to plain calls. A part of the runtime: everything here runs in the loop thread.

Plain calls are many and short, so that a row is made for each only when it has ended. Those that take long are looked
for now and then; the first call of a seat is the one that runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic

from polyexec.express import Seat
from polyexec.plain import PlainCall
from polyexec.recording import LOOK, Recorder
from polyexec.records import Ended
from polyexec.spi import Outcome
from polyexec.stored import Head, Stored, Tag


class PlainWatcher:
    """Records plain calls, but for those that were made before it was.

    Args:
        recorder: keeps the rows.
        seats: all that there are, now and later.
    """

    def __init__(self, recorder: Recorder, seats: Mapping[int, Seat]) -> None:
        self._recorder = recorder
        self._stories = recorder.stories
        self._append = recorder.append
        self._seats = seats
        self._seen: dict[int, float] = {}
        self._next_look = 0.0

    def took_value(self, seat: int, call: PlainCall, data: bytes, seconds: float, pid: int) -> None:
        """Note that a call has ended with a value and nothing else; what is done here is done for each call."""
        number = call.id
        if self._stories and number in self._stories:
            self._recorder.settled(number, 1, Tag.VALUE, Ended(number), Outcome.of(Stored(data)))
            return
        name, node = call.function.name, self._seats[seat].node
        self._append((number, name, call.submitted, monotonic(), seconds, pid, node, len(call.data), len(data)))

    def ended(self, seat: int, call: PlainCall, head: Head, result: Outcome) -> None:
        """Note that a call has ended with whatever it may be."""
        if call.submitted:
            self._recorder.begun(call, self._seats[seat].node, head.pid, monotonic() - head.duration)
            self._recorder.settled(call.id, 1, head.tag, Ended(call.id), result)

    def promoted(self, call: PlainCall) -> None:
        """Note that a call runs, and is about to become an ordinary task."""
        if call.submitted:
            seat = self._seats[call.seat]
            self._recorder.begun(call, seat.node, seat.pid, self._seen.get(call.id, monotonic()))

    def given_up(self, call: PlainCall, error: Stored) -> None:
        """Note that a call fails because the backend is lost or broken."""
        if call.submitted:
            self._recorder.given_up(call, error)

    def look(self) -> None:
        """Look for calls that have been running for a while, if it is time; to be called now and then."""
        now = monotonic()
        if now < self._next_look:
            return
        self._next_look = now + LOOK
        before, self._seen = self._seen, {}
        for seat in self._seats.values():
            call = next(iter(seat.calls.values()), None)
            if call is not None and call.submitted:
                self._seen[call.id] = before.get(call.id, now)
                if call.id in before:
                    self._recorder.begun(call, seat.node, seat.pid, before[call.id])

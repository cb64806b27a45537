"""Recording what happens to plain calls. A part of the runtime: everything here runs in the loop thread.

Plain calls are many and short, so that a row is made for each only when it has ended. Those that take long are looked
for now and then; the first call of a seat is the one that runs.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from polyexec.express import Express
from polyexec.plain import PlainCall, TimedCall
from polyexec.recording import LOOK, Recorder
from polyexec.records import Ended
from polyexec.spi import Outcome
from polyexec.stored import VALUE_SECONDS, Head, Stored, Tag

_SMALL = 128
"""Bytes of an outcome that is kept as it is, because to take its head out of it would not save anything."""


class PlainWatcher:
    """Records plain calls.

    Args:
        recorder: keeps the rows.
        express: knows the seats.
        finish: takes the outcome of a call that is a value and nothing else, and gives the call.
    """

    def __init__(
        self, recorder: Recorder, express: Express, finish: Callable[[int, int, bytes], PlainCall | None]
    ) -> None:
        self._recorder = recorder
        self._stories = recorder.stories
        self._append = recorder.append
        self._seats = express.seats
        self._finish = finish
        self._seen: dict[int, float] = {}
        self._next_look = 0.0

    def take_value(self, seat: int, call_id: int, data: bytes) -> PlainCall | None:
        """Take the outcome of a call that is a value and nothing else."""
        call = self._finish(seat, call_id, data)
        if type(call) is TimedCall:
            if self._stories and call_id in self._stories:
                result = Outcome.of(Stored(data))
                self._recorder.settled(call_id, 1, Tag.VALUE, Ended(call_id), result)
            else:
                size = len(data)
                head = data if size < _SMALL else data[: VALUE_SECONDS.size]
                name, node = call.function.name, self._seats[seat].node
                self._append((call_id, name, call.submitted, monotonic(), head, node, len(call.data), size))
        return call

    def ended(self, seat: int, call: PlainCall, head: Head, result: Outcome) -> None:
        """Note that a call has ended with whatever it may be."""
        if isinstance(call, TimedCall):
            self._recorder.begun(call, self._seats[seat].node, head.pid, monotonic() - head.duration)
            self._recorder.settled(call.id, 1, head.tag, Ended(call.id), result)

    def promoted(self, call: PlainCall) -> None:
        """Note that a call runs, and is about to become an ordinary task."""
        if isinstance(call, TimedCall):
            seat = self._seats[call.seat]
            self._recorder.begun(call, seat.node, seat.pid, self._seen.get(call.id, monotonic()))

    def given_up(self, call: PlainCall, error: Stored) -> None:
        """Note that a call fails because the backend is lost or broken."""
        if isinstance(call, TimedCall):
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
            if isinstance(call, TimedCall):
                self._seen[call.id] = before.get(call.id, now)
                if call.id in before:
                    self._recorder.begun(call, seat.node, seat.pid, before[call.id])

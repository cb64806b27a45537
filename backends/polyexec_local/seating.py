"""Seats of the local engine: workers that take plain calls ahead of their turn.

Belongs to the core's thread.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence

from polyexec.spi import Death, Outcome, PlainCall, SeatListener
from polyexec_local.channel import encode
from polyexec_local.member import Worker
from polyexec_local.wiring import Wiring

_RECALL_PATIENCE = 0.05
"""Seconds that a worker gets to answer a recall; one that does not is inside a call that lets no other thread run."""

_FUNCTION_LIMIT = 4096
"""Functions that a worker is asked to keep."""


class Seating:
    """The seats, as the core sees them; see ``polyexec.spi.Seats``.

    Args:
        wiring: the ways to the workers.
        find: looks for a worker for a seat, which is given to ``seat``, now or later.
        free: gets a worker that is not needed for a seat any more.
    """

    def __init__(self, wiring: Wiring, find: Callable[[int], None], free: Callable[[Worker], None]) -> None:
        self._wiring = wiring
        self._find = find
        self._free = free
        self._workers: dict[int, Worker] = {}
        self._recalls: dict[int, float] = {}
        self._listener: SeatListener

    # For the core

    def report_to(self, listener: SeatListener) -> None:
        """Learn whom to report to."""
        self._listener = listener

    def open(self, seat: int) -> None:
        """Find a worker for a seat."""
        self._find(seat)

    def hand(self, seat: int, calls: Sequence[PlainCall]) -> None:
        """Give plain calls to the worker of a seat."""
        worker = self._workers[seat]
        known = worker.functions
        forget = len(known) > _FUNCTION_LIMIT
        if forget:
            known.clear()
        functions, items = [], []
        for call in calls:
            function = call.function
            key = function.key
            if key and key not in known:
                known.add(key)
                functions.append((key, function.data, function.name))
            items.append((call.id, key, call.data, "" if key else function.name))
        self._wiring.send(worker, encode("hand", (seat, forget, functions, items)))

    def recall(self, seat: int) -> None:
        """Let nothing more start on a seat, and ask what has started."""
        worker = self._workers[seat]
        worker.page.close(seat)
        self._recalls[seat] = time.monotonic() + _RECALL_PATIENCE
        self._wiring.send(worker, encode("recall", (seat,)), worker.line)

    def close(self, seat: int) -> None:
        """Free the worker of a seat."""
        worker = self._workers.pop(seat, None)
        if worker is not None:
            # Whatever is still on its way there must not start.
            worker.page.close(seat)
            self._free(worker)

    def promote(self, seat: int, call_id: int) -> None:
        """Let the call that runs on a seat be one like others."""
        worker = self._workers.pop(seat)
        worker.seat, worker.call, worker.fresh = 0, call_id, False

    # For the pool

    def seat(self, seat: int, worker: Worker) -> None:
        """Take a worker for a seat."""
        worker.seat = seat
        self._workers[seat] = worker
        self._listener.seated(seat, worker.process_id)

    def finished(self, worker: Worker, call_id: int, outcome: bytes | Outcome) -> None:
        """Report the end of a plain call."""
        self._listener.finished(worker.seat, call_id, outcome)

    def kept(self, seat: int, running: int) -> None:
        """Report a worker's answer to a recall, or that it has closed its seat by itself."""
        self._recalls.pop(seat, None)
        self._listener.kept(seat, running)

    def died(self, worker: Worker, death: Death) -> None:
        """Report the death of a worker that has a seat."""
        self._workers.pop(worker.seat, None)
        self._recalls.pop(worker.seat, None)
        self._listener.vacated(worker.seat, worker.page.started, death)

    def due(self) -> float | None:
        """Give the monotonic time at which a recall should have been answered, None if there is none."""
        return min(self._recalls.values(), default=None)

    def end_waits(self, now: float) -> None:
        """Find out what runs on seats whose workers have not answered a recall."""
        for seat in [seat for seat, deadline in self._recalls.items() if deadline <= now]:
            worker = self._workers.get(seat)
            if worker is not None and worker.page.is_undecided:
                self._recalls[seat] = now + _RECALL_PATIENCE
                continue
            del self._recalls[seat]
            if worker is not None:
                # In this order: what has started last did so after all before it were reported.
                running = worker.page.started
                with contextlib.suppress(OSError):
                    self._wiring.take_ready(worker)
                self._listener.kept(seat, running)

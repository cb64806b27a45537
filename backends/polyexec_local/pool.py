"""The worker processes of the local engine, and what travels to and from them.

Owner: the core's thread, in which ``poll`` runs; all of the state is its own. Other threads reach it by ``_post``: a
queue, and an event descriptor that wakes the selector. ``_waking`` keeps that descriptor open while it is written to;
it can be taken again by the thread that has it, because whatever runs in between may have to wake the pool. Nothing
is shared between workers: each has socket pairs of its own, so that the death of one tears nothing of another. Whether
a worker has ended the template says, never its sockets: a task may close those, and they close before it has ended.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import selectors
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import attrs

from polyexec import envelope, outcome, stacks
from polyexec.errors import BackendBroken, PolyexecError
from polyexec.spi import Death, Host, Message, Outcome, Stored, Verdict, WorkerState
from polyexec.stacks import ProcessStacks
from polyexec_local.channel import Done, Encoded, Frame, encode
from polyexec_local.lending import Kept, Lender, Parcel, lost
from polyexec_local.limits import Limits
from polyexec_local.member import Worker
from polyexec_local.memory import Layout
from polyexec_local.seating import Seating
from polyexec_local.segments import Segment
from polyexec_local.store import Store
from polyexec_local.template import Event, Exited, Refused, Template
from polyexec_local.wiring import Wiring

_EXIT_GRACE = 5.0
"""Seconds that workers get to end by themselves when the pool stops."""

_FREE_DEATHS = 3
"""How many workers in a row may die while they start, killed from outside perhaps, before a call is refused for it."""

_IDLE_DEATHS = 20
"""How many workers in a row may die without having had a call before they are started for calls alone."""

_RETRY_SECONDS = 0.5
"""Between attempts to start a worker while the system allows none more."""

_PATIENCE = (2.0, 20.0)
"""Seconds that a call waits for that when there is no other worker, and when there is one which may become free."""

_END_GRACE = 1.0
"""Seconds that a worker gets to end when it cannot be spoken to any more."""

_NEVER = float("inf")

_logger = logging.getLogger("polyexec")


@attrs.frozen(eq=False)
class _Waiting:
    """A call, or a seat, that waits for a worker, since a moment of the monotonic clock."""

    call_id: int
    parcel: Parcel | None
    since: float


class Pool:
    """Runs calls in processes; as many as there are calls, since the core limits those.

    Args:
        host: whom to report to.
        size: number of workers to keep when there is nothing to do.
        start_timeout: seconds that a worker may take to start.
        template: starts them; the pool owns it.
        store: where large values are; closed by whoever made it, when the pool has stopped.
    """

    def __init__(self, host: Host, size: int, start_timeout: float, template: Template, store: Store) -> None:
        self._host = host
        self._size = size
        self._start_timeout = start_timeout
        self._template = template
        self._tokens = itertools.count()
        self._hostname = socket.gethostname()
        self._posted: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._waking = threading.RLock()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake, selectors.EVENT_READ, None)
        self._selector.register(template, selectors.EVENT_READ, template)
        self._workers: list[Worker] = []
        self._idle: list[Worker] = []
        self._waiting: deque[_Waiting] = deque()
        self._refused = False
        self._failed_starts = 0
        self._idle_deaths = 0
        self._has_started = False
        self._is_short = False
        self._next_try = -_NEVER
        self._stopping = False
        self._stopped = threading.Event()
        self._limits = Limits()
        self._wiring = Wiring(self._selector, self._take)
        self.seating = Seating(self._wiring, lambda seat: self.submit(seat, None), self._free)
        self.lender = Lender(store, self._post)

    # For any thread

    def wake(self) -> None:
        """End a wait of ``poll``."""
        with self._waking:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def stop(self, *, kill: bool) -> None:
        """End all workers. Blocks; the core's thread must still run."""
        self._post(self._stop, kill)
        self._stopped.wait()

    def inspect(self, node: str, timeout: float) -> list[WorkerState]:
        """Look at the workers, and ask them for their stacks; see ``Backend.inspect``."""
        seen = [(worker.pid or worker.process_id or None, worker) for worker in tuple(self._workers)]
        asked = stacks.ask([pid for pid, _ in seen if pid is not None], timeout)
        return [_state_of(worker, node, pid, asked.get(pid) if pid else None) for pid, worker in seen]

    def _post(self, function: Callable[..., None], *args: Any) -> None:
        self._posted.append((function, args))
        self.wake()

    # In the core's thread

    def start(self) -> None:
        """Start the usual number of workers; before the core's thread runs."""
        self._fill()

    def poll(self, timeout: float | None) -> None:
        """Wait until something has come from workers or other threads, and deal with it."""
        due = self.lender.tidy()
        for key, events in self._selector.select(self._pause(timeout, due)):
            self._guarded(self._serve, key.data, events, key.fd)
        self._look_at_clock()
        if self._stopping and not self._workers:
            self._stopped.set()

    def close_poller(self) -> None:
        """End all that is left, and give the last descriptors back; nobody calls ``poll`` or ``wake`` any more."""
        self._selector.close()
        self._template.close()
        with self._waking:
            descriptor, self._wake = self._wake, -1
            os.close(descriptor)

    def _guarded(self, function: Callable[..., None], *args: Any) -> None:
        try:
            function(*args)
        except Exception as error:
            # Whatever it is, the thread lives on, so that every worker is buried and nobody waits for ever.
            broken = BackendBroken(f"internal error of the worker pool: {error!r}")
            broken.__cause__ = error
            self._host.broken(broken)

    def _serve(self, worker: Worker | Template | None, events: int, descriptor: int) -> None:
        if worker is None:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake)
            while self._posted:
                function, args = self._posted.popleft()
                self._guarded(function, *args)
        elif isinstance(worker, Template):
            for event in worker.receive():
                self._guarded(self._take_event, event)
        elif not worker.buried:
            self._wiring.serve(worker, events, descriptor)

    def _take_event(self, event: Event) -> None:
        worker = next((worker for worker in self._workers if worker.token == event.token), None)
        if worker is None:
            return
        if isinstance(event, Refused):
            if not event.accident:
                worker.cause = worker.cause or event.reason
                worker.refused = True
            self._bury(worker, None, event.reason)
            return
        worker.pid = event.pid
        self._limits.begin(worker)
        if isinstance(event, Exited):
            self._bury(worker, event.code, _ending(event.code))

    def _take(self, worker: Worker, frame: Frame | Done) -> None:
        if isinstance(frame, Frame):
            self._take_frame(worker, frame)
        elif worker.call == frame.call_id:
            self._end_call(worker, frame.call_id, Outcome.of(Stored(frame.data)))
        else:
            self.seating.finished(worker, frame.call_id, frame.data)

    def _take_frame(self, worker: Worker, frame: Frame) -> None:
        if frame.kind == "finished":
            self._end_call(worker, frame.fields[0], self._outcome(worker, frame))
        elif frame.kind == "failed":
            self._end_call(worker, frame.fields[0], envelope.exhausted(frame.fields[1]))
        elif frame.kind == "returned":
            self.lender.give_back(worker.account, frame.fields[0])
        elif frame.kind == "reserve":
            self._reserve(worker, *frame.fields)
        elif frame.kind == "request":
            self._pass_on(worker, frame)
        elif frame.kind == "told":
            self._host.told(frame.fields[0], _stored_in(frame))
        elif frame.kind == "kept":
            self.seating.kept(*frame.fields)
        elif frame.kind == "stopped":
            self._host.stopped(frame.fields[0], Verdict(frame.fields[1]))
        elif frame.kind == "ready":
            self._became_ready(worker, frame)

    def _outcome(self, worker: Worker, frame: Frame) -> Outcome:
        if frame.values:
            return Outcome.of(_stored_in(frame))
        _, number, head = frame.fields
        kept = self.lender.adopt(worker.account, number)
        return Outcome.of(outcome.encode_error(lost())) if kept is None else Outcome(head, None, kept)

    def _reserve(self, worker: Worker, number: int, data: int, buffers: tuple[int, ...]) -> None:
        """Give a worker room for a value: of a request, or of the outcome that its main thread has, which is 0."""
        channel = worker.line if number else worker.channel
        self.lender.reserve(
            worker.account,
            Layout(data, buffers),
            number,
            lambda segments, room: self._wiring.send_lent(worker, segments, room, channel),
            lambda error: self._wiring.send(worker, _refusal(number, error), channel),
        )

    def _pass_on(self, worker: Worker, frame: Frame) -> None:
        """Pass a request on, together with the value that the worker has written for it, if there is a loan."""
        number, call_id, loan = frame.fields
        message = _stored_in(frame)
        if loan:
            kept = self.lender.adopt(worker.account, loan)
            if kept is None:
                self._wiring.send(worker, _refusal(number, lost()), worker.line)
                return
            message = Message(message.data, (), kept)
        self._host.request((worker, number), call_id, message)

    def _end_call(self, worker: Worker, call_id: int, outcome: Outcome) -> None:
        if worker.call == call_id:
            self._free(worker)
            self._host.finished(call_id, outcome)
        elif worker.seat:
            self.seating.finished(worker, call_id, outcome)

    def _became_ready(self, worker: Worker, frame: Frame) -> None:
        if frame.values:
            self._retire(worker)
            self._refuse(Outcome.of(_stored_in(frame)))
            return
        worker.ready, worker.deadline, worker.process_id = True, _NEVER, frame.fields[0]
        self._refused = False
        self._failed_starts = 0
        self._has_started = True
        self._is_short, self._next_try = False, -_NEVER
        self._free(worker)

    def _refuse(self, outcome: Outcome) -> None:
        """Report that a worker did not start to the first call that waits for one."""
        self._refused = True
        if self._waiting:
            self._host.finished(self._waiting.popleft().call_id, outcome)
        self._fill()

    def _free(self, worker: Worker) -> None:
        self._limits.end(worker)
        worker.call, worker.parcel, worker.seat = None, None, 0
        if worker.used:
            self._idle_deaths = 0
        if worker.gone or worker.leaving or worker.doomed:
            return
        if self._waiting:
            first = self._waiting.popleft()
            self._give(worker, first.call_id, first.parcel)
            return
        self._idle.append(worker)
        if len(self._idle) > self._size:
            self._retire(self._idle.pop(0))

    # What the core wants

    def submit(self, call_id: int, parcel: Parcel | None) -> None:
        """Run a call, or find a worker for a seat if there is nothing to send."""
        if self._stopping:
            return
        while self._idle:
            worker = self._idle.pop()
            if worker.lives():
                self._give(worker, call_id, parcel)
                return
        self._waiting.append(_Waiting(call_id, parcel, time.monotonic()))
        self._fill()

    def _give(self, worker: Worker, call_id: int, parcel: Parcel | None) -> None:
        worker.used = True
        if parcel is None:
            self.seating.seat(call_id, worker)
        else:
            worker.call, worker.parcel, worker.unsent = call_id, parcel, True
            self._limits.begin(worker)
            self.lender.deliver(
                worker.account,
                parcel,
                lambda segments, encoded: self._send_call(worker, segments, encoded),
                lambda error: self._fail_call(worker, call_id, error),
            )

    def _send_call(self, worker: Worker, segments: Sequence[Segment], encoded: Encoded) -> None:
        if not worker.cause:
            if worker.call is not None:
                self._host.placed(worker.call, worker.process_id)
            self._wiring.send_lent(worker, segments, encoded, worker.channel)
            worker.fresh, worker.unsent = True, False

    def _fail_call(self, worker: Worker, call_id: int, error: PolyexecError) -> None:
        """Learn that what a call needs cannot be brought."""
        if worker.call == call_id and not worker.gone:
            worker.unsent = False
            self._end_call(worker, call_id, Outcome.of(outcome.encode_error(error)))

    def reply(self, worker: Worker, number: int, message: bytes, values: Sequence[Stored | Kept]) -> None:
        """Answer a request of what runs in a worker, if it lives."""
        self.lender.deliver(
            worker.account,
            Parcel("reply", (number, message), values),
            lambda segments, encoded: self._wiring.send_lent(worker, segments, encoded, worker.line),
            lambda error: self._wiring.send(worker, _refusal(number, error), worker.line),
        )

    def cancel(self, call_id: int, *, force: bool) -> None:
        """Stop a call."""
        waiting = next((item for item in self._waiting if item.call_id == call_id), None)
        if waiting is not None:
            self._waiting.remove(waiting)
            self._host.stopped(call_id, Verdict.REVOKED)
            return
        worker = next((worker for worker in self._workers if worker.call == call_id), None)
        if worker is None:
            self._host.stopped(call_id, Verdict.LATE)
        elif force:
            worker.kill()
            self._host.stopped(call_id, Verdict.DELIVERED)
            # The next one starts while this one dies.
            self._fill()
        else:
            self._wiring.send(worker, encode("interrupt", (call_id,)), worker.line)

    def _fill(self) -> None:
        """Start the workers that are missing: one for each call that waits, and the usual number at least.

        After a failed start, and if workers die as soon as they are there, only those are started that a call waits
        for, so that failing is bounded by the core.
        """
        if self._stopping or time.monotonic() < self._next_try:
            return
        self._next_try = -_NEVER
        starting = sum(not worker.ready and not worker.leaving for worker in self._workers)
        busy = sum(worker.is_busy and not worker.doomed for worker in self._workers)
        calm = not self._refused and self._idle_deaths < _IDLE_DEATHS
        usual = 0 if not calm else self._size - busy - len(self._idle) - starting
        for _ in range(max(usual, len(self._waiting) - starting)):
            if not self._start_worker():
                return

    def _start_worker(self) -> bool:
        """Start a worker; say whether to go on with others."""
        try:
            worker = Worker(self._template, next(self._tokens), self._start_timeout)
        except OSError as error:
            return self._cannot_start(f"cannot start a worker process: {error}")
        self._workers.append(worker)
        self._wiring.add(worker)
        self._wiring.send(worker, encode("setup", (self._host.setup,)))
        return True

    def _cannot_start(self, reason: str) -> bool:
        """Refuse the call that has waited longest, or go on with the workers that there are, and try again soon.

        What waits may be what they all wait for, so that this has an end.

        Returns:
            Whether a call was refused.
        """
        now = time.monotonic()
        left = sum(not (worker.leaving or worker.doomed or worker.is_home) for worker in self._workers)
        if not self._is_short:
            self._is_short = True
            _logger.warning("%s; going on with %d", reason, left)
        if not self._waiting or now - self._waiting[0].since < _PATIENCE[left > 0]:
            self._next_try = now + _RETRY_SECONDS
            return False
        self._refused = True
        if self._waiting:
            self._post(self._host.finished, self._waiting.popleft().call_id, envelope.refusal(reason))
        return True

    def _retire(self, worker: Worker) -> None:
        worker.leaving = True
        self._wiring.send(worker, encode("exit"))

    def _bury(self, worker: Worker, code: int | None, ending: str) -> None:
        worker.gone = True
        self._wiring.drain(worker)
        begun = not worker.unsent and (not worker.fresh or not (worker.deaf or worker.channel.pending))
        self._remove(worker)
        self._report_death(worker, code, begun)
        self._idle_deaths += worker.ready and not (worker.used or worker.leaving or worker.killed)
        if worker.refused and self._has_started:
            if self._cannot_start(worker.cause):
                self._fill()
        elif not worker.ready and not worker.leaving:
            self._failed_starts += 1
            if worker.cause or self._failed_starts > _FREE_DEATHS:
                self._refuse(envelope.refusal(f"a worker process did not start: {worker.cause or ending}"))
            else:
                self._fill()
        elif not self._stopping:
            self._fill()

    def _remove(self, worker: Worker) -> None:
        worker.buried = True
        self._workers.remove(worker)
        if worker in self._idle:
            self._idle.remove(worker)
        self._wiring.remove(worker)
        worker.close()
        self._limits.end(worker)
        self.lender.forget(worker.account)

    def _report_death(self, worker: Worker, code: int | None, begun: bool) -> None:
        signal_number, exit_code = (-code, None) if code is not None and code < 0 else (None, code)
        cause = worker.cause or ("" if worker.killed else self._limits.cause_of(signal_number))
        stack = worker.page.stack() if code is not None and code < 0 and code != -signal.SIGKILL else ""
        death = Death(self._hostname, worker.pid, signal_number, exit_code, cause, begun, stack)
        if worker.seat:
            self.seating.died(worker, attrs.evolve(death, started=True))
        elif worker.call is not None:
            self._host.lost(worker.call, death)

    def _pause(self, timeout: float | None, due: float | None) -> float | None:
        times = [worker.deadline for worker in self._workers]
        times += [moment for moment in (due, self._limits.due(), self.seating.due()) if moment is not None]
        if self._next_try > -_NEVER:
            times.append(self._next_try)
        left = max(0.0, min(times, default=_NEVER) - time.monotonic())
        return timeout if left == _NEVER else left if timeout is None else min(left, timeout)

    def _look_at_clock(self) -> None:
        now = time.monotonic()
        for worker in [worker for worker in self._workers if worker.deadline <= now]:
            worker.deadline = _NEVER
            self._end(worker)
        for worker, cause in self._limits.outgrown():
            worker.give_up(cause)
        self.seating.end_waits(now)
        if -_NEVER < self._next_try <= now:
            self._fill()

    def _end(self, worker: Worker) -> None:
        """End a worker whose time is over."""
        if self._stopping and worker.doomed:
            # It cannot be killed, being stuck in the kernel perhaps. Its keeper goes on with that.
            self._remove(worker)
            return
        late = "" if worker.ready else f"it was not ready within {self._start_timeout:g} s"
        worker.give_up(late)
        if late and worker.pid is None:
            self._template.give_up(late)
        if self._stopping:
            worker.deadline = time.monotonic() + _END_GRACE

    def _stop(self, kill: bool) -> None:
        self._stopping = True
        self._waiting.clear()
        for worker in tuple(self._workers):
            if not worker.ready:
                # It has no call, and the template's end is its own; it may not be there yet.
                self._remove(worker)
            elif kill:
                worker.leaving = True
                worker.kill()
            else:
                self._retire(worker)
            worker.deadline = time.monotonic() + _EXIT_GRACE


def _state_of(worker: Worker, node: str, pid: int | None, found: ProcessStacks | None) -> WorkerState:
    calls = tuple(call for call in (worker.call, worker.seat) if call)
    doing = "it is being killed" if worker.doomed else "it is ending" if worker.leaving else ""
    if not worker.ready:
        doing = doing or "it is starting"
    words = [word for word in (doing, found.status if found is not None else "") if word]
    return WorkerState(node, pid, calls, None, "; ".join(words), () if found is None else found.threads)


def _ending(code: int | None) -> str:
    if code is None:
        return "nobody knows how it ended, because the process that watched it was killed"
    return f"it ended by signal {-code}" if code < 0 else f"it ended with exit code {code}"


def _stored_in(frame: Frame) -> Stored:
    """Give the only value of a frame that comes from a worker, which lends nothing."""
    (value,) = frame.values
    assert isinstance(value, Stored)
    return value


def _refusal(number: int, error: PolyexecError) -> Encoded:
    return encode("refused", (number, outcome.encode_error(error).data))

"""Carrying out the short way of plain calls. A part of the runtime.

Everything runs in the loop thread but for ``submit``, which any thread may call: it adds to the pending calls, and
wakes the loop if that has room for more. Entries are shared as ``Entry`` says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any

import attrs

from polyexec import payload
from polyexec.express import AskForSeat, Express, ExpressAction, Hand, Leave, Recall
from polyexec.ledger import need_of
from polyexec.options import Resources, TaskOptions
from polyexec.plain import FunctionTable, PlainCall, dump_arguments, dump_call, joined
from polyexec.prepare import function_name, roots
from polyexec.records import Task
from polyexec.session import Entry
from polyexec.spi import Death, Outcome, Seats
from polyexec.stored import VALUE_MARK, VALUE_SECONDS, Head, Stored, Tag
from polyexec.tasks import TaskData
from polyexec.wire import TaskSpec

if TYPE_CHECKING:
    from polyexec.plain_watch import PlainWatcher
    from polyexec.recording import Recorder
    from polyexec.runtime import Runtime

_LOOK_AROUND = 1e-3
"""Seconds after which a thread that submits looks for results; by then there are many calls to hand over."""

_REQUEST = Resources(1)
_SPEC = TaskSpec("", "", _REQUEST, (), (), 1, 0, 0, None, False, None, None, {}, False)


@attrs.frozen(eq=False)
class _Chase:
    """Somebody wants a call stopped that has been handed over; whether it has started is being found out."""

    call: PlainCall
    force: bool
    recursive: bool
    running: bool
    token: object


class PlainCalls:
    """Takes plain calls, and carries out what ``Express`` decides.

    Args:
        runtime: what it is a part of.
        seats: the backend's.
    """

    def __init__(self, runtime: Runtime, seats: Seats) -> None:
        self._runtime = runtime
        self._seats = seats
        self._functions = FunctionTable()
        self._chases: list[_Chase] = []
        self._next_look = 0.0
        self.watcher: PlainWatcher | None = None
        self.express = Express(monotonic, self._make_ordinary)

    # For any thread

    def submit(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], options: TaskOptions
    ) -> Entry | None:
        """Take a call, if it is plain.

        Args:
            function: what to call.
            args: its arguments.
            kwargs: its keyword arguments.
            options: of the call; they are plain.

        Returns:
            The entry of its value, or None if it must go the usual way.

        Raises:
            SerializationError: something cannot be serialised (S4).
        """
        try:
            known = self._functions.find(function, options.name)
            data = dump_call(function, args, kwargs) if known is None else dump_arguments(args, kwargs)
        except Exception as error:
            name = options.name or function_name(function)
            raise payload.serialization_error("argument", name, roots(function, args, kwargs), error) from error
        if data is None:
            return None
        if known is None:
            known = self._functions.unnamed(options.name or function_name(function))
        entry = Entry(self._runtime.new_id(), known.name)
        entry.count = 1
        entry.loose = True
        now = monotonic()
        entry.plain = PlainCall(entry, known, data, 0.0 if self.watcher is None else now)
        express = self.express
        express.pending.append(entry.plain)
        if express.hungry:
            self._runtime.loop.visit(poll=False)
        elif now > self._next_look:
            # So that a thread which submits a lot need not take turns with the loop's own.
            self._next_look = now + _LOOK_AROUND
            self._runtime.loop.visit(poll=True)
        return entry

    # In the loop

    def advance(self) -> None:
        """Decide, and carry it out."""
        express, runtime = self.express, self._runtime
        if runtime.failure is not None:
            self.fail()
            return
        if self._chases:
            self._end_chases()
        express.decide(runtime.scheduler.barrier())
        while express.actions or (express.hungry and express.pending):
            actions, express.actions = express.actions, []
            for action in actions:
                self._carry_out(action)
            if runtime.schedule() or (express.hungry and express.pending):
                express.decide(runtime.scheduler.barrier())

    def _carry_out(self, action: ExpressAction) -> None:
        if type(action) is Hand:
            self._seats.hand(action.seat, action.calls)
        elif type(action) is AskForSeat:
            self._runtime.scheduler.ask_for_seat(action.place)
        elif type(action) is Recall:
            self._seats.recall(action.seat)
        elif type(action) is Leave:
            self._leave(action.seat)
        else:
            self._runtime.scheduler.withdraw_seat()

    def _leave(self, seat: int) -> None:
        self._seats.close(seat)
        self._runtime.scheduler.leave_seat(seat)

    def free_idle(self) -> None:
        """Give back the cpus that nobody uses."""
        self.express.give_up_idle()
        for action in self.express.actions:
            self._carry_out(action)
        self.express.actions.clear()

    def pause(self) -> float | None:
        """Give the seconds until something is due here, None if nothing is."""
        if self.express.pending and self.express.hungry:
            return 0.0
        return self.express.pause()

    def record(self, recorder: Recorder) -> None:
        """Have a record made of all calls that come from now on."""
        from polyexec.plain_watch import PlainWatcher

        self.watcher = PlainWatcher(recorder, self.express.seats)

    @property
    def is_empty(self) -> bool:
        """Whether there is no call that has not ended."""
        express = self.express
        return not express.pending and all(not seat.calls for seat in express.seats.values())

    @property
    def has_begun(self) -> bool:
        """Whether calls have been handed over that have not ended."""
        return any(seat.calls for seat in self.express.seats.values())

    def granted(self, seat: int, node: str) -> None:
        """Take a seat from the scheduler."""
        self.express.granted(seat, node)
        self._seats.open(seat)

    def seated(self, seat: int, pid: int = 0) -> None:
        """Learn that a seat has a worker."""
        self.express.seated(seat, pid)

    def finished(self, seat: int, call_id: int, outcome: bytes | Outcome) -> None:
        """Take the outcome of a call."""
        if isinstance(outcome, bytes):
            if outcome.startswith(VALUE_MARK):
                self._take_value(seat, call_id, outcome)
                return
            outcome = Outcome.of(Stored(outcome))
        head, _ = Head.decode(outcome.head)
        call = self.express.finished(seat, call_id, head.duration)
        if call is not None:
            self._settle(call.entry, head, outcome.stored, outcome.handle)
            if self.watcher is not None:
                self.watcher.ended(seat, call, head, outcome)

    def _take_value(self, seat: int, call_id: int, data: bytes) -> None:
        """Take the outcome of a call that is a value and nothing else; see ``VALUE_MARK``."""
        seconds, pid = VALUE_SECONDS.unpack_from(data)
        call = self.express.finished(seat, call_id, seconds)
        if call is None:
            return
        if call.submitted and self.watcher is not None:
            self.watcher.took_value(seat, call, data, seconds, pid)
        entry = call.entry
        if not entry.loose or entry.watched:
            self._settle(entry, Head(), Stored(data), None)
            return
        entry.plain = None
        entry.attempts = 1
        entry.stored = Stored(data)
        entry.tag = Tag.VALUE
        objects = self._runtime.objects
        objects.settled_count += 1
        objects.complete(entry)
        entry.notify()
        if entry.callbacks:
            self._runtime.call_back([entry])

    def _settle(self, entry: Entry, head: Head, stored: Stored | None, handle: object | None) -> None:
        entry.plain = None
        entry.attempts = 1
        self._runtime.expose(entry)
        self._runtime.objects.settle([entry], head, stored, handle)
        self._runtime.call_back([entry])
        if entry.watched:
            self._runtime.scheduler.underway.discard(entry.id)
            self._runtime.scheduler.arrive(entry.id, head.tag)

    def kept(self, seat: int, running: int) -> None:
        """Take back all calls of a seat but one."""
        self.express.kept(seat, running)
        self._end_chases()

    def vacated(self, seat: int, running: int | None, death: Death) -> None:
        """Learn that the worker of a seat has died."""
        victim = None if running is None else self.find(running)
        if victim is not None and victim.seat == seat:
            self._promote(victim)
            self._runtime.scheduler.lost(victim.id, death)
        elif self.express.vacated(seat):
            self._runtime.scheduler.leave_seat(seat)
        self._end_chases()

    # Calls that become ordinary tasks

    def find(self, call_id: int) -> PlainCall | None:
        """Give the call that runs on a seat, None if there is none of this id."""
        seat = self.express.seat_of(call_id)
        return None if seat is None else seat.calls[call_id]

    def promote(self, call: PlainCall) -> None:
        """Turn a call that runs into an ordinary task; its seat has been recalled."""
        seat = call.seat
        self._promote(call)
        self._seats.promote(seat, call.id)

    def _promote(self, call: PlainCall) -> None:
        seat = call.seat
        if self.watcher is not None:
            self.watcher.promoted(call)
        self.express.promoted(call)
        task, data = self._as_task(call)
        self._runtime.scheduler.promote(seat, task, call.id)
        call.entry.running, call.entry.attempts = True, 1
        self._runtime.adopt(call.id, data)

    def _make_ordinary(self, call: PlainCall) -> None:
        """Turn a call that waits into an ordinary task."""
        call.dropped = True
        self._runtime.scheduler.underway.discard(call.id)
        task, data = self._as_task(call)
        self._runtime.take_task(task, data, call.submitted or None)

    def _as_task(self, call: PlainCall) -> tuple[Task, TaskData]:
        entry = call.entry
        entry.plain = None
        self._runtime.expose(entry)
        spec = attrs.evolve(_SPEC, name=call.function.name, function=call.function.name)
        task = Task(entry.id, spec.name, need_of(_REQUEST), function=spec.function)
        return task, TaskData(spec, Stored(joined(call)), None, [entry])

    def watch(self, entry: Entry) -> None:
        """Let the scheduler learn of a value that it has not been told of yet."""
        call = entry.plain
        if call is None or entry.watched:
            return
        entry.watched = True
        if self.express.drop(call):
            self._make_ordinary(call)
        else:
            self._runtime.scheduler.underway.add(entry.id)

    # Stopping

    def cancel(self, call: PlainCall, *, force: bool, recursive: bool, token: object, running: bool = True) -> None:
        """Stop a call; whoever asks is answered when it is known whether that worked."""
        self._chases.append(_Chase(call, force, recursive, running, token))
        self._end_chases()

    def cancel_all(self, force: bool) -> None:
        """Stop all calls."""
        calls = [*self.express.pending]
        for seat in self.express.seats.values():
            calls += seat.calls.values()
        self._chases += [_Chase(call, force, False, True, None) for call in calls if not call.dropped]
        self._end_chases()

    def _end_chases(self) -> None:
        self._chases = [chase for chase in self._chases if not self._ends(chase)]

    def _ends(self, chase: _Chase) -> bool:
        """Do what can be done about a chase now; False if nothing is known yet."""
        call, scheduler = chase.call, self._runtime.scheduler
        if call.entry.tag is not None:
            self._runtime.answer(chase.token, False)
        elif self._is_ordinary(call):
            scheduler.cancel(
                call.id, force=chase.force, recursive=chase.recursive, running=chase.running, token=chase.token
            )
        else:
            # It may have been handed to another seat since.
            self.express.recall(call.seat)
            return False
        return True

    def _is_ordinary(self, call: PlainCall) -> bool:
        """Make a call an ordinary task if it is none yet; False if it is not known yet whether it has started."""
        if call.entry.plain is None:
            return True
        if self.express.drop(call):
            self._make_ordinary(call)
        elif self.express.is_closed(call.seat):
            self.promote(call)
        else:
            return False
        return True

    def fail(self) -> None:
        """Settle all calls, because the backend is lost or broken."""
        assert self._runtime.failure is not None
        for call in self.express.clear():
            call.entry.plain = None
            self._runtime.expose(call.entry)
            self._runtime.settle_all([call.entry], self._runtime.failure)
            self._runtime.scheduler.underway.discard(call.id)
            if self.watcher is not None:
                self.watcher.given_up(call, self._runtime.failure)
        self._end_chases()
        self.express.hungry = True

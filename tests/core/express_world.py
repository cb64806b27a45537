"""A random world around plain calls: the runtime itself on an imaginary pool, without threads, on a clock of its own.

As the loop does, the world runs the runtime after what the pool brings and what is posted, when a pause is over, and
when somebody who submits finds it hungry; never else. So what is forgotten shows as work that nobody does.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from polyexec import outcome
from polyexec.actions import Actions
from polyexec.express import OVERDUE, Express, SeatState
from polyexec.ledger import UNIT, Ledger, Need, need_of
from polyexec.options import Resources
from polyexec.plain import PlainCall, PlainFunction
from polyexec.plain_calls import PlainCalls
from polyexec.records import Cancelled, DependencyFailed, Ending, Failed, State, Stop
from polyexec.runtime import Runtime
from polyexec.scheduler import Scheduler
from polyexec.session import Entry
from polyexec.stored import Head, Stored, Tag
from polyexec.tasks import TaskData
from polyexec.wire import TaskSpec

from . import oracle
from .express_pool import ERROR, Body, ImaginaryBackend, ImaginaryPool, Story

FAILURE = outcome.encode_error(RuntimeError("lost"))
DURATIONS = (5e-5, 5e-5, 4e-4, 3e-3, 0.05, 0.4)
_CALL = Stored(b"")
_HEAD = Head()
_ENDINGS = {tag: Stored(Head(tag).encode() + b"core") for tag in (Tag.ERROR, Tag.CANCELLED)}
_SLACK = 1e-6


class _QuickActions(Actions):
    """Leaves out what takes most of the time and is tested elsewhere: texts of errors, and heads of calls."""

    def _attempt(self, *_: Any) -> Any:
        return _HEAD

    def _stored_ending(self, data: TaskData, ending: Ending) -> Stored:
        if isinstance(ending, Failed):
            return ending.error
        source = self._runtime.objects.entries[ending.value] if isinstance(ending, DependencyFailed) else None
        cancelled = isinstance(ending, Cancelled) or (source is not None and source.tag is Tag.CANCELLED)
        return _ENDINGS[Tag.CANCELLED if cancelled else Tag.ERROR]

    def answer(self, token: object, value: bool) -> None:
        if isinstance(token, Story):
            token.unanswered -= 1
            token.answers.append(value)
        else:
            super().answer(token, value)


class _Pending(deque[PlainCall]):
    """Calls that wait, to which another thread may add one at any moment."""

    meanwhile: Callable[[], None]

    def __bool__(self) -> bool:
        self.meanwhile()
        return len(self) > 0


class _Nobody:
    """Stands in for the thread of callbacks."""

    def post(self, job: Callable[[], None]) -> None:
        return


class ExpressWorld:
    """One schedule.

    Args:
        seed: of everything random.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 1.0
        self.cpus = self.random.randint(1, 3)
        self.functions = [(PlainFunction(key, b"", "f"), seconds) for key, seconds in enumerate(DURATIONS, 1)]
        self.stories: dict[int, Story] = {}
        self.posted: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self.pool = ImaginaryPool(self)
        self.runtime = self._make_runtime()
        self.dirty = False
        self.due = float("inf")
        self.overdrawn = False
        self.closing = False
        self.kills = self.random.choice([0, 0, 1, 3])
        self.most = self.random.choice([5, 10, 20, 60])
        self.meddling = self.random.choice([0.0, 0.02])
        self._inside = False
        self._laden: dict[int, tuple[int, float]] = {}
        self._just_settled: list[Entry] = []

    def _make_runtime(self) -> Runtime:
        runtime = Runtime(ImaginaryBackend(self.pool, self.cpus), "world")
        self.pool.host = runtime
        self.scheduler = runtime.scheduler = Scheduler(lambda: self.now, self.random.random)
        runtime.post = self.post  # type: ignore[method-assign]
        runtime.callbacks = _Nobody()  # type: ignore[assignment]
        runtime._actions = _QuickActions(runtime)
        runtime.plain = PlainCalls(runtime, self.pool)
        self.pool.report_to(runtime.plain)
        self.express = runtime.plain.express = Express(lambda: self.now, runtime.plain._make_ordinary)
        self.express.pending = pending = _Pending()
        pending.meanwhile = self._meddle
        runtime._take_nodes()
        return runtime

    # What the loop does

    def post(self, function: Callable[..., None], *args: Any) -> None:
        """Let the runtime do something soon."""
        self.posted.append((function, args))
        self.dirty = True

    def advance(self) -> None:
        """Run the runtime until it is content, and check what must hold."""
        for _ in range(20):
            self.dirty = False
            for _ in range(len(self.posted)):
                function, args = self.posted.popleft()
                function(*args)
            self._inside = True
            self.runtime._advance()
            self._inside = False
            pause = self.runtime._pause()
            if not self.posted and pause != 0.0:
                break
        else:
            raise AssertionError("the runtime is never content")
        self.due = float("inf") if pause is None else self.now + pause
        self.check()

    def _meddle(self) -> None:
        if self._inside and self.meddling and self.random.random() < self.meddling:
            self._inside = False
            self.submit_plain()
            self._inside = True

    # What users do

    def submit_plain(self) -> None:
        """Submit a plain call, as ``PlainCalls.submit`` does."""
        function, seconds = self.random.choice(self.functions)
        entry = Entry(self.runtime.new_id(), function.name)
        entry.count, entry.loose = 1, True
        entry.plain = PlainCall(entry, function, b"")
        self._tell(entry, self.some_body(entry, need_of(Resources(1)), seconds))
        self.express.pending.append(entry.plain)
        self.dirty |= self.express.hungry

    def some_body(self, entry: Entry, need: Need, seconds: float) -> Story:
        """Invent what a body does."""
        chance = self.random.random()
        if chance < 0.1:
            seconds = self.random.choice(DURATIONS)
        asks = ["submit"] * (chance > 0.9) + ["wait"] * (chance > 0.95)
        return Story(entry, need, seconds, chance < 0.05, asks)

    def submit_task(self) -> None:
        """Submit an ordinary task, which may depend on others."""
        known = self.random.sample(sorted(self.stories), min(len(self.stories), self.random.choice([0, 0, 1, 2])))
        needs = [self.stories[value] for value in known if self.stories[value].parent is None]
        for story in needs:
            self.runtime.expose(story.entry)
            self.runtime.objects.note(story.entry.id, 1)
        cpus = self.random.choice([0, 1, 1, self.cpus])
        request = Resources(cpus, self.random.choice([0, 0, 0, 1]))
        entry = self.runtime.new_entries("task", 1)[0]
        story = self.some_body(entry, need_of(request), self.random.choice(DURATIONS))
        story.needs = needs
        self._tell(entry, story)
        priority = self.random.choice([0, 0, 0, 1, -1])
        spec = make_spec(request, tuple(story.entry.id for story in needs), priority)
        self.post(self.runtime.submit, TaskData(spec, _CALL, None, [entry]), None)

    def on_child(self, parent: Story, entry_id: int) -> None:
        """Learn that a body has submitted a task."""
        entry = self.runtime.objects.entries[entry_id]
        parent.children.append(entry_id)
        story = Story(entry, need_of(Resources(1)), self.random.choice(DURATIONS), parent=parent, asked=parent.asked)
        self._tell(entry, story)
        story.settled = int(entry.tag is not None)

    def _tell(self, entry: Entry, story: Story) -> None:
        self.stories[entry.id] = story
        entry.add_waiter(self.on_settled)

    def cancel(self, story: Story, *, force: bool, recursive: bool) -> None:
        """Cancel a call or a task."""
        story.asked, story.unanswered = True, story.unanswered + 1
        if recursive:
            for other in self.stories.values():
                other.asked |= other.parent is not None
        entry = story.entry
        cancel = self.runtime.cancel_entry
        self.post(lambda: cancel(entry, entry.task_id, force=force, recursive=recursive, token=story))

    def cancel_all(self, force: bool) -> None:
        """Cancel everything."""
        for story in self.stories.values():
            story.asked = True
        self.post(self.runtime.cancel_all, force)

    # What must hold

    def on_settled(self, entry: Entry) -> None:
        """Check an outcome."""
        story = self.stories[entry.id]
        story.settled += 1
        self._just_settled.append(entry)
        assert story.settled == 1, "a call is settled twice"
        if self.runtime.failure is not None:
            return
        assert self.body_of(story) is None, "C8: settled while its body runs"
        stored = entry.stored
        assert stored is not None
        if entry.tag is Tag.VALUE:
            assert stored.data == story.value, "a call has the value of another"
            assert story.started == 1
        elif entry.tag is Tag.CANCELLED:
            assert story.asked or any(other.entry.tag is Tag.CANCELLED for other in story.needs), "C8: nobody asked"
        elif stored.data == ERROR:
            assert story.fails
        else:
            failed = any(other.entry.tag is Tag.ERROR for other in story.needs)
            assert failed or story.killed, "F3: an error of the core for a body whose worker lives, or that never began"

    def body_of(self, story: Story) -> Body | None:
        """Give the body that runs."""
        for worker in self.pool.workers:
            if worker.body is not None and worker.body.story is story and not worker.dead:
                return worker.body
        return None

    def on_start(self, body: Body) -> None:
        """Check that a body may start."""
        story = body.story
        story.started += 1
        assert story.started == 1, "F5: a body starts twice"
        if self.runtime.failure is None:
            assert not story.settled, "a body starts whose value is settled"
            running = self.scheduler.running
            assert body.call in running or body.seat in running, "R1: a body starts without a lease"

    def on_hand(self, calls: Sequence[PlainCall]) -> None:
        """Check the order in which calls are handed over."""
        last = max(call.id for call in calls)
        assert not any(call.id < last for call in self.express.pending if not call.dropped), "R8: out of order"
        for call in calls:
            assert call.entry.tag is None
            assert call.entry.plain is call
        for task in self.scheduler.tasks.values():
            if task.state is State.READY and not task.is_seat and task.priority >= 0 and task.id < last:
                assert not lacks_cpus_alone(self.scheduler.ledger, task.need), f"R7: {task.id} is overtaken"

    def check(self) -> None:
        """Check what must hold whenever the runtime is content."""
        scheduler, express = self.scheduler, self.express
        for entry in self._just_settled:
            entry.add_waiter(self.on_settled)
        self._just_settled.clear()
        oracle.check_grants(scheduler)
        self.overdrawn = oracle.check_ledger(scheduler, overdrawn=self.overdrawn)
        leases = {call.id for call in scheduler.running.values() if call.task.is_seat}
        assert leases == express.seats.keys(), "leases and seats differ"
        assert express.asked == len(scheduler.seats_waiting)
        bodies = [worker.body for worker in self.pool.workers if worker.body is not None and not worker.dead]
        used = sum(body.story.need.get("cpus", 0) for body in bodies if not body.lent)
        assert self.overdrawn or self.runtime.failure is not None or used <= self.cpus * UNIT, "R1: too many bodies run"
        self._check_diligence()
        self._check_patience()

    def _check_diligence(self) -> None:
        express = self.express
        first = next((call for call in express.pending if not call.dropped), None)
        if first is None or first.id >= self.scheduler.barrier():
            return
        for seat in express.seats.values():
            assert seat.calls or seat.state is not SeatState.OPEN, "a seat is idle while calls wait"
        coming = express.asked + sum(seat.state is SeatState.OPENING for seat in express.seats.values())
        assert coming or len(express.seats) >= express.limit, "calls wait and nobody asks for a seat"

    def _check_patience(self) -> None:
        """R9: calls behind one that takes too long are taken back."""
        laden = self._laden
        self._laden = {}
        for seat in self.express.seats.values():
            if len(seat.calls) > 1 and seat.state is SeatState.OPEN:
                first = next(iter(seat.calls.values()))
                known, since = laden.get(seat.id, (0, 0.0))
                self._laden[seat.id] = first.id, since if known == first.id else self.now
                assert self.now - self._laden[seat.id][1] <= OVERDUE + 2 * first.cost + _SLACK, "R9: kept too long"

    def on_resume(self, call_id: int) -> None:
        """Note that an interrupted call goes on without waiting for room."""
        call = self.scheduler.running.get(call_id)
        self.overdrawn |= call is not None and call.stop is not Stop.NO


def make_spec(request: Resources, dependencies: tuple[int, ...] = (), priority: float = 0) -> TaskSpec:
    """Describe a task."""
    return TaskSpec("task", "task", request, dependencies, (), 1, priority, 0, None, False, None, None, {}, False)


def lacks_cpus_alone(ledger: Ledger, need: Need) -> bool:
    """Say, naively, whether a need is short of cpus or a slot, and of nothing else."""
    (state,) = ledger._nodes.values()
    short = [name for name, amount in need.items() if state.available[name] < amount]
    return bool(short) and all(name in ("cpus", "slot") for name in short)

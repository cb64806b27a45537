"""A random world around a scheduler with actors: callers, instances, and a backend that reports in odd orders."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import attrs

from polyexec.ledger import resident_need
from polyexec.options import Resources
from polyexec.records import (
    ActorGone,
    Answer,
    Cancelled,
    Dismiss,
    Drop,
    Ending,
    EndWait,
    Halt,
    Invoke,
    Lend,
    Resume,
    Settle,
    Start,
    State,
    Stop,
    Task,
    TimedOut,
    Wait,
    Wake,
)
from polyexec.scheduler import Scheduler
from polyexec.spi import Death, Node, Verdict
from polyexec.stored import Tag
from polyexec.waits import Waits

from . import actor_oracle

SPACING = 16
NODE = Node("node", "node", Resources(2, 0, 0, {"license": 1}), 4)


class CheckedWaits(Waits):
    """Checks each wait that is ended as a deadlock, when that is decided (N2)."""

    scheduler: Scheduler

    def end(self, wait: Wait, wake: Wake) -> None:
        if wake is Wake.DEADLOCK:
            assert not actor_oracle.can_be_answered(self.scheduler, wait), f"wait {wait.id} was no deadlock"
        super().end(wait, wake)


@attrs.define(eq=False)
class Story:
    """What the world knows of a task: a call of a method, or an actor."""

    task: Task
    begun: int = 0
    ending: Ending | None = None
    answers: list[bool] = attrs.field(factory=list)


@attrs.define(eq=False)
class Method:
    """A call that was handed to an instance."""

    call: int
    task: int
    begun: bool = False
    waits: dict[int, Wait] = attrs.field(factory=dict)
    fate: str = ""


@attrs.define(eq=False)
class Instance:
    """A call that makes an actor, and serves."""

    call: int
    task: int
    width: int
    serves: bool = False
    fate: str = ""
    methods: dict[int, Method] = attrs.field(factory=dict)

    def to_begin(self) -> list[Method]:
        """Give the calls that may begin now."""
        running = sum(method.begun for method in self.methods.values())
        return [method for method in self.methods.values() if not method.begun][: max(0, self.width - running)]


class ActorWorld:
    """One schedule.

    Args:
        seed: of everything random.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.scheduler = Scheduler(lambda: self.now, self.random.random)
        self.scheduler.waits = CheckedWaits(self.scheduler)
        self.scheduler.waits.scheduler = self.scheduler
        self.scheduler.ledger.update([NODE])
        self.stories: dict[int, Story] = {}
        self.instances: dict[int, Instance] = {}
        self.missing: list[int] = []
        self.halts: list[Halt] = []
        self.tokens: dict[object, int] = {}
        self.open_waits: set[int] = set()
        self.killed: set[int] = set()
        self.left: set[int] = set()
        self.count = 0

    def number(self) -> int:
        """Give a new number."""
        self.count += 1
        return self.count

    def settle(self) -> None:
        """Do as the runtime does after each batch of events, and check."""
        self.scheduler.timers.run_due()
        self.scheduler.schedule()
        while self.scheduler.actions:
            batch = tuple(self.scheduler.actions)
            self.scheduler.actions.clear()
            for action in batch:
                self._handlers[type(action)](self, action)
            self.scheduler.schedule()
        actor_oracle.check_ledger(self.scheduler)
        assert not actor_oracle.is_idle(self.scheduler), "all that runs waits for each other, and nobody was told"

    def method(self, call: int) -> Method | None:
        """Find a call that was handed to an instance."""
        return next((one.methods[call] for one in self.instances.values() if call in one.methods), None)

    def _on_start(self, action: Start) -> None:
        task = self.stories[action.task].task
        assert action.attempt <= task.retries + 1
        self.instances[action.call] = Instance(action.call, action.task, task.width)

    def _on_invoke(self, action: Invoke) -> None:
        instance = self.instances[action.host]
        assert instance.serves
        assert instance.task == self.stories[action.task].task.actor
        instance.methods[action.call] = Method(action.call, action.task)

    def _on_dismiss(self, action: Dismiss) -> None:
        instance = self.instances.get(action.host)
        if instance is None:
            return
        if action.now:
            instance.fate = "killed"
        elif not instance.fate:
            assert not instance.methods, "an instance is told to end while it has something to do"
            instance.fate = "dismissed"

    def _on_halt(self, action: Halt) -> None:
        self.halts.append(action)

    def _on_drop(self, action: Drop) -> None:
        instance = self.instances.pop(action.call, None)
        if instance is None:
            for other in self.instances.values():
                other.methods.pop(action.call, None)

    def _on_settle(self, action: Settle) -> None:
        story = self.stories[action.task]
        assert story.ending is None, f"task {action.task} is settled twice"
        assert story.begun <= 1 or story.task.width, "F5: a method began twice"
        story.ending = action.ending
        assert not isinstance(action.ending, Cancelled) or self._was_asked(story), "C8: cancelled, though nobody asked"
        if any(story.answers):
            assert isinstance(action.ending, Cancelled | ActorGone | TimedOut), (
                f"C8: answered True, then {action.ending}"
            )

    def _was_asked(self, story: Story) -> bool:
        """Say whether somebody has cancelled a call, or one further up; or time has."""
        parent = self.stories.get(story.task.parent or 0)
        asked = story.answers or story.task.id in self.tokens.values() or story.task.id in self.killed
        return bool(asked) or (parent is not None and (parent.task.timeout is not None or self._was_asked(parent)))

    def _on_answer(self, action: Answer) -> None:
        if action.token is not None:
            self.stories[self.tokens.pop(action.token)].answers.append(action.value)

    def _on_end_wait(self, action: EndWait) -> None:
        self.open_waits.remove(action.wait)
        for instance in self.instances.values():
            for method in instance.methods.values():
                method.waits.pop(action.wait, None)

    def _ignore(self, action: Lend | Resume) -> None:
        return

    _handlers: dict[type[Any], Callable[[ActorWorld, Any], None]] = {  # noqa: RUF012
        Start: _on_start,
        Invoke: _on_invoke,
        Dismiss: _on_dismiss,
        Halt: _on_halt,
        Drop: _on_drop,
        Settle: _on_settle,
        Answer: _on_answer,
        EndWait: _on_end_wait,
        Lend: _ignore,
        Resume: _ignore,
    }

    # What callers do

    def make_actor(self) -> None:
        """Make an actor."""
        request = Resources(self.random.choice([0, 0, 1, 2]), custom={"license": self.random.choice([0, 0, 0, 1])})
        task = Task(
            self.number() * SPACING,
            "actor",
            resident_need(request),
            width=self.random.choice([1, 1, 2, 1000]),
            retries=self.random.choice([0, 0, 1, 2]),
        )
        self.stories[task.id] = Story(task)
        self.scheduler.submit(task)

    def call(self, actor: int, caller: object, parent: int | None = None) -> Task:
        """Call a method."""
        settled = [value for value in self.scheduler.values if value % SPACING == 0]
        known = [*settled, *self.missing]
        dependencies = self.random.sample(known, min(len(known), self.random.choice([0, 0, 0, 1])))
        timeout = self.random.choice([None, None, None, 1.5])
        task = Task(
            self.number() * SPACING,
            "method",
            {},
            dependencies,
            parent,
            timeout=timeout,
            actor=actor,
            caller=caller,
        )
        self.stories[task.id] = Story(task)
        self.scheduler.submit(task)
        return task

    def begin(self, method: Method) -> None:
        """Let a method begin."""
        story = self.stories[method.task]
        assert story.ending is None
        for other in self.stories.values():
            same = (other.task.actor, other.task.caller) == (story.task.actor, story.task.caller)
            if same and other.task.id < story.task.id:
                assert other.begun or other.ending is not None, "A1: a call overtakes another of its caller"
        method.begun = True
        story.begun += 1
        self.scheduler.started(method.call)

    def wait(self, method: Method, values: set[int], timeout: float | None) -> None:
        """Let a method wait."""
        wait = Wait(self.number(), method.call, values, self.random.randint(1, len(values)), main=True)
        self.open_waits.add(wait.id)
        method.waits[wait.id] = wait
        self.scheduler.wait(wait, timeout)

    def lose(self, instance: Instance) -> None:
        """Let an instance die."""
        self.scheduler.lost(instance.call, Death("host", started=True))

    def cancel(self, task_id: int, *, kill: bool = False) -> None:
        """Cancel a call, or kill an actor."""
        token = self.number()
        self.tokens[token] = task_id
        if kill:
            self.killed.add(task_id)
            self.scheduler.actors.kill(task_id, token)
        else:
            self.scheduler.cancel(task_id, force=False, recursive=self.random.random() < 0.5, token=token)

    def is_over(self, task_id: int) -> bool:
        """Say whether a task is settled."""
        return self.stories[task_id].task.state is State.DONE

    def verdict(self, call: int, verdict: Verdict) -> None:
        """Report what became of an attempt to stop a call."""
        self.scheduler.stopped(call, verdict)

    def end(self, call: int, tag: Tag) -> None:
        """Report an outcome."""
        self.scheduler.finished(call, tag)

    def is_stopped(self, call: int) -> bool:
        """Say whether a call is being stopped."""
        return self.scheduler.running[call].stop is not Stop.NO

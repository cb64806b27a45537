"""A random world around a scheduler: callers, bodies and a backend that reports in odd orders, on a clock of its own.

The world follows the rules of ``polyexec.spi`` and no others; after each step it checks what must hold.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from polyexec.gangs import STRATEGIES, Shape
from polyexec.ledger import SLOT, Need, need_of
from polyexec.node_state import NodeState
from polyexec.options import Resources
from polyexec.placement import Placement
from polyexec.recording import Recorder
from polyexec.records import (
    Answer,
    Cancelled,
    Consult,
    Drop,
    EndWait,
    Failed,
    Halt,
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
from polyexec.reservations import Gang
from polyexec.scheduler import Scheduler
from polyexec.spi import Death, Node, Verdict
from polyexec.stored import Tag

from . import oracle
from .stories import Body, CheckedWaits, Story

SPACING = 16


class World:
    """One schedule.

    Args:
        seed: of everything random.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.nodes = self._some_nodes()
        queues = len(self.nodes) == 1 and self.random.random() < 0.4
        self.scheduler = Scheduler(lambda: self.now, self.random.random, queue_limit=8 if queues else 0)
        self.scheduler.waits = CheckedWaits(self.scheduler)
        self.scheduler.waits.scheduler = self.scheduler
        self.scheduler.ledger.update(self.nodes)
        self.recorder = Recorder(None, "world", pid=0, data={})
        self.scheduler.observer = self.recorder
        self.plain = self.random.random() < 0.4
        self.stories: dict[int, Story] = {}
        self.bodies: dict[int, Body] = {}
        self.halts: list[Halt] = []
        self.consults: list[Consult] = []
        self.answers: dict[object, int] = {}
        self.open_waits: dict[int, Wait] = {}
        self.undropped: set[int] = set()
        self.overdrawn = False
        self.count = 0

    def number(self) -> int:
        """Give a new number."""
        self.count += 1
        return self.count

    def _some_nodes(self) -> list[Node]:
        return [self._some_node(f"node{index}") for index in range(self.random.choice([1, 1, 2, 3]))]

    def _some_node(self, name: str) -> Node:
        labels = {"zone": self.random.choice(["a", "b"])}
        cpus, gpus = self.random.randint(1, 4), self.random.randint(0, 2)
        custom = {"license": self.random.randint(1, 2)}
        return Node(name, name, Resources(cpus, gpus, self.random.randint(0, 4), custom), cpus * 2 + 2, labels=labels)

    def take_nodes(self, nodes: list[Node]) -> None:
        """Let the scheduler know other nodes."""
        self.scheduler.ledger.update(nodes)
        self.scheduler.nodes_changed()

    def some_request(self) -> tuple[Need, Placement | None]:
        """Give a need and a place that can meet it."""
        held = self.scheduler.reservations.held
        if held and self.random.random() < 0.3:
            reservation = self.random.choice(list(held))
            places = held[reservation].places
            index = self.random.randrange(len(places))
            need = {name: amount for name, amount in places[index].need.items() if self.random.random() < 0.8}
            chosen = self.random.choice([index, None])
            return {SLOT: 1, **need}, Placement(self.random.random() < 0.3, reservation=reservation, index=chosen)
        node = self.random.choice(self.nodes)
        if self.plain or self.random.random() < 0.7:
            return self.some_need(node), None
        kind = self.random.choice([{"spread": True}, {"node": node.id}, {"node": self.nodes[0].id, "soft": True}])
        labels = tuple(node.labels.items()) if self.random.random() < 0.3 else ()
        if kind.get("soft") and self.random.random() < 0.3:
            kind["node"] = "no such node"
        return self.some_need(node), Placement(**kind, labels=labels)  # type: ignore[arg-type]

    def some_need(self, node: Node) -> Need:
        """Give a need that a node can meet."""
        if self.plain:
            return need_of(Resources(1))
        total = node.total
        cpus = self.random.choice([0, 0.5, 1, 1, 1, total.cpus])
        gpus = self.random.choice([0, 0, 0, min(0.5, total.gpus), min(1, total.gpus), total.gpus])
        memory = self.random.choice([0, 0, self.random.randint(0, total.memory)])
        return need_of(Resources(cpus, gpus, memory, {"license": self.random.choice([0, 0, 0, 1])}))

    # Between the scheduler and the world

    def step(self, events: list[Callable[[World], None]]) -> None:
        """Let some things happen, then let the scheduler decide."""
        for _ in range(self.random.choice([1, 1, 1, 2, 3])):
            self.random.choice(events)(self)
        self.settle()

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
        self.check()

    def check(self) -> None:
        """Check what must hold at any time."""
        assert self.bodies.keys() == self.scheduler.running.keys()
        oracle.check_grants(self.scheduler)
        oracle.check_gpus(self.scheduler)
        oracle.check_bundles(self.scheduler)
        self.overdrawn = oracle.check_ledger(self.scheduler, overdrawn=self.overdrawn)
        assert not oracle.is_idle(self.scheduler), "all running calls wait for each other, and nobody was told"

    def _on_start(self, action: Start) -> None:
        story = self.stories[action.task]
        assert story.ending is None, "a settled task starts"
        assert all(body.task != action.task for body in self.bodies.values()), "a task runs twice at a time"
        assert action.attempt == story.counted + 1
        self._check_order(story.task)
        self.undropped.add(action.call)
        self.recorder.handed(action.task, action.attempt, action.grant.node, 0, runs=self.random.random() < 0.3)
        self.bodies[action.call] = Body(action.call, action.task, action.queued)

    def _check_order(self, started: Task) -> None:
        for other in self.scheduler.tasks.values():
            if other.state is State.READY and (other.need, other.placement) == (started.need, started.placement):
                assert (-other.priority, other.id) > (-started.priority, started.id), "R8: started out of order"

    def _on_halt(self, action: Halt) -> None:
        self.halts.append(action)

    def _on_drop(self, action: Drop) -> None:
        self.undropped.remove(action.call)

    def _on_settle(self, action: Settle) -> None:
        story = self.stories[action.task]
        assert story.ending is None, f"task {action.task} is settled twice"
        assert all(body.task != action.task for body in self.bodies.values()), "C8: settled while its body runs"
        story.ending = action.ending
        self.recorder.settled(action.task, action.attempts, action.tag, action.ending, None)
        assert action.attempts == story.counted, "F5: attempts do not tell how often the body started"
        assert story.begun <= story.task.retries + 1, "F5: too many attempts"
        if any(story.answers):
            assert isinstance(action.ending, Cancelled | Failed), f"C8: answered True, then {action.ending}"
        elif isinstance(action.ending, Cancelled):
            asked = story.unasked or action.task in self.answers.values() or self._has_timed_parent(story.task)
            assert asked, "C8: cancelled after all were told False"
        if isinstance(action.ending, TimedOut):
            assert story.task.timeout is not None

    def _has_timed_parent(self, task: Task) -> bool:
        """Say whether the time limit of a task further up may have ended this one."""
        parent = self.stories.get(task.parent or 0)
        return parent is not None and (parent.task.timeout is not None or self._has_timed_parent(parent.task))

    def _on_answer(self, action: Answer) -> None:
        if action.token is None:
            return
        story = self.stories[self.answers.pop(action.token)]
        story.answers.append(action.value)
        if action.value and story.ending is not None:
            assert isinstance(story.ending, Cancelled), f"C8: answered True after {story.ending}"

    def _on_end_wait(self, action: EndWait) -> None:
        wait = self.open_waits.pop(action.wait)
        body = self.bodies.get(wait.call)
        if action.wake is Wake.READY:
            assert wait.needed <= 0
        if body is not None:
            body.waits.pop(wait.id, None)
            assert body.waits or not body.lent, "R6: a call goes on without its cpus"

    def _on_lend(self, action: Lend) -> None:
        body = self.bodies.get(action.call)
        if body is not None:
            assert not body.lent
            body.lent = True

    def _on_resume(self, action: Resume) -> None:
        body = self.bodies.get(action.call)
        if body is not None:
            assert body.lent
            body.lent = False
            self.overdrawn |= self.scheduler.running[action.call].stop is not Stop.NO

    def _on_consult(self, action: Consult) -> None:
        self.consults.append(action)

    _handlers: dict[type[Any], Callable[[World, Any], None]] = {  # noqa: RUF012
        Start: _on_start,
        Halt: _on_halt,
        Drop: _on_drop,
        Settle: _on_settle,
        Answer: _on_answer,
        EndWait: _on_end_wait,
        Lend: _on_lend,
        Resume: _on_resume,
        Consult: _on_consult,
    }

    # What callers and bodies do

    def submit(self, parent: int | None = None) -> None:
        """Submit a random task."""
        known = [story.task.id for story in self.stories.values() if story.task.gang is None]
        dependencies = self.random.sample(known, min(len(known), self.random.choice([0, 0, 0, 1, 2])))
        need, placement = self.some_request()
        task = Task(
            self.number() * SPACING,
            "task",
            need,
            [value + self.random.randrange(self.stories[value].task.values) for value in dependencies],
            parent,
            values=self.random.choice([1, 1, 3]),
            priority=self.random.choice([0, 0, 0, 1, -1]),
            retries=self.random.choice([0, 0, 1, 3]),
            retry_timeout=self.random.random() < 0.3,
            consult=self.random.random() < 0.2,
            timeout=self.random.choice([None, None, None, 1.5]),
            function=self.random.choice(["quick", "slow"]),
            placement=placement,
        )
        if self.plain:
            task.timeout = None
        call = None if parent is None else self.scheduler.tasks[parent].call
        barren = call is not None and self.scheduler.running[call].barren
        self.stories[task.id] = Story(task, unasked=barren)
        self.recorder.submitted(task, 1)
        self.scheduler.submit(task)

    def reserve(self, owner: Body | None = None) -> None:
        """Ask for random bundles."""
        bundles = [self.some_need(self.random.choice(self.nodes)) for _ in range(self.random.choice([1, 2, 2, 3]))]
        needs = {index: {name: need[name] for name in need if name != SLOT} for index, need in enumerate(bundles)}
        shape = Shape(needs, self.random.choice(STRATEGIES))
        if not shape.could_fit([NodeState.of_node(node) for node in self.nodes]):
            return
        gang = Gang(shape, self.random.choice([0, 0, 1]), None if owner is None else owner.call)
        parent = None if owner is None else owner.task
        task = Task(self.number() * SPACING, "reserve", {}, parent=parent, priority=gang.priority, gang=gang)
        self.stories[task.id] = Story(task, unasked=True)
        self.scheduler.submit(task)

    def cancel(self, task_id: int, *, force: bool, recursive: bool) -> None:
        """Cancel a task."""
        token = object()
        self.answers[token] = task_id
        if recursive:
            for story in self.stories.values():
                story.unasked = True
        self.scheduler.cancel(task_id, force=force, recursive=recursive, token=token)

    def wait(self, body: Body) -> None:
        """Let a body wait for random values."""
        tasks = [story.task for story in self.stories.values() if story.task.gang is None]
        values = {task.id + self.random.randrange(task.values) for task in tasks}
        own = set(self.scheduler.tasks[body.task].children)
        pool = sorted(own) if own and self.random.random() < 0.7 else sorted(values)
        if not pool:
            return
        missing = set(self.random.sample(pool, min(len(pool), self.random.choice([1, 1, 2, 3]))))
        main = self.random.random() < 0.8 and all(not wait.main for wait in body.waits.values())
        wait = Wait(self.number(), body.call, missing, self.random.randint(1, len(missing)), main)
        body.waits[wait.id] = self.open_waits[wait.id] = wait
        self.scheduler.wait(wait, self.random.choice([None, None, None, None, 0, 0.5]))

    def begin(self, body: Body) -> None:
        """Let a body begin, unless the engine has no worker for it."""
        busy = sum(other.begun and not other.lent for other in self.bodies.values())
        if body.queued and busy >= self.nodes[0].total.cpus:
            return
        body.begun = True
        self.stories[body.task].begun += 1
        self.recorder.placed(body.task, 1)
        self.scheduler.started(body.call)

    def end(self, body: Body, tag: Tag, *, retryable: bool = False) -> None:
        """Report the end of a body."""
        del self.bodies[body.call]
        self._count(body)
        self.scheduler.finished(body.call, tag, retryable=retryable, duration=0.001)

    def _count(self, body: Body) -> None:
        self.stories[body.task].counted += 1

    def lose_all(self) -> None:
        """Report nothing more of any body."""
        for body in self.bodies.values():
            self._count(body)
        self.bodies.clear()
        self.halts.clear()

    def die(self, body: Body) -> None:
        """Report the death of a worker; when in doubt its body has started."""
        del self.bodies[body.call]
        started = body.begun or self.random.random() < 0.3
        call = self.scheduler.running[body.call]
        free = not started and (call.task.refusals < 3 or call.stop is not Stop.NO)
        if not free:
            self._count(body)
        self.stories[body.task].begun += started and not body.begun
        self.scheduler.lost(body.call, Death("host", started=started))

    def refuse(self, body: Body) -> None:
        """Report that a worker would not start."""
        del self.bodies[body.call]
        self.scheduler.refused(body.call)

    def revoke(self, body: Body) -> None:
        """Report that a call will never start."""
        del self.bodies[body.call]
        self.scheduler.stopped(body.call, Verdict.REVOKED)

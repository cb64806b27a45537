"""Which call of an actor runs when. A part of the scheduler, under the same rules: events in, actions out.

An actor is a task whose body serves calls, and each call of a method is a task of its own: it has dependencies, an
ending and children like any other, but it never stands in the ready queue and takes nothing from the ledger. When its
turn comes it is handed to the instance, and from then on it is among the running calls.

Calls of one caller stand in a line of their own and start in its order; of the heads of all lines the one that came
first starts first. A call whose dependencies are missing holds back its own line alone.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

import attrs

from polyexec.ledger import LENT, Grant
from polyexec.records import (
    ActorGone,
    Answer,
    Cancelled,
    DependencyFailed,
    Died,
    Dismiss,
    Ended,
    Ending,
    Failed,
    Invoke,
    Running,
    State,
    Stop,
    Task,
)
from polyexec.stored import Tag

if TYPE_CHECKING:
    from polyexec.scheduler import Scheduler

AHEAD = 64
"""Calls that lie at an instance behind those that run, to hide the way there and back."""


@attrs.define(eq=False)
class Actor:
    """What is known of one actor.

    Attributes:
        task: the task that is the actor.
        width: how many calls may run at the same time.
        ahead: how many more may be handed over.
        lends: a call that waits lends the actor's cpus.
        loops: one thread runs all calls, which none but one that awaits leaves to the others.
        lines: the calls that were not handed over, by caller, in order.
        heads: the first of those lines that are ready, as a heap.
        handed: the calls that were handed over and have not ended, in order.
        open: number of calls that have not ended.
        call: the instance, once it serves.
        leaving: it ends when nothing is open any more.
        killed: somebody has killed it.
        ending: how it has ended.
        tag: what its outcome is.
    """

    task: Task
    width: int
    ahead: int
    lends: bool
    loops: bool = False
    lines: dict[object, deque[Task]] = attrs.field(factory=dict)
    heads: list[tuple[int, Task]] = attrs.field(factory=list)
    handed: dict[int, Running] = attrs.field(factory=dict)
    open: int = 0
    call: Running | None = None
    leaving: bool = False
    killed: bool = False
    ending: Ending | None = None
    tag: Tag = Tag.VALUE

    def begun(self) -> list[Running]:
        """Give the calls that may have begun."""
        return list(itertools.islice(self.handed.values(), self.width))


class ActorCalls:
    """Keeps the actors of an executor, and the calls of their methods.

    Args:
        scheduler: what it is a part of.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._order = itertools.count()
        self._looked_at = 0
        self.actors: dict[int, Actor] = {}

    # Actors

    def add(self, task: Task) -> None:
        """Take a task that is an actor."""
        lends = task.width == 1 and any(task.need.get(name) for name in LENT)
        # Of what was handed to an instance that dies nobody knows what had begun: one that may come back, so that calls
        # outlive it, gets no more than may run. What lends must be known to run.
        ahead = 0 if lends or task.retries else AHEAD
        self.actors[task.id] = Actor(task, task.width, ahead, lends)

    def attach(self, call_id: int, *, loops: bool = False) -> None:
        """Learn that an instance has been made and serves; maybe by one thread for all calls."""
        call = self._scheduler.running[call_id]
        actor = self.actors[call.task.id]
        if actor.call is None:
            actor.call, actor.loops = call, loops
            self._scheduler.waits.keep(call)
            self._go_on(actor)

    def leave(self, actor_id: int) -> None:
        """Let an actor end when nothing is open any more, because nobody refers to it, or the end has come."""
        actor = self.actors.get(actor_id)
        if actor is not None and not actor.leaving:
            actor.leaving = True
            self._go_on(actor)

    def leave_idle(self) -> None:
        """Let the actors end that have nothing to do, if nothing goes on that could call them; the end has come.

        What is left may wait for what they hold.
        """
        scheduler = self._scheduler
        blocked = scheduler.waits.blocked
        resting = any(task.state is State.RESTING for task in scheduler.tasks.values())
        if scheduler.all_blocked() and len(list(scheduler.waits.stuck())) == len(blocked) and not resting:
            for actor_id, actor in tuple(self.actors.items()):
                if not actor.open:
                    self.leave(actor_id)

    def serves(self, task: Task) -> bool:
        """Say whether a task is an actor whose instance serves."""
        actor = self.actors.get(task.id) if task.width else None
        return actor is not None and actor.call is not None

    def kill(self, actor_id: int, token: object) -> None:
        """End an actor at once, for good."""
        actor = self.actors.get(actor_id)
        if actor is None or actor.ending is not None:
            self._scheduler.actions.append(Answer(token, False))
            return
        actor.killed, actor.task.retries = True, 0
        if actor.call is not None:
            self._scheduler.actions.append(Dismiss(actor.call.id, now=True))
        self._scheduler.cancel(actor_id, force=True, recursive=False, token=token)

    def detach(self, call: Running) -> None:
        """Learn that an instance does not serve any more."""
        self.actors[call.task.id].call = None

    def lose(self, call: Running, ending: Ending) -> None:
        """Learn that an instance has ended, and with it what it was given."""
        actor = self.actors.get(call.task.id) if call.task.width else None
        if actor is None:
            return
        for method in tuple(actor.handed.values()):
            self._scheduler.lose_method(method, self._gone(actor, ending))

    def end(self, task: Task, ending: Ending, tag: Tag) -> None:
        """Learn that an actor has ended for good: whoever calls it, or has called it, gets to know why."""
        actor = self.actors[task.id]
        actor.ending, actor.tag = ending, tag
        for line in tuple(actor.lines.values()):
            for method in tuple(line):
                if method.state is not State.DONE:
                    self._refuse(actor, method)

    def forget(self, actor_id: int) -> None:
        """Learn that nobody refers to an actor any more."""
        if actor_id in self.actors and self.actors[actor_id].ending is not None:
            del self.actors[actor_id]

    # Calls

    def take(self, method: Task) -> bool:
        """Take a new call; False if it is settled, because its actor has ended."""
        assert method.actor is not None
        actor = self.actors[method.actor]
        actor.open += 1
        if actor.ending is not None:
            self._refuse(actor, method)
            return False
        actor.lines.setdefault(method.caller, deque()).append(method)
        method.place = next(self._order)
        return True

    def make_ready(self, method: Task) -> None:
        """Learn that a call has all that it needs."""
        actor = self.actor_of(method)
        if actor.lines[method.caller][0] is method:
            heapq.heappush(actor.heads, (method.place, method))
            self._go_on(actor)

    def settled(self, method: Task) -> None:
        """Learn that a call has ended, or never will begin."""
        actor = self.actor_of(method)
        actor.open -= 1
        line = actor.lines.get(method.caller)
        if line and line[0] is method:
            self._advance(actor, method.caller, line)
        self._go_on(actor)

    def ended(self, call: Running) -> None:
        """Learn that a call which was handed over has ended; the actor gets back what it was lent."""
        actor = self.actor_of(call.task)
        del actor.handed[call.id]
        if actor.lends and actor.call is not None:
            held, host = call.grant, actor.call
            missing = {name: amount for name, amount in call.task.need.items() if name not in held.need}
            if missing:
                self._scheduler.ledger.take_on(held.node, missing)
            host.grant = Grant(host.grant.node, {**host.grant.need, **call.task.need}, host.grant.gpus)
            call.grant = Grant(held.node, {})

    def death_of(self, call: Running) -> Ending | None:
        """Give the ending of a call that was not stopped itself if it was stopped because its actor is killed."""
        actor = self.actor_of(call.task)
        return self._gone(actor, Cancelled()) if actor.killed and call.stop is Stop.NO else None

    # For those who look for waits that can never end

    def parked(self) -> int:
        """Count the running calls that do nothing, and wait for nothing either."""
        return sum(map(self._parked, self.serving()))

    def _parked(self, actor: Actor) -> int:
        assert actor.call is not None
        blocked, holders = self._scheduler.waits.blocked, self.holders(actor)
        instance = actor.call.id not in blocked
        if holders:
            return instance + sum(call.id not in blocked for call in actor.handed.values())
        return instance + max(0, len(actor.handed) - actor.width)

    def is_parked(self, call: Running) -> bool:
        """Say whether this is an instance that serves, or a call that lies there behind those that run."""
        return self.serves(call.task) or (call.host is not None and not self.is_executing(call))

    def has_jam(self) -> bool:
        """Say whether, since the last question, a call has begun to wait, and some actor cannot take more calls.

        Only a call that begins to wait can close a circle: so there is a limit to how often somebody has to look.
        """
        waits = self._scheduler.waits
        if not self.actors or self._looked_at == waits.count:
            return False
        self._looked_at = waits.count
        return any(self._is_jammed(actor) for actor in self.actors.values())

    def _is_jammed(self, actor: Actor) -> bool:
        blocked = self._scheduler.waits.blocked
        if actor.call is None:
            # Its constructor may wait.
            return bool(actor.open) and actor.task.call in blocked
        executing = self.executing(actor)
        if min(len(actor.handed), actor.open - 1) < (1 if actor.loops else actor.width):
            return False
        return len(executing) < actor.open and all(call.id in blocked for call in executing)

    def serving(self) -> list[Actor]:
        """Give the actors that have an instance."""
        return [actor for actor in self.actors.values() if actor.call is not None]

    def executing(self, actor: Actor) -> list[Running]:
        """Give the calls that may go on by themselves, or when what they wait for is there."""
        return self.holders(actor) or actor.begun()

    def holders(self, actor: Actor) -> list[Running]:
        """Give the calls that wait without ``await`` in the one thread of their actor."""
        if not actor.loops or actor.call is None:
            return []
        return list(self._scheduler.waits.in_body.get(actor.call.id, {}).values())

    def is_executing(self, call: Running) -> bool:
        """Say whether a call of a method may go on, or begin, without the end of another one."""
        return call in self.executing(self.actor_of(call.task))

    def line_of(self, method: Task) -> Iterable[Task]:
        """Give the calls that stand before one that was not handed over."""
        return itertools.takewhile(lambda other: other is not method, self.actor_of(method).lines[method.caller])

    # Inside

    def actor_of(self, method: Task) -> Actor:
        """Give the actor whose method a task calls."""
        assert method.actor is not None
        return self.actors[method.actor]

    def _advance(self, actor: Actor, caller: object, line: deque[Task]) -> None:
        """Take the head of a line away, and let the next one that is left be the head."""
        line.popleft()
        while line and line[0].state is State.DONE:
            line.popleft()
        if not line:
            del actor.lines[caller]
        elif line[0].state is State.READY:
            heapq.heappush(actor.heads, (line[0].place, line[0]))

    def _go_on(self, actor: Actor) -> None:
        """Hand over what may run."""
        if actor.call is None:
            return
        while actor.heads and len(actor.handed) < actor.width + actor.ahead:
            _, method = heapq.heappop(actor.heads)
            if method.state is State.READY:
                self._hand(actor, actor.call, method)
        if actor.leaving and not actor.open:
            self._scheduler.actions.append(Dismiss(actor.call.id, now=False))

    def _hand(self, actor: Actor, host: Running, method: Task) -> None:
        need = {name: amount for name, amount in host.grant.need.items() if name in LENT} if actor.lends else {}
        rest = {name: amount for name, amount in host.grant.need.items() if name not in need}
        method.need = need
        host.grant = Grant(host.grant.node, rest, host.grant.gpus)
        call = self._scheduler.begin_method(method, Grant(host.grant.node, need), host.id)
        actor.handed[call.id] = call
        self._advance(actor, method.caller, actor.lines[method.caller])
        self._scheduler.actions.append(Invoke(call.id, method.id, host.id, host.grant.node))

    def _refuse(self, actor: Actor, method: Task) -> None:
        ending = actor.ending
        assert ending is not None
        if isinstance(ending, Failed):
            self._scheduler.settle(method, ending, Tag.ERROR)
        elif actor.tag is not Tag.VALUE and isinstance(ending, Ended | DependencyFailed):
            # Its constructor's own error, or what kept that from running.
            self._scheduler.settle(method, DependencyFailed(actor.task.id), actor.tag)
        else:
            self._scheduler.settle(method, self._gone(actor, ending), Tag.ERROR)

    @staticmethod
    def _gone(actor: Actor, ending: Ending) -> ActorGone:
        death = ending.death if isinstance(ending, Died) else None
        if actor.killed:
            return ActorGone(death, "it was ended by kill()")
        if death is not None:
            return ActorGone(death)
        return ActorGone(None, "it was cancelled" if isinstance(ending, Cancelled) else "it has ended")

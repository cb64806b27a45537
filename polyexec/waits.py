"""Waits of running calls: what they lend while they are blocked, and when they go on.

A call that waits lends its cpus and its slot; before its last wait is answered it gets them back, ahead of all tasks
that are ready. A part of the scheduler, under the same rules: events in, actions out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Protocol

from polyexec.ledger import LENT, Grant, Ledger
from polyexec.records import Action, EndWait, Lend, Resume, Running, Stop, Wait, Wake
from polyexec.timers import Timers


class _Scheduler(Protocol):
    actions: list[Action]
    ledger: Ledger
    timers: Timers
    running: dict[int, Running]


class Waits:
    """Keeps the waits of all running calls.

    Args:
        scheduler: what it is a part of.

    Attributes:
        blocked: the calls that wait.
        in_body: calls that wait in the thread that runs them, by the call in whose body that is, and by wait.
        count: how often a call has begun to wait.
    """

    def __init__(self, scheduler: _Scheduler) -> None:
        self._scheduler = scheduler
        self._waits: dict[int, Wait] = {}
        self._by_value: dict[int, list[Wait]] = {}
        self._resuming: dict[int, list[Action]] = {}
        self.blocked: dict[int, Running] = {}
        self.in_body: dict[int, dict[int, Running]] = {}
        self.count = 0

    def __getitem__(self, wait_id: int) -> Wait:
        return self._waits[wait_id]

    def add(self, wait: Wait, timeout: float | None) -> None:
        """Take a new wait; it may end at once."""
        call = self._scheduler.running.get(wait.call)
        self._waits[wait.id] = wait
        if call is None or (wait.main and call.stop is not Stop.NO):
            # Also if it is being killed: where nothing can be, the exception waits for the body to come back.
            self._finish(wait, Wake.INTERRUPTED)
        elif wait.needed <= 0:
            self._finish(wait, Wake.READY)
        elif timeout is not None and timeout <= 0:
            self._finish(wait, Wake.TIMEOUT)
        else:
            self._block(call, wait, timeout)

    def _block(self, call: Running, wait: Wait, timeout: float | None) -> None:
        for value in wait.missing:
            self._by_value.setdefault(value, []).append(wait)
        call.waits.add(wait.id)
        if wait.main and call.host is not None:
            wait.host = call.host
            self.in_body.setdefault(call.host, {})[wait.id] = call
        if timeout is not None:
            wait.limit = self._scheduler.timers.after(timeout, lambda: self.end(wait, Wake.TIMEOUT))
        if call.id in self.blocked:
            # It was about to go on, but another of its threads waits again.
            self._scheduler.actions += self._resuming.pop(call.id, [])
            return
        self.blocked[call.id] = call
        self.count += 1
        call.task.since = self._scheduler.timers.now()
        lent = {name: amount for name, amount in call.grant.need.items() if name in LENT and not call.keeps}
        rest = {name: amount for name, amount in call.grant.need.items() if name not in lent}
        self._scheduler.ledger.give_back(Grant(call.grant.node, lent))
        call.grant = Grant(call.grant.node, rest, call.grant.gpus)
        self._scheduler.actions.append(Lend(call.id))

    def arrive(self, value: int) -> None:
        """Learn that a value is there."""
        for wait in self._by_value.pop(value, ()):
            wait.missing.discard(value)
            wait.needed -= 1
            if wait.needed == 0:
                self.end(wait, Wake.READY)

    def end(self, wait: Wait, wake: Wake) -> None:
        """End a wait; its call goes on once it has back what it lent, or at once if it was interrupted."""
        call = self._scheduler.running.get(wait.call)
        self._finish(wait, wake)
        if call is None or call.waits or call.id not in self.blocked:
            return
        self._resuming[call.id] = [self._scheduler.actions.pop()]
        if wake is Wake.INTERRUPTED:
            self._go_on(call)

    def _finish(self, wait: Wait, wake: Wake) -> None:
        del self._waits[wait.id]
        if wait.limit is not None:
            self._scheduler.timers.cancel(wait.limit)
        for value in wait.missing:
            others = self._by_value.get(value, [])
            if wait in others:
                others.remove(wait)
            if not others:
                self._by_value.pop(value, None)
        if wait.host is not None:
            others_there = self.in_body[wait.host]
            del others_there[wait.id]
            if not others_there:
                del self.in_body[wait.host]
        call = self._scheduler.running.get(wait.call)
        if call is not None:
            call.waits.discard(wait.id)
        self._scheduler.actions.append(EndWait(wait.id, wake))

    def interrupt(self, call: Running) -> bool:
        """End the waits of a call's own thread, if it has any; say whether it had. It goes on without delay."""
        own = [self._waits[wait_id] for wait_id in call.waits if self._waits[wait_id].main]
        for wait in own:
            self.end(wait, Wake.INTERRUPTED)
        if call.id in self._resuming:
            self._go_on(call)
        return bool(own)

    def abandon(self, call: Running) -> None:
        """Forget the waits of a call that has ended."""
        for wait_id in tuple(call.waits):
            self._finish(self._waits[wait_id], Wake.INTERRUPTED)
        self._scheduler.actions += self._resuming.pop(call.id, [])
        self.blocked.pop(call.id, None)

    def resume(self) -> None:
        """Let calls go on for which there is room again, in the order in which their waits ended."""
        for call_id in tuple(self._resuming):
            call = self.blocked[call_id]
            if self._scheduler.ledger.can_go_on(call.grant.node, call.lacking):
                self._go_on(call)

    def keep(self, call: Running) -> None:
        """Let a call lend nothing from now on, and take back what it has lent."""
        if call.id in self.blocked:
            self._take_back(call)
        call.keeps = True

    def _take_back(self, call: Running) -> None:
        taken = self._scheduler.ledger.take_on(call.grant.node, call.lacking)
        call.grant = Grant(call.grant.node, {**call.grant.need, **taken.need}, {**call.grant.gpus, **taken.gpus})

    def _go_on(self, call: Running) -> None:
        self._take_back(call)
        call.queued = False
        call.task.since = self._scheduler.timers.now()
        del self.blocked[call.id]
        self._scheduler.actions.append(Resume(call.id))
        self._scheduler.actions += self._resuming.pop(call.id, [])

    @property
    def is_resuming(self) -> bool:
        """Whether some call is about to go on, and needs its cpus back."""
        return bool(self._resuming)

    def kept(self) -> dict[str, dict[str, int]]:
        """Give what must be left for calls that are about to go on, by node."""
        return self._needed(self.blocked[call_id] for call_id in self._resuming)

    def lent(self, but: Collection[int] = ()) -> dict[str, dict[str, int]]:
        """Give what calls have lent and will need back, by node; others may have it as long as they come to an end.

        Args:
            but: calls that do not count.
        """
        return self._needed(call for call in self.blocked.values() if call.id not in but)

    def _needed(self, calls: Iterable[Running]) -> dict[str, dict[str, int]]:
        kept: dict[str, dict[str, int]] = {}
        for call in calls:
            self._scheduler.ledger.keep(call.grant.node, call.lacking, kept)
        return kept

    def stuck(self) -> Iterable[tuple[Running, Collection[Wait]]]:
        """Give the blocked calls with waits that nothing but the arrival of values can end."""
        for call in self.blocked.values():
            waits = [self._waits[wait_id] for wait_id in call.waits]
            if waits and all(wait.limit is None for wait in waits):
                yield call, waits

"""The driver's side of one node: its workers, and the calls that run there or wait for a worker."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import ray

from polyexec import stacks
from polyexec.errors import BackendBroken, BackendLost
from polyexec.outcome import encode_error
from polyexec.spi import Call, Death, Outcome, Tag, Verdict, WorkerState
from polyexec.stacks import ProcessStacks
from polyexec_ray.agent import Early
from polyexec_ray.death import Autopsy
from polyexec_ray.errors import first_line, is_death, is_loss, translated
from polyexec_ray.freight import Kept, Parked, Worn, arguments, frame, is_somewhere, lost_of, unload
from polyexec_ray.hands import PLAIN, Hand, Kind, kind_of
from polyexec_ray.link import Link, Listener, Surroundings
from polyexec_ray.roster import Roster

_FAILED_STARTS = 3


class Site(Listener):
    """One node.

    The host is told and Ray is called outside of the roster's lock, because Ray may call back there and then.

    Args:
        around: the backend.
        node: Ray's id of the node, None if there is but one.
        name: the machine's name.
        width: how many workers may run calls that were handed over before their turn.
    """

    def __init__(self, around: Surroundings, node: str | None, name: str, width: int) -> None:
        self._around = around
        self._host = around.host
        self._node = node
        self._name = name
        self._roster = Roster(width, around.spare, shared=not around.own)
        self._failures = 0
        self._closed = False
        self.has_left = False
        self.link = Link(around, node, self)

    def pids(self) -> list[int]:
        """Give the process ids of the workers that have started."""
        return [hand.pid for hand in self._roster.hands() if hand.pid is not None]

    def look(self, node: str, timeout: float) -> list[WorkerState]:
        """Look at the workers, which are on this machine."""
        hands = self._roster.seen()
        found = stacks.ask([hand.pid for hand in hands if hand.pid is not None], timeout)
        return [_state_of(hand, node, found.get(hand.pid or 0)) for hand in hands]

    def ask_agent(self, timeout: float) -> Any:
        """Ask the agent to look at the workers; give the reference to its answer."""
        return self.link.agent.look.remote(timeout)

    def look_afar(self, node: str, answer: Any, end: float) -> list[WorkerState]:
        """Take the agent's answer if it comes in time."""
        hands = self._roster.seen()
        try:
            found = ray.get(answer, timeout=max(0.0, end - time.monotonic()))
        except Exception as error:
            silence = ProcessStacks(f"the agent of its node has not answered: {first_line(error)}")
            found = {hand.pid: silence for hand in hands}
        return [_state_of(hand, node, found.get(hand.pid)) for hand in hands]

    def prestart(self) -> None:
        """Start the workers that are kept."""
        for _ in range(self._around.spare):
            self._start(self._roster.expect(PLAIN))

    def submit(self, call: Call) -> None:
        """Run a call in a free worker of its kind, or start one for it."""
        kind = kind_of(call, own=self._around.own)
        self._roster.add(kind, call)
        self._feed(kind)

    def cancel(self, call_id: int, *, force: bool) -> None:
        """Revoke, interrupt or kill."""
        revoked = self._roster.withdraw(call_id)
        hand = self._roster.stop(call_id)
        if revoked or hand is None:
            self._host.stopped(call_id, Verdict.REVOKED if revoked else Verdict.LATE)
        elif force:
            self.link.kill(hand.id, call_id)
        else:
            self.link.interrupt(hand.id, call_id)

    def block(self, call_id: int) -> None:
        """Note that a call is blocked: another may run in the meantime, and Ray must not count its cpus."""
        for kind in self._roster.block(call_id):
            self._feed(kind)

    def resume(self, call_id: int) -> None:
        """Note that a call goes on."""
        self._roster.resume(call_id)

    def tick(self, now: float) -> None:
        """End workers that are idle for long, and give up on those that do not start. May block."""
        for hand in self._roster.retire(now - self._around.idle_timeout):
            ray.kill(hand.actor)
        if self._around.own and self._roster.is_late(now - self._around.start_timeout):
            text = f"a worker did not start within {self._around.start_timeout:g} s (start_timeout=)"
            self._host.broken(BackendBroken(text))

    def close(self) -> None:
        """Kill all workers and the agent. Blocks."""
        self._closed = True
        self.link.end()
        for hand in self._roster.close():
            ray.kill(hand.actor)

    # From the queue to the workers

    def _feed(self, kind: Kind) -> None:
        """Give waiting calls to idle workers, and start a worker if one is needed."""
        dealt, needed = self._roster.deal(kind)
        for hand, batch in dealt:
            self._dispatch(hand, batch)
        if needed is not None:
            self._start(needed)

    def _dispatch(self, hand: Hand, calls: Sequence[Call]) -> None:
        first = calls[0]
        try:
            self._limit_memory(hand, first)
            if len(calls) > 1:
                reference = hand.method("run_several", first.name).remote([frame(call) for call in calls])
                self._around.notify(reference, partial(self._several_ended, hand))
            else:
                reference = self._run(hand, first)
                self._around.notify(reference, partial(self._ended, hand, first))
            if hand.pid is not None:
                self._host.placed(first.id, hand.pid)
        except Exception as error:
            self._refuse(hand, calls, error)

    def _refuse(self, hand: Hand, calls: Sequence[Call], error: BaseException) -> None:
        self._finish(hand, [(call, Outcome.of(encode_error(translated(error, call.name)))) for call in calls])

    def _return(self, hand: Hand, calls: Sequence[Call], error: BaseException) -> None:
        """Give calls back that did not run because what they need is lost. Blocks."""
        cause: Any = getattr(error, "cause", None) or error
        missing = [(call, lost_of(call, cause.object_ref_hex)) for call in calls if self._roster.end(call.id)]
        self._release(hand)
        for call, lost in missing:
            self._host.missing(call.id, lost, first_line(cause))

    def _run(self, hand: Hand, call: Call) -> Any:
        if call.lease.held.gpus and not hand.kind.gpus:
            devices = ",".join(call.lease.gpu_ids)
            return hand.method("run_with_gpus", call.name).remote(devices, *arguments(call))
        return hand.method("run", call.name).remote(*arguments(call))

    def _limit_memory(self, hand: Hand, call: Call) -> None:
        memory = call.lease.held.memory
        if memory or hand.limited:
            hand.limited = bool(memory)
            self.link.limit(hand.id, memory or None)

    # How calls end

    def _ended(self, hand: Hand, call: Call, value: Any) -> None:
        if isinstance(value, Worn):
            hand.worn, value = True, value.cargo
        if isinstance(value, BaseException):
            self._failed(hand, value)
        elif isinstance(value, Parked):
            self._collect(hand, call, value)
        else:
            self._finish(hand, [(call, Outcome.of(unload(value)))])

    def _several_ended(self, hand: Hand, value: Any) -> None:
        if isinstance(value, BaseException):
            self._failed(hand, value)
            return
        outcomes, returned = value
        parked = [(call_id, cargo) for call_id, cargo in outcomes[-1:] if isinstance(cargo, Parked)]
        found = _outcomes(hand, outcomes)
        self._give_back(hand, returned)
        if parked and parked[0][0] in hand.calls:
            self._report(found)
            self._feed(hand.kind)
            self._collect(hand, hand.calls[parked[0][0]], parked[0][1])
        else:
            self._finish(hand, found)

    def _collect(self, hand: Hand, call: Call, parked: Parked) -> None:
        reference = hand.actor.collect.remote()
        if self._around.client:
            self._around.notify(reference, partial(self._ended, hand, call))
            return

        def arrived() -> None:
            if is_somewhere(reference):
                self._finish(hand, [(call, Outcome(parked.head, None, Kept(reference)))])
            else:
                self._around.notify(reference, partial(self._ended, hand, call))

        reference._on_ready(lambda error: self._around.later(arrived))

    def _finish(self, hand: Hand, found: Sequence[tuple[Call, Outcome]]) -> None:
        """Free a worker, then report what it did: the core may have the next call for it already."""
        known = self._end(found)
        self._release(hand)
        for call, outcome in known:
            self._host.finished(call.id, outcome)

    def _report(self, found: Sequence[tuple[Call, Outcome]]) -> None:
        for call, outcome in self._end(found):
            self._host.finished(call.id, outcome)

    def _end(self, found: Sequence[tuple[Call, Outcome]]) -> list[tuple[Call, Outcome]]:
        return [item for item in found if self._roster.end(item[0].id, worn=item[1].head[2] == Tag.BROKEN)]

    def _give_back(self, hand: Hand, call_ids: Sequence[int]) -> None:
        """Let calls wait again that a worker has not begun, unless it was told to stop them: it does not have them."""
        for call_id in self._roster.give_back(hand, call_ids):
            self._host.stopped(call_id, Verdict.REVOKED)

    def _release(self, hand: Hand) -> None:
        """Let a worker have its next calls, or end it."""
        if not self._roster.release(hand):
            self._around.later(partial(ray.kill, hand.actor))
            self._remove(hand)
        self._feed(hand.kind)

    def _failed(self, hand: Hand, error: BaseException) -> None:
        if not is_death(error):
            if is_loss(error) and not self._around.client:
                self._around.later(partial(self._return, hand, tuple(hand.calls.values()), error))
            else:
                self._refuse(hand, tuple(hand.calls.values()), error)
            return
        self._remove(hand)
        self.link.examine(hand.id, partial(self._examined, hand, error))

    def _examined(self, hand: Hand, error: BaseException, found: Any) -> None:
        failure = self._around.engine_failure()
        if failure is not None:
            self._host.broken(BackendLost(failure))
            return
        autopsy = found if isinstance(found, Autopsy) else Autopsy(cause=first_line(error))
        self._report(_outcomes(hand, tuple(autopsy.outcomes.items())))
        calls = tuple(hand.calls)
        begun = _count_begun(calls, autopsy.begun)
        self._give_back(hand, calls[begun:])
        self._feed(hand.kind)
        pid = autopsy.pid or hand.pid
        for call_id in calls[:begun]:
            if self._roster.end(call_id):
                self._host.lost(call_id, Death(self._name, pid, autopsy.signal, autopsy.exit_code, autopsy.cause))

    # Workers

    def _start(self, hand: Hand) -> None:
        self._around.later(partial(self._start_now, hand))

    def _start_now(self, hand: Hand) -> None:
        if not self.has_left and self._roster.enlist(hand):
            reference = hand.start(self.link.agent, self._host.setup, self._node, copy=self._around.client)
            self._around.notify(reference, partial(self._started, hand))

    def _started(self, hand: Hand, value: Any) -> None:
        started = isinstance(value, int)
        if not self._roster.started(hand, value if started else None):
            return
        if started:
            self._failures = 0
            self._release(hand)
            return
        self._failures += 1
        self._remove(hand)
        if self._failures < _FAILED_STARTS:
            self._feed(hand.kind)
        else:
            text = f"workers do not start on {self._name}: {first_line(value)}"
            self._around.later(partial(self._give_up, BackendBroken(text)))

    def _give_up(self, error: BackendBroken) -> None:
        """Say that the engine is broken, unless it is only this node that has left the cluster. Blocks."""
        if not self._leaves():
            self._host.broken(error)

    def _leaves(self) -> bool:
        """Find out whether the node has left the cluster; what waits for it can go elsewhere then. Blocks."""
        if self._node is None or self._around.client or self._around.is_alive(self._node):
            return False
        self.has_left = True
        death = Death(self._name, cause="the node has left the cluster", started=False)
        for call in self._roster.drain():
            self._host.lost(call.id, death)
        return True

    def _remove(self, hand: Hand) -> None:
        """Forget a worker, and start another if it was one of those that are kept."""
        needed = self._roster.remove(hand)
        if needed is not None:
            self._start(needed)

    # What the agent tells

    def gone(self, worker_id: int) -> None:
        hand = self._roster.hand(worker_id)
        if hand is not None and hand.pid is not None and not hand.calls:
            self._remove(hand)

    def early(self, news: Early) -> None:
        call_ids = (*news.returned, *(call_id for call_id, _ in news.outcomes))
        hands = {hand.id: hand for call_id in call_ids if (hand := self._roster.hand_of(call_id)) is not None}
        for hand in hands.values():
            self._report(_outcomes(hand, news.outcomes))
            self._give_back(hand, news.returned)
            self._feed(hand.kind)

    def agent_lost(self, error: BaseException) -> None:
        failure = self._around.engine_failure()
        if failure is not None:
            self._host.broken(BackendLost(failure))
            return
        if self._leaves():
            return
        self._failures += 1
        if self._failures >= _FAILED_STARTS:
            self._host.broken(BackendBroken(f"the agent does not start on {self._name}: {first_line(error)}"))
            return
        hands = self._roster.hands()
        self.link = Link(self._around, self._node, self)
        for hand in hands:
            ray.kill(hand.actor)
            if not hand.calls:
                self._remove(hand)


def _count_begun(calls: Sequence[int], begun: int | None) -> int:
    """Count the calls of a dead worker that had begun, given the last that had; when in doubt, all."""
    if begun is None:
        return len(calls)
    return calls.index(begun) + 1 if begun in calls else 0


def _state_of(hand: Hand, node: str, found: ProcessStacks | None) -> WorkerState:
    # The calls change meanwhile; the tuple is made at once.
    calls = tuple(hand.calls)
    if hand.pid is None:
        return WorkerState(node, None, calls, None, "it is starting")
    found = found or ProcessStacks("the agent of its node does not know it")
    return WorkerState(node, hand.pid, calls, None, found.status, found.threads)


def _outcomes(hand: Hand, items: Sequence[tuple[int, Any]]) -> list[tuple[Call, Outcome]]:
    """Give the outcomes among what a worker sent for several calls."""
    found = []
    for call_id, cargo in items:
        call = hand.calls.get(call_id)
        if call is not None and not isinstance(cargo, Parked):
            found.append((call, Outcome.of(unload(cargo))))
    return found

"""Who runs what on a node, who is free, and who waits: the bookkeeping, without Ray."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Sequence

from polyexec.spi import Call
from polyexec_ray.hands import PLAIN, Hand, Kind

_BATCH = 32

Deal = list[tuple[Hand, list[Call]]]


class Roster:
    """Workers and calls of one node. Every method is atomic, for which ``_lock`` guards all fields.

    Args:
        width: how many workers may run calls that were handed over before their turn.
        spare: how many plain workers are kept.
        shared: others use the cluster too, so that Ray must count what workers hold.
    """

    def __init__(self, width: int, spare: int, *, shared: bool) -> None:
        self._shared = shared
        self._width = width
        self._spare = spare
        self._lock = threading.Lock()
        self._hands: dict[int, Hand] = {}
        self._idle: dict[Kind, list[Hand]] = {}
        self._waiting: dict[Kind, deque[Call]] = {}
        self._ahead: dict[Kind, deque[Call]] = {}
        self._starting: Counter[tuple[Kind, bool]] = Counter()
        self._running: dict[int, Hand] = {}
        self._blocked: set[int] = set()
        self._stopped: set[int] = set()
        self._busy: set[int] = set()
        self._closed = False

    def hands(self) -> list[Hand]:
        """Give the workers."""
        with self._lock:
            return list(self._hands.values())

    def seen(self) -> tuple[Hand, ...]:
        """Give the workers, without waiting for anybody: the copy is made at once."""
        return tuple(self._hands.values())

    def hand_of(self, call_id: int) -> Hand | None:
        """Give the worker to which a call was given."""
        with self._lock:
            return self._running.get(call_id)

    def stop(self, call_id: int) -> Hand | None:
        """Note that a call shall not begin any more, and give the worker to which it was given."""
        with self._lock:
            hand = self._running.get(call_id)
            if hand is not None:
                self._stopped.add(call_id)
            return hand

    def hand(self, worker_id: int) -> Hand | None:
        """Give a worker by its number."""
        with self._lock:
            return self._hands.get(worker_id)

    # Calls

    def add(self, kind: Kind, call: Call) -> None:
        """Let a call wait."""
        with self._lock:
            self._queues(call).setdefault(kind, deque()).append(call)

    def withdraw(self, call_id: int) -> bool:
        """Forget a call that waits; False if it does not."""
        with self._lock:
            for queue in (*self._waiting.values(), *self._ahead.values()):
                for call in queue:
                    if call.id == call_id:
                        queue.remove(call)
                        return True
        return False

    def drain(self) -> list[Call]:
        """Forget all calls that wait, and give them."""
        with self._lock:
            queues = [*self._waiting.values(), *self._ahead.values()]
            self._waiting, self._ahead = {}, {}
        return [call for queue in queues for call in queue]

    def deal(self, kind: Kind) -> tuple[Deal, Hand | None]:
        """Give waiting calls to idle workers, and a worker that must be started for those that are left."""
        dealt: Deal = []
        with self._lock:
            idle = self._idle.get(kind)
            while idle and (batch := self._next_batch(kind)):
                hand = idle.pop()
                hand.used = True
                hand.calls.update((call.id, call) for call in batch)
                self._running.update((call.id, hand) for call in batch)
                if not batch[0].resident:
                    self._busy.add(hand.id)
                dealt.append((hand, batch))
            return dealt, self._new(kind) if self._is_short(kind) else None

    def give_back(self, hand: Hand, call_ids: Sequence[int]) -> list[int]:
        """Let calls that have not begun wait again, before all others; give those that shall not begin any more."""
        revoked: list[int] = []
        with self._lock:
            for call_id in reversed(call_ids):
                call = hand.calls.pop(call_id, None)
                if call is None:
                    continue
                del self._running[call_id]
                if call_id in self._stopped:
                    self._stopped.discard(call_id)
                    revoked.append(call_id)
                else:
                    self._queues(call).setdefault(hand.kind, deque()).appendleft(call)
        return revoked

    def end(self, call_id: int, *, worn: bool = False) -> bool:
        """Forget a call that has ended; False if that is known already."""
        with self._lock:
            hand = self._running.pop(call_id, None)
            self._blocked.discard(call_id)
            self._stopped.discard(call_id)
            if hand is None:
                return False
            hand.calls.pop(call_id, None)
            hand.worn = hand.worn or worn
            return True

    def block(self, call_id: int) -> list[Kind]:
        """Note that a call is blocked, so that another may run; give the kinds of calls that wait for that."""
        with self._lock:
            hand = self._running.get(call_id)
            if hand is None or hand.id in self._busy:
                self._blocked.add(call_id)
            return [kind for kind, ahead in self._ahead.items() if ahead]

    def resume(self, call_id: int) -> None:
        """Note that a call goes on."""
        with self._lock:
            self._blocked.discard(call_id)

    # Workers

    def expect(self, kind: Kind) -> Hand:
        """Give a worker that must be started."""
        with self._lock:
            return self._new(kind)

    def enlist(self, hand: Hand) -> bool:
        """Take a worker that is being started; False if the end has come."""
        with self._lock:
            if not self._closed:
                self._hands[hand.id] = hand
            return not self._closed

    def started(self, hand: Hand, pid: int | None) -> bool:
        """Learn that a worker has started, or with None that it has not; False if the end has come."""
        with self._lock:
            self._starting[hand.kind, hand.claims] -= 1
            hand.pid = pid
            return not self._closed

    def release(self, hand: Hand) -> bool:
        """Let a worker be given calls; False if it must be ended instead."""
        with self._lock:
            self._busy.discard(hand.id)
            usable = hand.id in self._hands and not hand.worn and not (hand.used and hand.kind.single_use)
            if usable:
                hand.since = time.monotonic()
                self._idle.setdefault(hand.kind, []).append(hand)
            return usable

    def remove(self, hand: Hand) -> Hand | None:
        """Forget a worker, and give one that must be started, if it was one of those that are kept."""
        with self._lock:
            self._busy.discard(hand.id)
            if self._hands.pop(hand.id, None) is None:
                return None
            idle = self._idle.get(hand.kind, [])
            if hand in idle:
                idle.remove(hand)
            missing = hand.kind == PLAIN and self._count(PLAIN) < self._spare and not self._closed
            return self._new(PLAIN) if missing else None

    def retire(self, before: float) -> list[Hand]:
        """Forget the workers that are not kept and have been idle since before a time, and give them."""
        with self._lock:
            ended = []
            for kind, idle in self._idle.items():
                surplus = self._count(kind) - (self._spare if kind == PLAIN else 0)
                while idle and surplus > 0 and idle[0].since < before:
                    ended.append(idle.pop(0))
                    surplus -= 1
            for hand in ended:
                del self._hands[hand.id]
            return ended

    def is_late(self, before: float) -> bool:
        """Tell whether a worker that was started before a time has not begun to work."""
        with self._lock:
            return any(hand.pid is None and hand.since < before for hand in self._hands.values())

    def close(self) -> list[Hand]:
        """Forget all workers, and give them."""
        with self._lock:
            self._closed = True
            hands = list(self._hands.values())
            self._hands.clear()
            return hands

    def _new(self, kind: Kind) -> Hand:
        hand = Hand(kind, claims=self._claims())
        self._starting[kind, hand.claims] += 1
        return hand

    def _claims(self) -> bool:
        """Tell whether Ray must count the cpus of a new worker: not if those of a blocked call are lent to it."""
        return self._shared and not self._blocked

    def _queues(self, call: Call) -> dict[Kind, deque[Call]]:
        return self._ahead if call.queued else self._waiting

    def _count(self, kind: Kind) -> int:
        return sum(1 for hand in self._hands.values() if hand.kind == kind)

    def _next_batch(self, kind: Kind) -> list[Call]:
        """Take the calls that a worker gets at once: several of one name if they are known to be short, and simple."""
        waiting, ahead = self._waiting.get(kind), self._ahead.get(kind)
        if waiting:
            batch = [waiting.popleft()]
        elif ahead and self._has_room():
            batch = [ahead.popleft()]
        else:
            return []
        if ahead and _is_simple(batch[0]):
            share = min(_BATCH, -(-len(ahead) // max(1, self._width)))
            while len(batch) < share and ahead and ahead[0].name == batch[0].name and _is_simple(ahead[0]):
                batch.append(ahead.popleft())
        return batch

    def _has_room(self) -> bool:
        return len(self._busy) - len(self._blocked) < self._width

    def _is_short(self, kind: Kind) -> bool:
        """Tell whether a call waits that no worker, starting or about to be free, will take."""
        wanted = len(self._waiting.get(kind, ())) + bool(self._ahead.get(kind) and self._has_room())
        if not wanted or self._closed:
            return False
        soon = sum(1 for hand in self._hands.values() if hand.kind == kind and len(hand.calls) > 1)
        return wanted > self._starting[kind, self._claims()] + soon


def _is_simple(call: Call) -> bool:
    held = call.lease.held
    return not call.resident and not call.values and not call.body.buffers and not held.memory and not held.gpus

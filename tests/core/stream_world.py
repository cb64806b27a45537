"""A random world around one stream: its generator, its reader, and a backend, on a clock of its own.

There is no thread: the runtime does what is posted to it when the world says so. The world follows the rules of
``polyexec.stream_source`` and of ``Inbox``; after each step it checks what must hold.
"""

from __future__ import annotations

import pickle
import random
from collections import deque
from collections.abc import Sequence
from typing import Any

from polyexec import Resources, outcome
from polyexec.inbox import CLOSED, Inbox
from polyexec.runtime import Runtime
from polyexec.session import Entry
from polyexec.spi import Call, Capabilities, Death, Outcome, Stored, Value, Verdict
from polyexec.stored import Head, Tag
from polyexec.tasks import TaskData
from polyexec.timers import Timers
from polyexec.wire import Role, TaskSpec

from .stub import StubBackend, StubConfig


class _Backend(StubBackend):
    def __init__(self, config: StubConfig, *, inline: bool) -> None:
        super().__init__(config)
        self.capabilities = Capabilities(inline=inline)  # type: ignore[misc]
        self.replies: dict[object, tuple[str, Any]] = {}

    def reply(self, request_id: object, message: bytes, values: Sequence[Value]) -> None:
        assert request_id not in self.replies, "a request is answered twice"
        self.replies[request_id] = pickle.loads(message)


class World:
    """One stream, and who reads it.

    Args:
        seed: of everything random.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.inline = self.random.random() < 0.2
        self.buffer = self.random.choice([1, 1, 2, 3, 8])
        self.length = self.random.choice([0, 1, 5, 30])
        self.ending: Any = self.random.choice([None, None, ValueError("end"), "death"])
        self.backend = _Backend(StubConfig(total=Resources(self.random.choice([1, 2]))), inline=self.inline)
        self.runtime = Runtime(self.backend, f"world {seed}")
        self.backend.open(self.runtime)
        self.runtime.scheduler.timers = Timers(lambda: self.now)
        self.runtime.nodes_changed()
        self.numbers = iter(range(1 << 30))
        self.in_task = self.random.random() < 0.4
        self.own: list[int] = []
        self.settle()
        self.inbox, self.reader = self._open_in_task() if self.in_task else (self._open_in_driver(), 0)
        self.settle()
        self.call: Call | None = None
        self.given = self.taken = self.allowed = 0
        self.unsent: deque[int] = deque()
        self.asked: object = None
        self.is_told = self.is_interrupted = self.has_ended = False
        self.reading: object = None
        self.is_closed = self.is_cancelled = self.is_read = False

    def _spec(self, role: Role) -> TaskSpec:
        fields = ("f", Resources(1), (), (), 1, 0, 0, None, False, None, None, {}, False)
        return TaskSpec("generator", *fields, role=role, buffer=self.buffer)

    def _open_in_driver(self) -> Inbox:
        entry = self.runtime.new_entries("generator", 1)[0]
        self.own.append(entry.id)
        inbox = Inbox(self.runtime, entry, self.buffer, None)
        self.runtime.post(
            self.runtime.submit, TaskData(self._spec(Role.STREAM), Stored(b""), None, [entry], inbox=inbox), None
        )
        return inbox

    def _open_in_task(self) -> tuple[Inbox, int]:
        entry = self.runtime.new_entries("reader", 1)[0]
        self.own.append(entry.id)
        self.runtime.post(self.runtime.submit, TaskData(self._spec(Role.TASK), Stored(b""), None, [entry]), None)
        self.settle()
        reader = self.backend.calls.get_nowait().id
        request = self.ask(reader, "submit", self._spec(Role.STREAM), None)
        self.settle()
        status, stream_id = self.backend.replies.pop(request)
        assert status == "ok"
        return self.runtime.streams._inboxes[stream_id], reader

    def ask(self, call_id: int, kind: str, *fields: Any, main: bool = True, value: Stored | None = None) -> object:
        """Let a call ask for something; give the id of the request."""
        request = next(self.numbers)
        data = None if value is None else value.data
        self.runtime.request(request, call_id, Stored(pickle.dumps((kind, main, (), fields, data, None))))
        return request

    def answer(self, request: object) -> Any:
        """Give the answer to a request, None if it has none yet."""
        found = self.backend.replies.pop(request, None)
        if found is None:
            return None
        assert found[0] in ("ok", "interrupted"), outcome.decode_error(Stored(found[1]))
        return found

    def settle(self) -> None:
        """Let the runtime do what it has to do."""
        loop = self.runtime.loop
        loop._work()
        while loop._posted:
            loop._work()
        assert self.runtime.failure is None, outcome.decode_error(self.runtime.failure)

    def step(self) -> None:
        """Let something happen, and check."""
        self.random.choice([self.generate, self.generate, self.send, self.read, self.read, self.wait_a_little])()
        if self.random.random() < 0.5:
            self.settle()
            self.check()

    def check(self) -> None:
        """Check what must hold at any time."""
        on_its_way = self.reading in self.backend.replies
        unread = self.given - self.taken - on_its_way
        assert self.is_closed or unread <= (1 if self.inline else self.buffer), "G2: too many items wait unread"
        blocked = len(self.runtime.scheduler.waits.blocked)
        assert blocked <= 1 + self.in_task

    def wait_a_little(self) -> None:
        """Let time pass."""
        self.now += self.random.choice([0.001, 0.01, 0.3])

    # The generator

    def generate(self) -> None:
        """Let the generator's thread take a step."""
        if self.call is None:
            if not self.backend.calls.empty():
                self.call = self.backend.calls.get_nowait()
        elif self.has_ended:
            return
        elif self.asked is not None:
            self._hear_room()
        elif self._was_halted():
            self.is_interrupted = True
            self.end()
        elif self.is_told or self.given == self.length:
            self.end()
        elif self.given >= self.allowed:
            self.asked = self.ask(self.call.id, "stream_room", self.given)
        else:
            self._give()

    def _hear_room(self) -> None:
        found = self.answer(self.asked)
        if found is not None:
            self.asked = None
            self.is_interrupted |= found[0] == "interrupted"
            self.is_told |= self.is_interrupted or found[1] == CLOSED
            self.allowed = found[1] if not self.is_told else 0

    def _was_halted(self) -> bool:
        assert self.call is not None
        if self.backend.cancels.empty():
            return False
        call_id, _ = self.backend.cancels.get_nowait()
        assert call_id == self.call.id
        self.backend.host.stopped(call_id, Verdict.DELIVERED)
        return True

    def _give(self) -> None:
        assert self.call is not None
        if self.random.random() < 0.2:
            self.ask(self.call.id, "stream_value", Head().encode(), value=outcome.encode_value("item", self.given))
            self.unsent.append(-1)
        else:
            self.unsent.append(self.given)
        self.given += 1

    def send(self) -> None:
        """Let the generator's other thread send what there is."""
        if not self.unsent or self.call is None or self.has_ended:
            return
        items = [None if item < 0 else outcome.encode_value("item", item).data for item in self.unsent]
        self.unsent.clear()
        self.ask(self.call.id, "stream_items", items, main=False)

    def end(self) -> None:
        """Let the generator end, in the way that it was made for."""
        assert self.call is not None
        self.has_ended = True
        if self.ending == "death" and not self.is_told:
            self.runtime.lost(self.call.id, Death("host"))
            return
        self.has_ended = False
        self.send()
        self.has_ended = True
        if self.is_interrupted:
            stored = outcome.cancelled("generator")
        elif self.ending is None or self.is_told:
            stored = outcome.encode_value("generator", None)
        else:
            stored = outcome.encode_error(self.ending)
        self.runtime.finished(self.call.id, Outcome.of(stored))

    # The reader

    def read(self) -> None:
        """Let the reader take a step."""
        if self.is_read:
            return
        if self.random.random() < 0.02:
            self._leave()
        elif self.in_task:
            self._read_in_task()
        elif self.reading is None or self.reading.tag is not None:  # type: ignore[attr-defined]
            self._read_in_driver()

    def _leave(self) -> None:
        if self.random.random() < 0.5:
            self.is_closed = True
            self.runtime.post(self.runtime.streams.close, self.inbox.end.id)
        else:
            self.is_cancelled = True
            self.runtime.post(lambda: self.runtime.cancel(self.inbox.end.id, force=False, recursive=True, token=None))

    def _read_in_driver(self) -> None:
        self.reading = None
        bell = self.inbox.bell
        entry = self.inbox.poll()
        if entry is None and self.inbox.is_over():
            entry = self.inbox.poll()
            self.is_read = entry is None
        elif entry is None:
            self.inbox._want()
            self.reading = bell
        if entry is not None:
            self._take(entry)

    def _take(self, entry: Entry) -> None:
        assert entry.tag is Tag.VALUE
        assert entry.stored is not None
        assert outcome.decode(entry.stored, "item") == self.taken, "G1: out of order"
        self.taken += 1
        if not entry.loose:
            self.runtime.note(entry.id, -1)

    def _read_in_task(self) -> None:
        if self.reading is None:
            self.reading = self.ask(self.reader, "stream_take", self.inbox.end.id)
            return
        found = self.answer(self.reading)
        if found is None:
            return
        self.reading = None
        if found[1] is None:
            self.is_read = True
            return
        entry_id, data = found[1]
        assert outcome.decode(Stored(data), "item") == self.taken, "G1: out of order"
        assert self.runtime.objects.entries[entry_id].tag is Tag.VALUE
        self.taken += 1

    def drain(self) -> None:
        """Read to the end; raises if that does not come."""
        for _ in range(40 * (self.length + 10)):
            for act in (self.generate, self.send, self.settle, self.read, self.wait_a_little, self.settle):
                act()
            if self.is_read and self.reader:
                # What a paused generator has lent comes back at the latest now.
                self.runtime.finished(self.reader, Outcome.of(outcome.encode_value("reader", None)))
                self.reader = 0
            if self.is_read and (self.has_ended or self.call is None) and self.inbox.end.tag is not None:
                return
        raise AssertionError(f"it does not end: {vars(self)}")

    def check_end(self) -> None:
        """Check what the reader has learned, and that nothing is left."""
        if not (self.is_closed or self.is_cancelled or self.ending == "death"):
            assert self.taken == self.length, "G3: items are missing before the end"
        assert self.inbox.end.tag in self._possible_tags()
        assert not self.backend.replies.keys() & {self.asked, self.reading}
        for entry_id in self.own:
            self.runtime.note(entry_id, -1)
        self.settle()
        assert self.runtime.objects.entries == {}, "O5: values are left"
        assert self.runtime.scheduler.values == {}
        assert self.runtime.streams._inboxes == {}
        assert self.runtime.scheduler.underway == set()

    def _possible_tags(self) -> set[Tag]:
        by_itself = Tag.VALUE if self.ending is None or self.is_told else Tag.ERROR
        if self.is_interrupted or self.call is None:
            return {Tag.CANCELLED}
        return {by_itself, Tag.CANCELLED} if self.is_cancelled else {by_itself}

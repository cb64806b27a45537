"""Streams, on the driver's side: what generators and their readers in tasks ask. A part of the runtime.

Everything here runs in the loop thread; ``polyexec.inbox`` says what readers share with it. A paused generator waits,
as a task waits for a value, for an id of no entry; so it lends its cpus, can be interrupted, and counts in the search
for deadlocks. Whoever reads in a task waits in the same way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from polyexec.inbox import CLOSED, Inbox
from polyexec.session import Entry
from polyexec.spi import Value
from polyexec.stored import Head, Stored, Tag
from polyexec.tasks import TaskData

if TYPE_CHECKING:
    from polyexec.runtime import Runtime

Item: TypeAlias = bytes | tuple[bytes, tuple[bytes, ...]] | None
"""An encoded item as a worker sends it: without buffers, with small ones, or None if it came before by itself."""

_GRACE = 0.2
"""Seconds that a generator gets to come to its next ``yield`` when it shall stop, before it is interrupted."""

_GATHER = 0.002
"""Seconds for which room is let gather before a paused generator goes on, as long as its reader has something left."""


class Streams:
    """Answers what streams and their readers in tasks ask.

    Args:
        runtime: what it is a part of.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._inboxes: dict[int, Inbox] = {}
        self._is_closing = False
        runtime.requests.serve("stream_room", self._on_room)
        runtime.requests.serve("stream_items", self._on_items)
        runtime.requests.serve("stream_value", self._on_value)
        runtime.requests.serve("stream_take", self._on_take)
        runtime.requests.serve("stream_close", self._on_close)

    def open(self, data: TaskData, parent: int | None) -> None:
        """Take a stream that is about to be submitted.

        Args:
            data: its task; has an inbox if the driver reads it.
            parent: the task that reads it, None if the driver does.
        """
        end = data.entries[0]
        inbox = data.inbox or Inbox(self._runtime, end, data.spec.buffer, None, self._reader(parent))
        self._inboxes[end.id] = inbox
        end.add_waiter(lambda _: self._end(inbox))
        if self._is_closing and inbox.reader is None:
            self._cut(inbox)

    def _reader(self, parent: int | None) -> int | None:
        task = self._runtime.scheduler.tasks.get(parent) if parent is not None else None
        # What a method has made any other of its actor may read.
        return parent if task is None or task.actor is None else task.actor

    def _end(self, inbox: Inbox) -> None:
        self._forget_room(inbox)
        self._ring(inbox)

    def close(self, stream_id: int) -> None:
        """Stop a generator, at its ``yield`` if it is there or comes there soon."""
        inbox = self._inboxes.get(stream_id)
        if inbox is not None:
            inbox.is_closed = True
            self._drop_unread(inbox)
            self._stop(inbox)

    def close_all(self) -> None:
        """Stop the generators whose items the driver would read: it has closed the executor instead."""
        self._is_closing = True
        for inbox in tuple(self._inboxes.values()):
            if inbox.reader is None:
                self._cut(inbox)

    def all(self) -> tuple[Inbox, ...]:
        """Give the streams of which something is still to come, or to be read."""
        return tuple(self._inboxes.values())

    def is_stopping(self, task_id: int) -> bool:
        """Say whether a task is a stream that has been told to stop, or soon is."""
        inbox = self._inboxes.get(task_id)
        return inbox is not None and inbox.is_stopped

    def _cut(self, inbox: Inbox) -> None:
        if not inbox.is_over():
            inbox.is_cut = True
            self._stop(inbox)

    def _stop(self, inbox: Inbox) -> None:
        if inbox.is_stopped:
            return
        inbox.is_stopped = True
        self._ring(inbox)
        task = self._runtime.scheduler.tasks.get(inbox.end.id)
        if inbox.room is not None:
            self._go_on(inbox)
        elif task is not None and task.call is not None:
            self._runtime.scheduler.timers.after(_GRACE, lambda: self._interrupt(inbox))
        else:
            self._interrupt(inbox)

    def _interrupt(self, inbox: Inbox) -> None:
        if not inbox.is_ending:
            self._runtime.scheduler.cancel(inbox.end.id, force=False, recursive=False, token=None)

    def forget(self, stream_id: int) -> None:
        """Learn that the end of a stream is known, and that nobody refers to it any more."""
        inbox = self._inboxes.pop(stream_id, None)
        if inbox is not None:
            inbox.is_closed = inbox.is_stopped = True
            self._drop_unread(inbox)

    def _drop_unread(self, inbox: Inbox) -> None:
        while inbox.unread or inbox.early:
            item = (inbox.unread or inbox.early).popleft()
            if isinstance(item, Entry):
                self._runtime.objects.refer([item.id], -1)

    # What a generator asks

    def _on_room(self, request_id: object, call_id: int, main: bool, value: Value, given: int) -> None:
        inbox = self._inbox_of(call_id)
        if inbox is None:
            self._runtime.requests.reply(request_id, "ok", CLOSED)
            return
        inbox.given = given
        inbox.is_paused = True
        if inbox.is_stopped or inbox.allowed > given:
            inbox.is_paused = False
            self._say_room(request_id, inbox)
            return
        # That of an attempt before this one.
        self._forget_room(inbox)
        inbox.room = self._runtime.new_id()
        self._promise_room(inbox)

        name = inbox.end.name
        self._runtime.requests.block(
            request_id, call_id, main, inbox.room, name, lambda: self._say_room(request_id, inbox)
        )

    def _say_room(self, request_id: object, inbox: Inbox) -> None:
        # It is at a ``yield``, so that it need not be interrupted any more.
        inbox.is_ending = inbox.is_stopped
        self._runtime.requests.reply(request_id, "ok", inbox.allowed)

    def _promise_room(self, inbox: Inbox) -> None:
        """Say who makes the room come that a generator waits for, so that a deadlock can be told from a pause."""
        scheduler = self._runtime.scheduler
        if inbox.room is None:
            return
        if inbox.reader is None or inbox.given > inbox.arrived:
            # What is on its way may be just what the reader waits for.
            scheduler.underway.add(inbox.room)
        else:
            scheduler.underway.discard(inbox.room)
            self._promise(inbox.room, inbox.reader)

    def _promise(self, value: int, task_id: int) -> None:
        """Say that something arrives when a task goes on, or when it ends at the latest."""
        task = self._runtime.scheduler.tasks.get(task_id)
        if task is not None:
            task.gives.add(value)
        else:
            # It has just ended, and what follows from that is on its way.
            self._runtime.scheduler.underway.add(value)

    def _arrive(self, value: int, task_id: int | None) -> None:
        scheduler = self._runtime.scheduler
        scheduler.underway.discard(value)
        if task_id in scheduler.tasks:
            scheduler.tasks[task_id].gives.discard(value)
        scheduler.arrive(value, Tag.VALUE)
        scheduler.forget(value)

    def want(self, inbox: Inbox) -> None:
        """Learn that somebody waits for an item."""
        inbox.is_wanted = True
        self.look(inbox)

    def look(self, inbox: Inbox) -> None:
        """Let a paused generator go on, if there is room, or soon if its reader has enough to do."""
        if inbox.room is None:
            return
        inbox.is_paused = True
        room = inbox.allowed - inbox.given
        if room > 0 and (2 * room >= inbox.buffer or not inbox.unread):
            self._go_on(inbox)
        elif room > 0 and not inbox.is_gathering:
            inbox.is_paused, inbox.is_gathering = False, True
            self._runtime.scheduler.timers.after(_GATHER, lambda: self._end_gathering(inbox))

    def _end_gathering(self, inbox: Inbox) -> None:
        inbox.is_gathering = False
        if inbox.room is not None and inbox.allowed > inbox.given:
            self._go_on(inbox)

    def _go_on(self, inbox: Inbox) -> None:
        inbox.is_paused = False
        self._forget_room(inbox)

    def _forget_room(self, inbox: Inbox) -> None:
        room, inbox.room = inbox.room, None
        if room is not None:
            self._arrive(room, inbox.reader)

    def _on_items(self, request_id: object, call_id: int, main: bool, value: Value, items: list[Item]) -> None:
        inbox = self._inbox_of(call_id)
        if inbox is None or inbox.is_stopped:
            self._runtime.requests.reply(request_id, "ok", CLOSED)
            return
        self._note_first(call_id)
        for item in items:
            inbox.unread.append(inbox.early.popleft() if item is None else _stored(item))
        inbox.arrived += len(items)
        inbox.is_wanted = False
        self._promise_room(inbox)
        self._ring(inbox)
        self._runtime.requests.reply(request_id, "ok", inbox.allowed)

    def _on_value(self, request_id: object, call_id: int, main: bool, value: Value, head: bytes) -> None:
        """Take an item that is large, or refers to others; its place is told by ``stream_items``."""
        inbox = self._inbox_of(call_id)
        task = self._runtime.scheduler.running[call_id].task
        entry = self._runtime.new_entries(task.name, 1)[0]
        entry.attempts = task.attempts
        self._runtime.put(entry, Head.decode(head)[0], value.handle, value.stored)
        if inbox is None or inbox.is_stopped:
            self._runtime.objects.refer([entry.id], -1)
        else:
            self._note_first(call_id)
            inbox.early.append(entry)
        self._runtime.requests.reply(request_id, "ok", None)

    def _note_first(self, call_id: int) -> None:
        # What has been given cannot be taken back, so that the task must not run again from here on.
        self._runtime.scheduler.running[call_id].task.retries = 0

    def _inbox_of(self, call_id: int) -> Inbox | None:
        return self._inboxes.get(self._runtime.scheduler.running[call_id].task.id)

    def _ring(self, inbox: Inbox) -> None:
        """Wake those who wait for an item, or for the end."""
        bell, inbox.bell = inbox.bell, Entry(0, inbox.end.name)
        self._runtime.objects.ring(bell)
        if bell.callbacks:
            self._runtime.call_back([bell])
        takers, inbox.takers = inbox.takers, []
        for taker in takers:
            self._arrive(taker, inbox.end.id)

    # What a reader in a task asks

    def _on_take(self, request_id: object, call_id: int, main: bool, value: Value, stream_id: int) -> None:
        inbox = self._inboxes.get(stream_id)
        if inbox is None or (not inbox.unread and inbox.is_over()):
            self._runtime.requests.reply(request_id, "ok", None)
        elif inbox.unread:
            self._give(request_id, call_id, inbox)
        else:
            taker = self._runtime.new_id()
            inbox.takers.append(taker)
            self._promise(taker, stream_id)

            def answer() -> None:
                self._on_take(request_id, call_id, main, value, stream_id)

            self._runtime.requests.block(request_id, call_id, main, taker, inbox.end.name, answer)
            self.want(inbox)

    def _give(self, request_id: object, call_id: int, inbox: Inbox) -> None:
        entry = inbox.poll()
        assert entry is not None
        data = entry.stored.data if entry.stored is not None and not entry.stored.buffers else None
        self._runtime.expose(entry)
        self._runtime.requests.keep(call_id, [entry])
        self._runtime.requests.reply(request_id, "ok", (entry.id, data))

    def _on_close(self, request_id: object, call_id: int, main: bool, value: Value, stream_id: int) -> None:
        self.close(stream_id)
        self._runtime.requests.reply(request_id, "ok", None)


def _stored(item: bytes | tuple[bytes, tuple[bytes, ...]]) -> Stored:
    return Stored(item) if isinstance(item, bytes) else Stored(*item)

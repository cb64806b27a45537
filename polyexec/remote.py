"""The session of a running task: it asks the driver, through the uplink that its backend provides.

State: ``_entries`` is filled and read by any thread of the task through atomic dict operations. ``_pinned`` and
``_dropped`` are append-only queues, because a Future may be collected inside any other code; who sends the next
request settles them. A request takes no lock here.
"""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from polyexec import lanes, outcome, shipped
from polyexec.errors import DeadlockError, ForkedExecutor, Interrupted, ObjectLost, PolyexecError
from polyexec.future import Future
from polyexec.options import DEFAULT_OPTIONS, TaskOptions
from polyexec.output import Output
from polyexec.packages import Packages
from polyexec.prepare import Prepared, prepare_actor, prepare_method, prepare_task
from polyexec.remote_items import RemoteItems
from polyexec.session import ClusterResources, Entry, Info, ItemSource, Session, task_session
from polyexec.shipping import Shipment, Shipments
from polyexec.spi import Interrupts, Uplink
from polyexec.stored import Buffer, Head, Stored, Tag
from polyexec.wire import PROBE, GangSpec, Role

if TYPE_CHECKING:
    from polyexec.dump import Dump

_INLINE = 64 * 1024
"""Bytes up to which a value without buffers is a part of the request that brings it."""


class RemoteSession(Session):
    """What ``polyexec.current()`` stands on.

    Args:
        executor_id: the executor.
        uplink: the way to the driver.
        inline: a submitted task runs in the submitting thread.
        interrupts: how bodies are interrupted here, for a body that runs calls of its own; None if none may.
        speaker: the call of such a body in whose name this session asks; None for the body itself.
        name: of the task, for what it prints; None if what is printed now belongs to no task.
        task_id: of the task, for the same.
        packages: what was sent along with the task.
        in_place: see ``Setup``.
    """

    def __init__(
        self,
        executor_id: str,
        uplink: Uplink,
        *,
        inline: bool,
        interrupts: Interrupts | None = None,
        speaker: int | None = None,
        name: str | None = "",
        task_id: int = 0,
        packages: Packages | None = None,
        in_place: bool = False,
    ) -> None:
        self.executor_id = executor_id
        self.uplink = uplink
        self.interrupts = interrupts
        self.name = name
        self.task_id = task_id
        self.packages = packages
        self.in_place = in_place
        self._shipments: Shipments | None = None
        self.body: RemoteSession | None = None
        self._speaker = speaker
        self._outputs: dict[None, Output] = {}
        self._inline = inline
        self._thread = threading.get_ident()
        self._pid = os.getpid()
        self._entries: weakref.WeakValueDictionary[int, Entry] = weakref.WeakValueDictionary()
        self._pinned: deque[int] = deque()
        self._dropped: deque[int] = deque()
        self._held: Counter[int] = Counter()
        self._made: deque[int] | None = None

    def live_on(self) -> None:
        """Keep account of what is referred to beyond the calls that run here; from now on ``changes`` tells it."""
        self._made = deque()

    def speaking_for(self, call_id: int, name: str, task_id: int) -> RemoteSession:
        """Give the session of a call that runs in the body of this one's; it shares all that this one knows.

        Args:
            call_id: in whose name it asks.
            name: of the task of that call.
            task_id: of that task.

        Returns:
            The session, for this thread.
        """
        twin = copy.copy(self)
        twin._speaker, twin._thread, twin._outputs = call_id, threading.get_ident(), {}
        twin.name, twin.task_id = name, task_id
        twin.body = self
        return twin

    def is_akin(self, other: Session) -> bool:
        """Compare bodies."""
        return isinstance(other, RemoteSession) and (self.body or self) is (other.body or other)

    def speaker_here(self) -> RemoteSession:
        """Give the session of the call that runs here, if it is of the same body, else that of the body."""
        own = task_session()
        return own if isinstance(own, RemoteSession) and self.is_akin(own) else self.body or self

    @property
    def info(self) -> Info:
        """Ask the driver, so that tasks see the same as the driver does."""
        found, _ = self.ask("info")
        assert isinstance(found, Info)
        return found

    def submit(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], options: TaskOptions
    ) -> list[Entry]:
        """Ask the driver to run a task."""
        shipment = self._ship(options)
        task = self._prepared(shipment, function, args, kwargs, options, Role.TASK)
        with lanes.opened() if self._inline else contextlib.nullcontext() as lane:
            first, _ = self.ask("submit", task.spec, lane, value=task.body)
            if lane is not None:
                lanes.serve(lane)
        if lane is not None:
            self.ask("served", first)
        count = task.spec.num_returns
        return [self._new_entry(first + i, task.spec.name, None if count == 1 else i) for i in range(count)]

    def _prepared(
        self,
        shipment: Shipment,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: TaskOptions,
        role: Role,
    ) -> Prepared:
        # Whoever calls this keeps the shipment until the driver has the task.
        return prepare_task(
            self.executor_id,
            function,
            args,
            kwargs,
            options,
            snapshot=False,
            keep_hook=False,
            role=role,
            packages=shipment.packages,
        )

    def _ship(self, options: TaskOptions) -> Shipment:
        if self._shipments is None:
            if options.working_dir is None and not options.py_modules:
                return Shipment(self.packages)
            # Not before it is needed: the two refer to each other, and would wait for the garbage collector.
            self._shipments = Shipments(
                lambda archive: Future(self, self.put(archive)), in_place=self.in_place, given=self.packages
            )
        return self._shipments.ship(options)

    def open_stream(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], options: TaskOptions
    ) -> tuple[Entry, ItemSource]:
        """Ask the driver to run a task that gives items."""
        shipment = self._ship(options)
        task = self._prepared(shipment, function, args, kwargs, options, Role.STREAM)
        first, _ = self.ask("submit", task.spec, None, value=task.body)
        return self._new_entry(first, task.spec.name, None), RemoteItems(self, first, task.spec.name)

    def make_actor(
        self, cls: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], options: TaskOptions
    ) -> Entry:
        """Ask the driver to start an actor."""
        shipment = self._ship(options)
        task = prepare_actor(self.executor_id, cls, args, kwargs, options, snapshot=False, packages=shipment.packages)
        (actor,) = self._ask_for(task)
        if self._inline:
            self.call_actor(actor, PROBE, (), {}, DEFAULT_OPTIONS)
        return actor

    def call_actor(
        self, actor: Entry, method: str, args: Sequence[Any], kwargs: Mapping[str, Any], options: TaskOptions
    ) -> list[Entry]:
        """Ask the driver to call a method; where calls run inline it has ended when this returns, if it can."""
        task = prepare_method(self.executor_id, actor, method, args, kwargs, options, snapshot=False)
        entries = self._ask_for(task)
        if self._inline and self.ask("actor_made", actor.id)[0]:
            # If it cannot end before this call does, it is called first all the same.
            with contextlib.suppress(DeadlockError):
                self.wait(entries, len(entries), None)
        return entries

    def _ask_for(self, task: Prepared) -> list[Entry]:
        first, _ = self.ask("submit", task.spec, None, value=task.body)
        count = task.spec.num_returns
        return [self._new_entry(first + i, task.spec.name, None if count == 1 else i) for i in range(count)]

    def kill(self, actor: Entry) -> bool:
        """Ask the driver to end an actor."""
        answer, _ = self.ask("kill", actor.id)
        return bool(answer)

    def put(self, value: Any) -> Entry:
        """Ask the driver to store a value."""
        stored = outcome.encode_value("put", value, stage="argument")
        entry_id, _ = self.ask("put", _head(stored), value=stored)
        entry = self._new_entry(entry_id, "put", None)
        entry.tag = Tag.VALUE
        return entry

    def promise(self, name: str) -> Entry | None:
        """Ask the driver for an entry that a task will fulfil."""
        if self._inline:
            return None
        entry_id, _ = self.ask("promise", name)
        return self._new_entry(entry_id, name, None)

    def fulfil(self, entry: Entry, value: Any) -> None:
        """Let the driver give a promised entry its value."""
        stored = outcome.encode_value(entry.name, value)
        self.ask("fulfil", entry.id, _head(stored), value=stored)

    def wait(self, entries: Sequence[Entry], count: int, timeout: float | None) -> None:
        """Let the driver say which values are there."""
        open_entries = {entry.id: entry for entry in entries if entry.tag is None}
        needed = count - (len(entries) - len(open_entries))
        if needed <= 0:
            return
        done, _ = self.ask("wait", tuple(open_entries), needed, timeout)
        for entry_id, tag in done:
            open_entries[entry_id].tag = Tag(tag)

    def fetch(self, entry: Entry) -> Stored:
        """Bring a value from the driver."""
        if entry.stored is not None:
            return entry.stored
        while True:
            try:
                note, values = self.ask("fetch", entry.id)
            except ObjectLost as lost:
                if not self.ask("lost", entry.id, lost.reason)[0]:
                    raise
            else:
                if values:
                    entry.note = note
                    return values[0]
            # It is made again, or becomes an error.
            self.ask("wait", (entry.id,), 1, None)

    def refresh(self, entry: Entry) -> None:
        """Ask the driver about a value."""
        (tag, entry.running, entry.attempts), _ = self.ask("status", entry.id)
        if tag is not None:
            entry.tag = Tag(tag)

    def cancel(self, entry: Entry, *, force: bool, recursive: bool, running: bool = True) -> bool:
        """Ask the driver to stop a task."""
        answer, _ = self.ask("cancel", entry.task_id, force, recursive, running)
        return bool(answer)

    def completed(self, entries: Sequence[Entry], timeout: float | None) -> Iterator[Entry]:
        """Wait again and again for what is left."""
        deadline = None if timeout is None else time.monotonic() + timeout
        left = list(entries)
        while left:
            if all(entry.tag is None for entry in left):
                self.wait(left, 1, None if deadline is None else max(0.0, deadline - time.monotonic()))
            ready = [entry for entry in left if entry.tag is not None]
            if not ready:
                raise TimeoutError(f"{len(left)} Futures are not done")
            left = [entry for entry in left if entry.tag is None]
            yield from ready

    def subscribe(self, entry: Entry, callback: Callable[[], None]) -> None:
        """Wait in a thread of its own, then call back."""
        if entry.tag is not None:
            callback()
            return

        def watch() -> None:
            self.wait([entry], 1, None)
            callback()

        threading.Thread(target=watch, name=f"polyexec-callback-{entry.id}", daemon=True).start()

    def resources(self) -> ClusterResources:
        """Ask the driver."""
        found, _ = self.ask("resources")
        assert isinstance(found, ClusterResources)
        return found

    def reserve(self, spec: GangSpec) -> Entry:
        """Ask the driver for bundles."""
        entry_id, _ = self.ask("reserve", spec)
        return self._new_entry(entry_id, "reserve", None)

    def unreserve(self, reservation: int) -> None:
        """Let the driver give bundles back."""
        self.ask("unreserve", reservation)

    def reserved(self, reservation: int) -> tuple[str | None, ...] | None:
        """Ask the driver where bundles are."""
        nodes, _ = self.ask("reserved", reservation)
        return None if nodes is None else tuple(nodes)

    def announce(self) -> None:
        """Tell the driver that the body begins."""
        self.ask("started")

    def pin(self, entry_id: int, name: str, item: int | None) -> Entry:
        """Give the entry for one more Future; the driver keeps what a task may refer to until the task ends."""
        self._pinned.append(entry_id)
        return self._entry(entry_id, name, item)

    def adopt(self, entry: Entry) -> Entry:
        """Give the task's own view of an entry of the driver's."""
        return self._entry(entry.id, entry.name, entry.item)

    def release(self, entry: Entry) -> None:
        """Note that a Future is gone; the driver learns it with the next request."""
        self._dropped.append(entry.id)

    def dump(self, timeout: float) -> Dump:
        """Ask the driver, with a bound, and look at the threads here."""
        from polyexec.dumping import dump_of_task

        return dump_of_task(self, timeout)

    def close(self, *, cancel_pending: bool) -> None:
        """Do nothing: the executor belongs to the driver."""

    def _entry(self, entry_id: int, name: str, item: int | None) -> Entry:
        entry = self._entries.get(entry_id)
        if entry is None:
            entry = self._entries[entry_id] = Entry(entry_id, name, item)
        return entry

    def _new_entry(self, entry_id: int, name: str, item: int | None) -> Entry:
        if self._made is None:
            self._held[entry_id] += 1
        else:
            self._made.append(entry_id)
        return self._entry(entry_id, name, item)

    def receive(self, entry_id: int, name: str, data: bytes | None) -> Entry:
        """Give the entry of a value that the driver holds for this task, and has sent already if it is small."""
        entry = self._new_entry(entry_id, name, None)
        entry.tag, entry.attempts = Tag.VALUE, 1
        entry.stored = None if data is None else Stored(data)
        return entry

    def _released(self) -> tuple[int, ...]:
        """Give the values that this task has made and does not refer to any more."""
        return () if self._made is not None else self._count(self._net())[1]

    def changes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Give the values that are newly referred to here, and those that are not any more; for one thread alone."""
        net = self._net()
        assert self._made is not None
        for _ in range(len(self._made)):
            self._held[self._made.popleft()] += 1
        return self._count(net)

    def _net(self) -> Counter[int]:
        # In this order: what is dropped was pinned before, so that nothing seems gone which is only half counted.
        net: Counter[int] = Counter()
        for queue, sign in ((self._dropped, -1), (self._pinned, 1)):
            for _ in range(len(queue)):
                with contextlib.suppress(IndexError):
                    net[queue.popleft()] += sign
        return net

    def _count(self, net: Counter[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        kept, gone = [], []
        for entry_id, change in net.items():
            if entry_id in self._held:
                self._held[entry_id] += change
                if self._held[entry_id] <= 0:
                    del self._held[entry_id]
                    gone.append(entry_id)
            elif change > 0 and self._made is not None:
                self._held[entry_id] = change
                kept.append(entry_id)
        return tuple(kept), tuple(gone)

    def ask(self, kind: str, *fields: Any, value: Stored | None = None) -> tuple[Any, Sequence[Stored]]:
        """Ask the driver for something, and wait for its answer.

        Args:
            kind: what is asked for; see ``polyexec.requests``.
            *fields: of the request; anything that pickle takes.
            value: goes with it.

        Returns:
            The answer, and the values that came with it.

        Raises:
            Interrupted: the call is being stopped.
            PolyexecError: the answer is an error.
        """
        if self._is_forked():
            raise ForkedExecutor(
                f"the executor of a task cannot be used in a process forked by it; this is process {os.getpid()}"
            )
        main = threading.get_ident() == self._thread
        apart = value is not None and bool(value.buffers or len(value.data) > _INLINE)
        data = None if value is None or apart else value.data
        message = pickle.dumps((kind, main, self._released(), fields, data, self._speaker))
        buffers = (value.data, *value.buffers) if value is not None and apart else ()
        with shipped.waiting():
            reply, values = self.uplink.request(Stored(message, buffers))
        status, answer = pickle.loads(reply)
        if status == "interrupted":
            raise Interrupted
        if status == "error":
            error = outcome.decode_error(Stored(answer))
            assert isinstance(error, PolyexecError)
            raise error
        return answer, values

    def tell(self, kind: str, *fields: Any, buffers: Sequence[Buffer] = ()) -> None:
        """Tell the driver something, without an answer; in a forked process, do nothing. Does not wait.

        Args:
            kind: what is told; see ``polyexec.tidings``.
            *fields: of the message; anything that pickle takes.
            buffers: go with it.

        Raises:
            PolyexecError: the message found no room on its way.
        """
        if not self._is_forked():
            self.uplink.tell(Stored(pickle.dumps((kind, self._speaker, fields)), buffers))

    def output(self) -> Output:
        """Give what takes what the task prints."""
        return self._outputs.get(None) or self._outputs.setdefault(None, Output(self))

    def finish_output(self) -> None:
        """Tell the driver what the task has printed; when its body has ended, before anybody learns of that."""
        if self._outputs:
            self._outputs[None].finish()

    def send_output(self) -> None:
        """Tell the driver the whole lines that were printed; not for bodies, which may be interrupted."""
        if self._outputs:
            self._outputs[None].send()

    def _is_forked(self) -> bool:
        return os.getpid() != self._pid


def _head(stored: Stored) -> bytes:
    return stored.data[: Head.decode(stored.data)[1]]

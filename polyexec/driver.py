"""The driver's session: the public operations of an executor, in the threads of its users.

It shares nothing with the loop but what ``Runtime`` and ``ObjectTable`` say; every wait ends by a notification from
the loop, by its timeout, or by Ctrl-C.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from polyexec import lanes, outcome
from polyexec.closing import Closing
from polyexec.errors import ExecutorClosed, ForkedExecutor, ObjectLost, PolyexecError
from polyexec.feasibility import check_gang, check_own
from polyexec.future import Future
from polyexec.inbox import Inbox
from polyexec.mailbox import Mailbox
from polyexec.options import DEFAULT_OPTIONS, TaskOptions
from polyexec.prepare import Prepared, prepare_actor, prepare_method, prepare_task
from polyexec.runtime import Runtime, log_unretrieved
from polyexec.session import ClusterResources, Entry, Info, ItemSource, Session, drivers
from polyexec.shipping import Shipments
from polyexec.spi import Backend
from polyexec.stored import Head, Stored, Tag
from polyexec.tasks import TaskData
from polyexec.wire import PROBE, GangSpec, Role, TaskSpec

if TYPE_CHECKING:
    from polyexec.dump import Dump
    from polyexec.recording import Recorder
    from polyexec.security import SecurityReport

_LARGE = 1 << 20


_pid = [os.getpid()]
"""The id of this process; asking the system for each call would take as long as taking the call."""

os.register_at_fork(after_in_child=lambda: _pid.__setitem__(0, os.getpid()))


class DriverSession(Session):
    """What ``polyexec.connect`` gives an executor to stand on.

    Args:
        backend: opened by the caller, with the runtime as its host.
        runtime: the loop.
        info: what the executor shows.
    """

    def __init__(self, backend: Backend, runtime: Runtime, info: Info) -> None:
        self.executor_id = runtime.executor_id
        self._backend = backend
        self._runtime = runtime
        self._pid = os.getpid()
        # Which thread has made which reservation.
        self._reserved: dict[int, int] = {}
        self._closing = Closing(backend, runtime)
        self._closed = self._closing.closed
        drivers[self.executor_id] = self
        runtime.info = info
        runtime.start()
        self._plain = runtime.plain
        self._loop = runtime.loop
        self._display = runtime.display
        self._owed = runtime.display.owed
        in_place = backend.capabilities.shares_arguments
        self._shipments = Shipments(lambda archive: Future(self, self.put(archive)), in_place=in_place)
        # Keeps the session alive: an executor that is dropped without close finishes its tasks, as those of
        # concurrent.futures do.
        atexit.register(self.close_at_exit)

    @property
    def info(self) -> Info:
        """What the executor shows."""
        return self._runtime.info

    def submit(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], options: TaskOptions
    ) -> list[Entry]:
        """Take a task."""
        self._check()
        if self._plain is not None and options.is_plain and callable(function):
            entry = self._plain.submit(function, args, kwargs, options)
            if entry is not None:
                return [entry]
        data = self._prepared(function, args, kwargs, options, Role.TASK)
        with lanes.opened() if self._backend.capabilities.inline else contextlib.nullcontext() as lane:
            data.lane = lane
            self._runtime.post(self._runtime.submit, data, None)
            if lane is not None:
                self._runtime.hooks.step_aside()
                lanes.serve(lane)
        return data.entries

    def _prepared(
        self,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: TaskOptions,
        role: Role,
    ) -> TaskData:
        """Make a task that the loop can take; what it refers to is noted."""
        capabilities = self._backend.capabilities
        shares = capabilities.shares_arguments
        shipment = self._shipments.ship(options)
        task = prepare_task(
            self.executor_id,
            function,
            args,
            kwargs,
            options,
            snapshot=not shares,
            keep_hook=True,
            role=role,
            packages=shipment.packages,
        )
        self._runtime.check_feasible(task.spec)
        if capabilities.inline and self._reserved:
            self._check_own(task.spec)
        return self._data(task, task.call if shares else None)

    def _data(self, task: Prepared, shared: tuple[Any, ...] | None) -> TaskData:
        runtime, spec = self._runtime, task.spec
        runtime.keep_folder(spec)
        entries = runtime.new_entries(spec.name, spec.num_returns)
        for value in (*spec.dependencies, *spec.references):
            runtime.objects.note(value, 1)
        return TaskData(spec, task.body, shared, entries)

    def _post(self, task: Prepared, shared: tuple[Any, ...] | None) -> list[Entry]:
        data = self._data(task, shared)
        self._runtime.post(self._runtime.submit, data, None, ("thread", threading.get_ident()))
        return data.entries

    def open_stream(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], options: TaskOptions
    ) -> tuple[Entry, ItemSource]:
        """Take a task that gives items."""
        self._check()
        data = self._prepared(function, args, kwargs, options, Role.STREAM)
        end = data.entries[0]
        data.inbox = Inbox(self._runtime, end, options.buffer, self)
        self._runtime.post(self._runtime.submit, data, None)
        return end, data.inbox

    def make_actor(
        self, cls: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], options: TaskOptions
    ) -> Entry:
        """Take an actor."""
        self._check()
        shares = self._backend.capabilities.shares_arguments
        shipment = self._shipments.ship(options)
        task = prepare_actor(
            self.executor_id, cls, args, kwargs, options, snapshot=not shares, packages=shipment.packages
        )
        self._runtime.check_feasible(task.spec)
        (actor,) = self._post(task, task.call if shares else None)
        if self._backend.capabilities.inline:
            self.call_actor(actor, PROBE, (), {}, DEFAULT_OPTIONS)[0].retrieved = True
        return actor

    def call_actor(
        self, actor: Entry, method: str, args: Sequence[Any], kwargs: Mapping[str, Any], options: TaskOptions
    ) -> list[Entry]:
        """Take a call; where calls run inline it has ended when this returns."""
        self._check()
        task = prepare_method(self.executor_id, actor, method, args, kwargs, options, snapshot=True)
        entries = self._post(task, None)
        if self._backend.capabilities.inline and self._is_made(actor):
            self.wait(entries, len(entries), None)
        return entries

    def _is_made(self, actor: Entry) -> bool:
        answer = Mailbox[bool](self._loop)
        self._runtime.post(lambda: answer.put(self._runtime.desk.is_made(actor.id)))
        return answer.take()

    def kill(self, actor: Entry) -> bool:
        """End an actor."""
        self._check_process()
        if actor.tag is not None or self._closed.is_set():
            return False
        answer = Mailbox[bool](self._loop)
        self._runtime.post(self._runtime.scheduler.actors.kill, actor.id, answer)
        return True if self._runtime.in_loop() else answer.take()

    def put(self, value: Any) -> Entry:
        """Serialise a value, and give it to the engine or keep it."""
        self._check()
        stored = outcome.encode_value("put", value, stage="argument")
        head, _ = Head.decode(stored.data)
        for inner in head.references:
            self._runtime.objects.note(inner, 1)
        if stored.nbytes >= _LARGE and not self._runtime.in_loop():
            # What was dropped just now makes room, in memory that is faster than new memory.
            dropped = Mailbox[bool](self._loop)
            self._runtime.post(dropped.put, True)
            dropped.take()
        handle = self._backend.put(stored)
        entry = self._runtime.new_entries("put", 1)[0]
        # What the engine does not keep must not change with the caller's own memory (S2); bytes are not copied by this.
        kept = None if handle is not None else Stored(stored.data, tuple(map(bytes, stored.buffers)))
        entry.stored, entry.handle, entry.tag = kept, handle, head.tag
        self._runtime.post(self._keep, entry, head, handle, kept)
        return entry

    def _keep(self, entry: Entry, head: Head, handle: object | None, stored: Stored | None) -> None:
        """Run in the loop: take the value; its inner references, noted by ``put``, are counted with it now."""
        self._runtime.objects.settle_notes()
        self._runtime.put(entry, head, handle, stored)
        self._runtime.objects.refer(head.references, -1)

    def promise(self, name: str) -> Entry | None:
        """Make an entry that a task will fulfil."""
        self._check()
        if self._backend.capabilities.inline:
            return None
        entry = self._runtime.new_entries(name, 1)[0]
        entry.promised = True
        return entry

    def fulfil(self, entry: Entry, value: Any) -> None:
        """Give a promised entry its value."""
        self._check()
        stored = outcome.encode_value(entry.name, value, snapshot=True)
        self._runtime.post(self._runtime.fulfil, entry.id, stored)

    def wait(self, entries: Sequence[Entry], count: int, timeout: float | None) -> None:
        """Block until enough entries are settled."""
        self._check_process()
        # A retry hook may wait for a task that waits for its own.
        self._runtime.hooks.step_aside()
        deadline = None if timeout is None else time.monotonic() + timeout
        objects = self._runtime.objects
        while True:
            # The count first: it grows after the tags are set, so that nothing is missed that is settled in between.
            before = objects.settled_count
            enough = before + count - _settled(entries, count)
            left = _left(deadline)
            if enough <= before or (left is not None and left <= 0):
                return
            # Values that others wait for count as well; then there is one round more.
            if not self._loop.visit_until(partial(objects.have_settled, enough), left, alone=self._is_alone()):
                self._wait_helplessly(entries, count, left)

    def _is_alone(self) -> bool:
        return self._plain is not None and self._plain.express.has_at_most_one()

    def _wait_helplessly(self, entries: Sequence[Entry], count: int, timeout: float | None) -> None:
        arrived = Mailbox[Entry](self._loop)
        watched = [entry for entry in entries if self._watch(entry, arrived.put)]
        try:
            self._collect(entries, count, arrived, timeout)
        finally:
            for entry in watched:
                self._unwatch(entry, arrived.put)

    @staticmethod
    def _collect(entries: Sequence[Entry], count: int, arrived: Mailbox[Entry], timeout: float | None) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        settled = {entry.id for entry in entries if entry.tag is not None}
        while len(settled) < count:
            try:
                settled.add(arrived.take(_left(deadline)).id)
            except queue.Empty:
                return

    @staticmethod
    def _watch(entry: Entry, notify: Callable[[Entry], None]) -> bool:
        """Let the loop notify; say whether it will, or the entry is settled already."""
        if entry.tag is not None:
            return False
        entry.add_waiter(notify)
        return True

    @staticmethod
    def _unwatch(entry: Entry, notify: Callable[[Entry], None]) -> None:
        # The loop may clear them at any time.
        assert entry.waiters is not None
        with contextlib.suppress(ValueError):
            entry.waiters.remove(notify)

    def completed(self, entries: Sequence[Entry], timeout: float | None) -> Iterator[Entry]:
        """Give entries in the order in which they are settled."""
        self._check_process()
        self._runtime.hooks.step_aside()
        arrived = Mailbox[Entry](self._loop)
        left = {entry.id for entry in entries}
        for entry in entries:
            self._watch(entry, arrived.put)
        for entry in entries:
            if entry.tag is not None:
                arrived.put(entry)
        deadline = None if timeout is None else time.monotonic() + timeout
        while left:
            try:
                entry = arrived.take(_left(deadline))
            except queue.Empty:
                raise TimeoutError(f"{len(left)} Futures are not done") from None
            if entry.id in left:
                left.discard(entry.id)
                yield entry

    def fetch(self, entry: Entry) -> Stored:
        """Give the bytes of a settled entry."""
        if entry.task_id in self._owed and self._pid == _pid[0]:
            # What the task has printed comes before what the program says about its result (D2).
            self._display.settle()
        while True:
            stored, handle = entry.stored, entry.handle
            if stored is not None:
                return stored
            self._check_process()
            if self._closed.is_set():
                raise ObjectLost(entry.name, "the executor was closed before the value was asked for")
            try:
                if handle is not None:
                    return self._backend.get(handle)
            except ObjectLost as lost:
                reason = lost.reason
            else:
                reason = ""
            # It is made again, or becomes an error.
            answer = Mailbox[bool](self._loop)
            self._runtime.post(self._runtime.await_again, entry, handle, reason, answer.put)
            answer.take()

    def refresh(self, entry: Entry) -> None:
        """Look at a plain call; of all others the loop keeps the entries up to date."""
        self._check_process()
        call = entry.plain
        if call is not None:
            entry.running = bool(call.seat)
            entry.attempts = int(entry.running)

    def cancel(self, entry: Entry, *, force: bool, recursive: bool, running: bool = True) -> bool:
        """Stop a task."""
        self._check_process()
        if entry.tag is not None or self._closed.is_set():
            return False
        answer = Mailbox[bool | PolyexecError](self._loop)
        runtime = self._runtime
        how = {"force": force, "recursive": recursive, "running": running}
        runtime.post(lambda: runtime.cancel_entry(entry, entry.task_id, token=answer, **how))
        # An abandoned map, for example, cancels wherever it is collected; the loop cannot wait for itself.
        found = True if runtime.in_loop() else answer.take()
        if isinstance(found, PolyexecError):
            raise found
        return found

    def subscribe(self, entry: Entry, callback: Callable[[], None]) -> None:
        """Call back in the callback thread, or here and now."""
        self._check_process()
        entry.add_callback(callback)
        if entry.tag is not None and _taken(entry, callback):
            callback()

    def resources(self) -> ClusterResources:
        """Ask the loop."""
        self._check()
        answer = Mailbox[ClusterResources](self._loop)
        self._runtime.post(lambda: answer.put(self._runtime.resources()))
        return answer.take()

    def reserve(self, spec: GangSpec) -> Entry:
        """Let the loop take the bundles now, or when there is room."""
        self._check()
        check_gang(spec, self._runtime.capacity)
        entry = self._runtime.new_entries("reserve", 1)[0]
        try:
            self._in_loop(lambda: self._runtime.reserving.take(entry, spec, None))
        except BaseException:
            self.unreserve(entry.id)
            raise
        self._reserved[entry.id] = threading.get_ident()
        return entry

    def _check_own(self, spec: TaskSpec) -> None:
        thread, places = threading.get_ident(), self._runtime.scheduler.reservations.places
        own = [reservation for reservation, maker in tuple(self._reserved.items()) if maker == thread]
        check_own(spec, self._runtime.capacity, places, own)

    def unreserve(self, reservation: int) -> None:
        """Let the loop give bundles back; they are when this returns."""
        self._check_process()
        self._reserved.pop(reservation, None)
        if not self._closed.is_set():
            self._in_loop(lambda: self._runtime.reserving.close(reservation))

    def reserved(self, reservation: int) -> tuple[str | None, ...] | None:
        """Look where the loop says that bundles are."""
        self._check_process()
        return self._runtime.reserving.nodes_of(reservation)

    def _in_loop(self, job: Callable[[], None]) -> None:
        """Let the loop do something, and wait for it."""
        done = Mailbox[bool](self._loop)

        def run() -> None:
            try:
                job()
            finally:
                done.put(True)

        self._runtime.post(run)
        # A finaliser may run in the loop, which cannot wait for itself.
        if not self._runtime.in_loop():
            done.take()

    def security(self) -> SecurityReport:
        """Tell who can reach the executor."""
        from polyexec.security import report

        self._check()
        return report(self.info, self.executor_id, self._backend.protection())

    def recorder(self, *, begin: bool) -> Recorder | None:
        """Give the recorder; it is complete from here on for whoever submits afterwards."""
        self._check_process()
        runtime = self._runtime
        if runtime.recorder is None and begin:
            if runtime.closing:
                raise ExecutorClosed("the executor is closed, and was not recorded; connect with events=True")
            begun: Mailbox[Recorder] = Mailbox(self._loop)
            runtime.post(lambda: begun.put(runtime.record()))
            return begun.take()
        return runtime.recorder

    def dump(self, timeout: float) -> Dump:
        """Ask the loop and the backend, with a bound, and look at the threads here."""
        from polyexec.dumping import dump_of_driver

        self._check_process()
        return dump_of_driver(self, self._runtime, self._backend, timeout)

    @property
    def status(self) -> str:
        """Say how the executor is, in a word."""
        if self._closed.is_set():
            return "closed"
        return "closing" if self._runtime.closing else "open" if self._runtime.failure is None else "failed"

    def pin(self, entry_id: int, name: str, item: int | None) -> Entry:
        """Give the entry for one more Future."""
        entry = self._runtime.objects.entries.get(entry_id)
        if entry is None:
            raise ObjectLost(name, "its last Future is gone, and it has been freed")
        self._runtime.objects.note(entry_id, 1)
        return entry

    def expose(self, entry: Entry) -> None:
        """Make an entry known by its id."""
        self._runtime.expose(entry)

    def adopt(self, entry: Entry) -> Entry:
        """Give the entry itself: all of the driver's are its own."""
        return entry

    def release(self, entry: Entry) -> None:
        """Note that a Future is gone."""
        if self._pid != _pid[0]:
            # What belongs to the loop may have been in any state when this process was forked.
            return
        if entry.loose:
            entry.count = 0
            if entry.id in self._runtime.objects.entries:
                # The loop has exposed it at this very moment.
                self._runtime.note(entry.id, 0)
        elif not self._closed.is_set():
            self._runtime.note(entry.id, -1)
        elif entry.tag is Tag.ERROR and not entry.retrieved and entry.stored is not None:
            entry.retrieved = True
            log_unretrieved(entry, Head.decode(entry.stored.data)[0].summary)

    def close(self, *, cancel_pending: bool) -> None:
        """End the session; a second call waits for the first. In a forked child it does nothing."""
        if os.getpid() != self._pid:
            return
        self._runtime.closing = True
        self._closing.close(cancel_pending=cancel_pending)
        atexit.unregister(self.close_at_exit)

    def close_at_exit(self) -> None:
        """Close because the interpreter exits, in a bounded time."""
        if os.getpid() == self._pid:
            self._runtime.closing = True
            self._closing.close_at_exit()

    def _check(self) -> None:
        self._check_process()
        if self._runtime.closing:
            raise ExecutorClosed("the executor is closed; connect again to submit more")
        self._runtime.check_open()

    def _check_process(self) -> None:
        if self._pid != _pid[0]:
            raise ForkedExecutor(
                f"this executor was made in process {self._pid}, before os.fork; connect again in process {os.getpid()}"
            )


def _settled(entries: Sequence[Entry], most: int) -> int:
    """Count the entries that are settled, but not beyond what is asked."""
    return sum(islice((1 for entry in entries if entry.tag is not None), most))


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _taken(entry: Entry, callback: Callable[[], None]) -> bool:
    """Take a callback back from an entry; False if the loop has it."""
    assert entry.callbacks is not None
    try:
        entry.callbacks.remove(callback)
    except ValueError:
        return False
    return True

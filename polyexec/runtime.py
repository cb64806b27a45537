"""The loop of an executor: one thread that owns the scheduler and carries out what it decides.

State and who owns it
    The scheduler, ``_data``, ``_requests`` and ``_holds`` belong to the loop thread. Other threads reach it only by
    ``post``, a queue that is safe to use inside any other code. Entries are shared as ``ObjectTable`` says. What the
    loop publishes for others to read, ``capacity`` and ``failure``, are single attributes that it replaces as a whole;
    ``closing`` is set once, by whoever closes.
    No user code and no deserialisation of user data runs in the loop.
"""

from __future__ import annotations

import itertools
import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, ClassVar

from polyexec import lanes, outcome
from polyexec.callbacks import CallbackThread
from polyexec.endings import failure_of
from polyexec.errors import BackendBroken, InfeasibleResources
from polyexec.hooks import ask_hook
from polyexec.ledger import add_up, amounts_of, need_of
from polyexec.objects import ObjectTable
from polyexec.records import (
    Answer,
    Cancelled,
    Consult,
    DependencyFailed,
    Drop,
    Ended,
    Ending,
    EndWait,
    Failed,
    Halt,
    Lend,
    Resume,
    Settle,
    Start,
    Task,
)
from polyexec.requests import Requests
from polyexec.scheduler import Scheduler
from polyexec.session import NO_INFO, ClusterResources, Entry, NodeInfo
from polyexec.spi import Backend, Call, Death, Lease, Value, Verdict
from polyexec.stored import Flag, Head, Outcome, Stored, Tag
from polyexec.tasks import TaskData
from polyexec.wire import Attempt, TaskSpec

QUEUE_LIMIT = 256
_BATCH = 256
_logger = logging.getLogger("polyexec")


class Runtime:
    """Runs the loop. It is the ``Host`` of its backend.

    Args:
        backend: what runs the calls.
        executor_id: unique text.
        setup: bytes for the workers; set before the backend is opened.
    """

    def __init__(self, backend: Backend, executor_id: str) -> None:
        self.executor_id = executor_id
        self.setup = b""
        self.info = NO_INFO
        self.backend = backend
        self.failure: Stored | None = None
        self.closing = False
        self.drained = threading.Event()
        self.callbacks = CallbackThread()
        self.objects = ObjectTable(self._free, self._forget, self._report)
        limit = QUEUE_LIMIT if backend.capabilities.queues_calls else 0
        self.scheduler = Scheduler(time.monotonic, random.random, queue_limit=limit)
        self.capacity: Sequence[dict[str, int]] = ()
        self._inbox: SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]]] = SimpleQueue()
        self._data: dict[int, TaskData] = {}
        self._calls: dict[int, int] = {}
        self._requests = Requests(self)
        self._ids = itertools.count(1)
        self._notes_posted = False
        self._stopped = False
        self._draining = False
        self._thread = threading.Thread(target=self._run, name="polyexec-loop", daemon=True)

    # For any thread

    def start(self) -> None:
        """Start the loop; the backend is open."""
        self._take_nodes()
        self._thread.start()

    def stop(self) -> None:
        """End the loop after what was posted before, and wait for its end."""
        self.post(self._stop)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def post(self, function: Callable[..., None], *args: Any) -> None:
        """Let the loop call a function."""
        self._inbox.put((function, args))

    def new_entries(self, name: str, count: int) -> list[Entry]:
        """Make the entries of a task, or of a value; each has one reference."""
        first = next(self._ids) << 20
        entries = [Entry(first + index, name, None if count == 1 else index) for index in range(count)]
        for entry in entries:
            self.objects.add(entry)
        return entries

    def note(self, entry_id: int, change: int) -> None:
        """Note that a Future has come or gone, from any thread and inside any other code."""
        self.objects.note(entry_id, change)
        if not self._notes_posted:
            self._notes_posted = True
            self.post(self._settle_notes)

    # The Host's part: called by the backend from any thread

    def started(self, call_id: int) -> None:
        """See ``Host``."""
        self.post(self.scheduler.started, call_id)

    def finished(self, call_id: int, outcome: Outcome) -> None:
        """See ``Host``."""
        self.post(self._finished, call_id, outcome)

    def lost(self, call_id: int, death: Death) -> None:
        """See ``Host``."""
        self.post(self.scheduler.lost, call_id, death)

    def stopped(self, call_id: int, verdict: Verdict) -> None:
        """See ``Host``."""
        self.post(self.scheduler.stopped, call_id, verdict)

    def request(self, request_id: object, call_id: int, message: Stored) -> None:
        """See ``Host``."""
        self.post(self._requests.handle, request_id, call_id, message)

    def nodes_changed(self) -> None:
        """See ``Host``."""
        self.post(self._take_nodes)

    def broken(self, error: BaseException) -> None:
        """See ``Host``."""
        self.post(self.fail, error)

    # In the loop

    def _run(self) -> None:
        while not self._stopped:
            self._turn()

    def _turn(self) -> None:
        try:
            message = self._inbox.get(timeout=self.scheduler.timers.pause())
            for _ in range(_BATCH):
                self._handle(*message)
                message = self._inbox.get_nowait()
            self._handle(*message)
        except queue.Empty:
            pass
        self._guarded(self._advance)

    def _handle(self, function: Callable[..., None], args: tuple[Any, ...]) -> None:
        self._guarded(function, *args)

    def _guarded(self, function: Callable[..., None], *args: Any) -> None:
        try:
            function(*args)
        except Exception as error:
            _logger.exception("internal error of the executor; all its tasks fail")
            self.fail(BackendBroken(f"internal error of the executor: {error}"))

    def _advance(self) -> None:
        self.scheduler.timers.run_due()
        self.scheduler.schedule()
        actions = self.scheduler.actions
        while actions:
            batch = tuple(actions)
            actions.clear()
            for action in batch:
                self._METHODS[type(action)](self, action)
            for action in batch:
                if isinstance(action, Drop):
                    # Last, so that what a call has made lives until its result refers to it.
                    self._drop(action)
            self.scheduler.schedule()
        if self._draining and not self.scheduler.tasks:
            self.drained.set()

    def drain(self) -> None:
        """Set ``drained`` as soon as there are no tasks."""
        self._draining = True

    def submit(self, data: TaskData, parent: int | None) -> None:
        """Take a task; what it refers to is counted, or noted, already."""
        self.objects.settle_notes()
        spec, entries = data.spec, data.entries
        if self.failure is not None:
            self._settle_all(entries, self.failure)
            self._release(data)
            return
        self._data[entries[0].id] = data
        self.scheduler.submit(
            Task(
                entries[0].id,
                spec.name,
                need_of(spec.request),
                spec.dependencies,
                parent,
                spec.num_returns,
                spec.priority,
                spec.retries,
                retry_timeout=spec.retry_timeout,
                consult=spec.retry is not None,
                timeout=spec.timeout,
                patient=spec.patient,
                function=spec.function,
            )
        )

    def check_open(self) -> None:
        """Raise if the backend has failed. From any thread; may decode an error of the user's."""
        if self.failure is not None:
            raise outcome.decode_error(self.failure)

    def check_feasible(self, spec: TaskSpec) -> None:
        """Raise ``InfeasibleResources`` if no node could ever meet the request (R3). From any thread."""
        need = need_of(spec.request)
        if spec.patient or any(all(node.get(n, 0) >= amount for n, amount in need.items()) for node in self.capacity):
            return
        existing = "; ".join(f"{amounts_of(node)} on one node" for node in self.capacity) or "no node"
        raise InfeasibleResources(spec.name, str(spec.request), existing)

    def put(self, entry: Entry, head: Head, handle: object | None, stored: Stored | None) -> None:
        """Take a value that a caller has stored; its entry may be in use already."""
        self.objects.settle([entry], head, stored, handle)
        self.scheduler.arrive(entry.id, Tag.VALUE)

    def fail(self, error: BaseException | Stored) -> None:
        """Settle everything with an error, and refuse what comes."""
        stored = error if isinstance(error, Stored) else outcome.encode_error(error)
        self.failure = self.failure or stored
        self.scheduler.fail_all(stored)

    def cancel_all(self, force: bool) -> None:
        """Cancel every task."""
        for task_id in tuple(self.scheduler.tasks):
            self.scheduler.cancel(task_id, force=force, recursive=False, token=None)

    def resources(self) -> ClusterResources:
        """Give what there is and what is left (R4)."""
        nodes = tuple(
            NodeInfo(node.id, node.host, node.alive, node.total, available, node.labels)
            for node, available in self.scheduler.ledger.snapshot()
        )
        total = add_up(node.total for node in nodes if node.alive)
        return ClusterResources(total, add_up(node.available for node in nodes if node.alive), nodes)

    def value_of(self, entry: Entry) -> Value:
        """Give a settled value for a backend."""
        return Value(entry.stored, None if entry.stored is not None else entry.handle)

    def _finished(self, call_id: int, result: Outcome) -> None:
        task_id = self._calls.get(call_id)
        if task_id is None:
            return
        head, _ = Head.decode(result.head)
        data = self._data[task_id]
        data.last = result
        if head.tag is Tag.BROKEN:
            if not self.scheduler.refused(call_id):
                assert result.stored is not None
                self.fail(result.stored)
            return
        retryable = bool(head.flags & Flag.RETRYABLE)
        self.scheduler.finished(call_id, head.tag, retryable=retryable, duration=head.duration)

    def _start(self, action: Start) -> None:
        data = self._data[action.task]
        spec = data.spec
        self._calls[action.call] = action.task
        for entry in data.entries:
            entry.running, entry.attempts = True, action.attempt
        lease = Lease(action.grant.node, spec.request, tuple(sorted(action.grant.gpus)))
        attempt = self._attempt(action, spec, lease)
        values = [self.value_of(self.objects.entries[value]) for value in spec.dependencies]
        call = Call(
            action.call,
            action.task,
            spec.name,
            attempt.encode(),
            data.body,
            values,
            lease,
            spec.env,
            data.shared,
            data.lane,
            action.queued,
        )
        try:
            self.backend.submit(call)
        except Exception as error:
            _logger.debug("backend refused call %d", action.call, exc_info=True)
            stored = outcome.encode_error(BackendBroken(f"cannot start task {spec.name!r}: {error}"))
            self._finished(action.call, Outcome.of(stored))

    def _attempt(self, action: Start, spec: TaskSpec, lease: Lease) -> Attempt:
        assigns = self.backend.capabilities.assigns_gpus
        return Attempt(
            action.call,
            action.task,
            action.attempt,
            spec.name,
            max(1, int(spec.request.cpus)),
            spec.env,
            None if assigns or not spec.request.gpus else lease.gpu_ids,
            tuple(self.objects.entries[value].item for value in spec.dependencies),
            spec.num_returns,
            spec.retry_on,
            spec.timeout is not None,
        )

    def _halt(self, action: Halt) -> None:
        self.backend.cancel(action.call, force=action.force)

    def _settle(self, action: Settle) -> None:
        data = self._data.pop(action.task)
        ending = action.ending
        if isinstance(ending, Ended):
            assert data.last is not None
            head, _ = Head.decode(data.last.head)
            self.objects.settle(data.entries, head, data.last.stored, data.last.handle)
            self._call_back(data.entries)
        else:
            self._settle_all(data.entries, self._stored_ending(data, ending))
        self._release(data)
        if data.lane is not None:
            lanes.close_lane(data.lane)

    def _stored_ending(self, data: TaskData, ending: Ending) -> Stored:
        if isinstance(ending, DependencyFailed):
            source = self.objects.entries[ending.value]
            source.retrieved = True
            if source.tag is not Tag.CANCELLED:
                for entry in data.entries:
                    entry.note = f"task {entry.name!r} did not run, because {source.name!r}, which it needs, failed"
                assert source.stored is not None
                return source.stored
            return outcome.cancelled(data.spec.name, f"{source.name!r}, which it needs, was cancelled")
        if isinstance(ending, Failed):
            return ending.error
        tag = Tag.CANCELLED if isinstance(ending, Cancelled) else Tag.ERROR
        return outcome.encode_error(failure_of(data.spec.name, ending), tag=tag)

    def _settle_all(self, entries: list[Entry], stored: Stored) -> None:
        head, _ = Head.decode(stored.data)
        self.objects.settle(entries, head, stored, None)
        self._call_back(entries)

    def _call_back(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            while entry.callbacks:
                self.callbacks.post(entry.callbacks.pop(0))

    def _release(self, data: TaskData) -> None:
        self.objects.refer(data.spec.dependencies, -1)
        self.objects.refer(data.spec.references, -1)

    def _answer(self, action: Answer) -> None:
        if isinstance(action.token, SimpleQueue):
            action.token.put(action.value)
        elif action.token is not None:
            self._requests.answer(action.token, action.value)

    def _end_wait(self, action: EndWait) -> None:
        self._requests.end_wait(action.wait, action.wake)

    def _lend(self, action: Lend) -> None:
        self.backend.blocked(action.call)

    def _resume(self, action: Resume) -> None:
        self.backend.resumed(action.call)

    def _drop(self, action: Drop) -> None:
        self._calls.pop(action.call, None)
        self._requests.end_call(action.call)

    def _consult(self, action: Consult) -> None:
        data = self._data[action.task]
        task = self.scheduler.tasks[action.task]
        stored = self._stored_attempt(data, action.ending)
        attempt = task.attempts

        def job() -> None:
            options = ask_hook(data.spec, stored, attempt)
            self.post(self._decided, action, options)

        self.callbacks.post(job)

    def _stored_attempt(self, data: TaskData, ending: Ending) -> Stored:
        if isinstance(ending, Ended) and data.last is not None and data.last.stored is not None:
            return data.last.stored
        return outcome.encode_error(failure_of(data.spec.name, ending))

    def _decided(self, action: Consult, spec: TaskSpec | None) -> None:
        task = self.scheduler.tasks.get(action.task)
        if task is None:
            return
        if spec is not None and not self.scheduler.ledger.could_fit(need_of(spec.request)) and not spec.patient:
            spec = None
        if spec is not None:
            self._data[action.task].spec = spec
            task.need, task.timeout, task.retries = need_of(spec.request), spec.timeout, spec.retries
        self.scheduler.decided(action.task, action.ending if spec is None else None)

    def _settle_notes(self) -> None:
        self._notes_posted = False
        self.objects.settle_notes()

    def _take_nodes(self) -> None:
        nodes = self.backend.nodes()
        self.scheduler.ledger.update(nodes)
        self.capacity = self.scheduler.ledger.totals()

    def _free(self, handle: object) -> None:
        self.backend.free(handle)

    def _forget(self, entry_id: int) -> None:
        self.scheduler.forget(entry_id)

    def _report(self, entry: Entry, summary: str) -> None:
        self.callbacks.post(lambda: _logger.warning("nobody asked for the error of task %r: %s", entry.name, summary))

    def _stop(self) -> None:
        self._stopped = True

    def _nothing(self, action: Drop) -> None:
        return

    _METHODS: ClassVar[dict[type[Any], Callable[[Any, Any], None]]] = {
        Start: _start,
        Halt: _halt,
        Settle: _settle,
        Answer: _answer,
        EndWait: _end_wait,
        Lend: _lend,
        Resume: _resume,
        Drop: _nothing,
        Consult: _consult,
    }

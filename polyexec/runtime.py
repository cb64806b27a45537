"""The loop of an executor: one thread that owns the scheduler and carries out what it decides.

State and who owns it
    The scheduler, the actions and the requests belong to the loop's thread. Other threads reach it only by
    ``post``, a queue that is safe to use inside any other code. Entries are shared as ``ObjectTable`` says. What the
    loop publishes for others to read, ``capacity``, ``failure`` and ``recorder``, are single attributes that it
    replaces as a whole;
    ``closing`` is set once, by whoever closes.
    No user code and no deserialisation of user data runs in the loop.
"""

from __future__ import annotations

import itertools
import logging
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from polyexec import folders, lanes, outcome
from polyexec.actions import Actions
from polyexec.actor_desk import ActorDesk
from polyexec.callbacks import CallbackThread
from polyexec.display import Display
from polyexec.errors import BackendBroken, ExecutorClosed, PolyexecError, SpecificationError
from polyexec.feasibility import check_task
from polyexec.ledger import UNIT, add_up, need_of, resident_need
from polyexec.lineage import Lineage, is_missing
from polyexec.loop import Loop
from polyexec.node_state import NodeState
from polyexec.objects import ObjectTable
from polyexec.plain_calls import PlainCalls
from polyexec.records import Task
from polyexec.requests import Requests
from polyexec.reserving import Reserving
from polyexec.scheduler import Scheduler
from polyexec.session import NO_INFO, ClusterResources, Entry, NodeInfo
from polyexec.spi import Backend, Death, Value, Verdict
from polyexec.stored import Flag, Head, Outcome, Stored, Tag
from polyexec.streams import Streams
from polyexec.tasks import TaskData
from polyexec.tidings import Tidings
from polyexec.wire import Role, TaskSpec

if TYPE_CHECKING:
    from polyexec.recording import Recorder

QUEUE_LIMIT = 256
_NO_FORCE = (
    "{!r} runs in an actor, which force=True would end with all its calls: cancel without force, or use kill() on the "
    "actor's handle"
)
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
        self.callbacks = CallbackThread("polyexec-callbacks")
        # A thread of their own: a callback may wait for a task that waits for its hook.
        self.hooks = CallbackThread("polyexec-hooks")
        self.lineage = Lineage(self)
        self.objects = ObjectTable(self._free, self._forget, self._report, self.lineage.thin, self._abandon)
        limit = QUEUE_LIMIT if backend.capabilities.queues_calls else 0
        self.scheduler = Scheduler(time.monotonic, random.random, queue_limit=limit)
        self.capacity: Sequence[NodeState] = ()
        self._actions = Actions(self)
        self.requests = Requests(self)
        self.scheduler.keepers = self.requests.keepers
        self.tidings = Tidings()
        self.display = Display()
        self.tidings.listen("output", self.display.show)
        self.requests.serve("written", self._on_written)
        self.reserving = Reserving(self)
        self.streams = Streams(self)
        self.desk = ActorDesk(self)
        self._ids = itertools.count(1)
        self._notes_posted = False
        self._abandoned: deque[int] = deque()
        self._draining = False
        self.plain: PlainCalls | None = None
        self.recorder: Recorder | None = None
        self._is_over = False
        self.loop = Loop("polyexec-loop", self._pause, self._advance, self._internal_error)
        self.post = self.loop.post

    # For any thread

    def start(self) -> None:
        """Start the loop; the backend is open."""
        if self.backend.poller is not None:
            self.loop.wait_with(self.backend.poller, self._is_laden)
        if self.backend.seats is not None:
            self.plain = PlainCalls(self, self.backend.seats)
            self.backend.seats.report_to(self.plain)
        self._take_nodes()
        self.loop.start()

    def stop(self, patience: float | None) -> None:
        """End all threads after what was posted before, and wait for their end.

        Args:
            patience: seconds to wait for the users' own code at most.
        """
        self.display.stop(patience)
        self.post(self.fail, ExecutorClosed("the executor was closed before the task ended"))
        self.post(self.objects.let_go)
        self.post(self._end_recording)
        self.loop.stop()
        self.hooks.stop(patience)
        self.callbacks.stop(patience)

    def in_loop(self) -> bool:
        """Say whether this code runs in the loop's thread; as a finaliser it may."""
        return self.loop.is_current()

    def runs_user_code_here(self) -> bool:
        """Say whether this is one of the threads for callbacks and hooks, which ``stop`` waits for."""
        return self.callbacks.is_current() or self.hooks.is_current()

    def new_id(self) -> int:
        """Give the id of a new value; the next ones belong to its siblings."""
        return next(self._ids) << 20

    def expose(self, entry: Entry) -> None:
        """Make a value known by its id, because its Future is passed on."""
        self.objects.expose(entry)

    def new_entries(self, name: str, count: int) -> list[Entry]:
        """Make the entries of a task, or of a value; each has one reference."""
        first = self.new_id()
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

    def placed(self, call_id: int, pid: int) -> None:
        """See ``Host``."""
        if self.recorder is not None:
            self.post(self._note_place, call_id, pid)

    def finished(self, call_id: int, outcome: Outcome) -> None:
        """See ``Host``."""
        self.post(self.take_outcome, call_id, outcome)

    def lost(self, call_id: int, death: Death) -> None:
        """See ``Host``."""
        self.post(self.scheduler.lost, call_id, death)

    def stopped(self, call_id: int, verdict: Verdict) -> None:
        """See ``Host``."""
        self.post(self.scheduler.stopped, call_id, verdict)

    def missing(self, call_id: int, handles: Sequence[object], reason: str) -> None:
        """See ``Host``."""
        self.post(self.lineage.miss, call_id, handles, reason)

    def request(self, request_id: object, call_id: int, message: Stored) -> None:
        """See ``Host``."""
        self.post(self.requests.handle, request_id, call_id, message)

    def told(self, call_id: int, message: Stored) -> None:
        """See ``Host``."""
        self.tidings.take(call_id, message)

    def nodes_changed(self) -> None:
        """See ``Host``."""
        self.post(self._take_nodes)

    def broken(self, error: BaseException) -> None:
        """See ``Host``."""
        self.post(self.fail, error)

    # In the loop

    def _internal_error(self, error: Exception) -> None:
        _logger.error("internal error of the executor; all its tasks fail", exc_info=error)
        self.fail(BackendBroken(f"internal error of the executor: {error!r}"))

    def _advance(self) -> None:
        self.scheduler.timers.run_due()
        self.schedule()
        if self.plain is not None:
            if self.scheduler.wants_cpus or self._draining:
                self.plain.free_idle()
                self.schedule()
            self.plain.advance()
            self.schedule()
        while self._abandoned:
            self.scheduler.actors.leave(self._abandoned.popleft())
            self.schedule()
        if self._draining:
            self.reserving.close_unused()
        if self._draining and self.scheduler.actors.actors and (self.plain is None or not self.plain.has_begun):
            self.scheduler.actors.leave_idle()
            self.schedule()
        if self._draining and self._is_empty() and not self.drained.is_set():
            # Whoever was about to submit is told; from here on the backend may be closed.
            self.fail(ExecutorClosed("the executor was closed"))
            self.drained.set()
        if self.recorder is not None and time.monotonic() >= self.recorder.due:
            self._look_after(self.recorder)

    def schedule(self) -> bool:
        """Let the scheduler decide, and carry it out; say whether it had anything to do."""
        scheduler = self.scheduler
        scheduler.schedule()
        if not scheduler.actions:
            return False
        while scheduler.actions:
            batch, scheduler.actions = scheduler.actions, []
            self._actions.carry_out(batch)
            scheduler.schedule()
        self.desk.flush()
        if scheduler.actions:
            # What could not be brought has failed.
            self.schedule()
        return True

    def _is_laden(self) -> bool:
        return self.plain is not None and self.plain.express.is_laden()

    def _is_empty(self) -> bool:
        return not self.scheduler.tasks and (self.plain is None or self.plain.is_empty)

    def _pause(self) -> float | None:
        timers = self.scheduler.timers.pause()
        plain = self.plain.pause() if self.plain is not None else None
        pause = timers if plain is None else plain if timers is None else min(timers, plain)
        if self.recorder is None or (pause is not None and pause < self.recorder.delay):
            return pause
        return self.recorder.delay

    def drain(self) -> None:
        """Set ``drained`` as soon as there are no tasks."""
        self._draining = True
        self.scheduler.reservations.stop_waiting()
        self.streams.close_all()

    def submit(self, data: TaskData, parent: int | None, caller: object = None) -> None:
        """Take a task; what it refers to is counted, or noted, already."""
        self.objects.settle_notes()
        spec, entries = data.spec, data.entries
        if spec.role is Role.STREAM:
            self.streams.open(data, parent)
        if self.failure is not None:
            self._actions.settle_all(entries, self.failure)
            self._actions.release(data)
            if data.lane is not None:
                lanes.close_lane(data.lane)
            return
        self.watch(spec.dependencies)
        self.take_task(_task_of(data, parent, caller), data)

    def run_again(self, data: TaskData, attempts: int) -> None:
        """Take a task once more that has ended, because its value is lost; ``ObjectTable.reopen`` has been called."""
        task = _task_of(data, None)
        task.attempts = attempts
        task.placement = self.reserving.place_again(task.placement)
        self.watch(data.spec.dependencies)
        self.take_task(task, data)

    def may_lose_values(self) -> bool:
        """Say whether values may be lost that the engine keeps: those of other nodes."""
        return self.backend.capabilities.loses_values and len(self.capacity) > 1

    def await_again(self, entry: Entry, handle: object, reason: str, answer: Callable[[bool], None]) -> None:
        """Answer when a value that somebody did not find is there again, or is an error."""
        self.lineage.lose(entry, handle, reason)
        if is_missing(entry) and self.failure is None:
            entry.add_waiter(lambda _: answer(True))
        else:
            answer(True)

    def data_of(self, call_id: int) -> TaskData | None:
        """Give the task of a call that has not ended."""
        task_id = self._actions.calls.get(call_id)
        return None if task_id is None else self._actions.data.get(task_id)

    def release(self, data: TaskData) -> None:
        """Let go of what a task has referred to."""
        self._actions.release(data)

    def take_task(self, task: Task, data: TaskData, moment: float | None = None) -> None:
        """Let the scheduler have a task, which was submitted at a time of the monotonic clock, or now."""
        self._actions.data[task.id] = data
        # A reservation is no task: nothing runs.
        if self.recorder is not None and task.gang is None:
            self.recorder.submitted(task, data.body.nbytes, moment)
        self.scheduler.submit(task)
        if task.width or data.spec.role is Role.STREAM:
            # Whoever lets it live may be gone already.
            self.objects.refer([task.id], 0)

    def adopt(self, call_id: int, data: TaskData) -> None:
        """Take over a call that runs already."""
        self._actions.data[data.entries[0].id] = data
        self._actions.calls[call_id] = data.entries[0].id

    def watch(self, entry_ids: Sequence[int]) -> None:
        """Let the scheduler know, or learn, of values that somebody needs."""
        for entry_id in entry_ids:
            entry = self.objects.entries.get(entry_id)
            if entry is None:
                continue
            if entry.tag is not None:
                if not is_missing(entry):
                    self.scheduler.values.setdefault(entry_id, entry.tag)
            elif self.plain is not None:
                self.plain.watch(entry)

    def make_ordinary(self, call_id: int) -> None:
        """Let a plain call that asks for something be a task like any other."""
        call = self.plain.find(call_id) if self.plain is not None else None
        if call is not None and self.plain is not None:
            self.plain.promote(call)

    def check_open(self) -> None:
        """Raise if the backend has failed. From any thread; may decode an error of the user's."""
        if self.failure is not None:
            raise outcome.decode_error(self.failure)

    def check_feasible(self, spec: TaskSpec) -> None:
        """Raise ``InfeasibleResources`` if no node could ever meet the request (R3). From any thread."""
        check_task(spec, self.capacity, self.scheduler.reservations.places)

    def keep_folder(self, spec: TaskSpec) -> None:
        """Let whatever is sent along with tasks be taken away when this process has ended. From any thread."""
        if spec.packages is not None and spec.packages.values:
            folders.hold(self.executor_id, is_driver=True)

    def put(self, entry: Entry, head: Head, handle: object | None, stored: Stored | None) -> None:
        """Take a value that a caller has stored; its entry may be in use already."""
        self.objects.settle([entry], head, stored, handle)
        self.scheduler.arrive(entry.id, Tag.VALUE)

    def fulfil(self, entry_id: int, stored: Stored) -> None:
        """Give a promised entry its value, once, and unless nobody refers to it any more."""
        entry = self.objects.entries.get(entry_id)
        if entry is not None and entry.tag is None:
            self.put(entry, Head.decode(stored.data)[0], None, stored)

    def fail(self, error: BaseException | Stored) -> None:
        """Settle everything with an error, and refuse what comes."""
        stored = error if isinstance(error, Stored) else outcome.encode_error(error)
        self.failure = self.failure or stored
        self.scheduler.fail_all(stored)
        if self.plain is not None:
            self.plain.fail()

    def cancel(self, task_id: int, *, force: bool, recursive: bool, token: object, running: bool = True) -> None:
        """Stop a task; see ``Scheduler.cancel``."""
        entry = self.objects.entries.get(task_id)
        self.cancel_entry(entry, task_id, force=force, recursive=recursive, token=token, running=running)

    def cancel_entry(
        self,
        entry: Entry | None,
        task_id: int,
        *,
        force: bool,
        recursive: bool,
        token: object,
        running: bool = True,
    ) -> None:
        """Stop the task that makes an entry."""
        task = self.scheduler.tasks.get(task_id)
        if force and running and task is not None and task.actor is not None and task.call is not None:
            self.answer(token, SpecificationError(_NO_FORCE.format(task.name)))
        elif entry is not None and entry.plain is not None and self.plain is not None:
            self.plain.cancel(entry.plain, force=force, recursive=recursive, token=token, running=running)
        else:
            self.scheduler.cancel(task_id, force=force, recursive=recursive, token=token, running=running)

    def cancel_all(self, force: bool) -> None:
        """Cancel every task."""
        for task in tuple(self.scheduler.tasks.values()):
            # A stream that shall stop is not interrupted in the midst of that.
            if not task.is_seat and (force or not self.streams.is_stopping(task.id)):
                self.scheduler.cancel(task.id, force=force, recursive=False, token=None)
        if self.plain is not None:
            self.plain.cancel_all(force)

    def settle_all(self, entries: list[Entry], stored: Stored) -> None:
        """Give values an outcome, and call back."""
        self._actions.settle_all(entries, stored)

    def call_back(self, entries: Sequence[Entry]) -> None:
        """Let what users want to be called run in its own thread."""
        self._actions.call_back(entries)

    def answer(self, token: object, value: bool | PolyexecError) -> None:
        """Tell whoever has cancelled something whether that worked."""
        self._actions.answer(token, value)

    def resources(self) -> ClusterResources:
        """Give what there is and what is left (R4)."""
        if self.plain is not None:
            self.plain.free_idle()
        nodes = tuple(
            NodeInfo(node.id, node.host, node.alive, node.total, available, node.labels)
            for node, available in self.scheduler.ledger.snapshot()
        )
        total = add_up(node.total for node in nodes if node.alive)
        return ClusterResources(total, add_up(node.available for node in nodes if node.alive), nodes)

    def value_of(self, entry: Entry) -> Value:
        """Give a settled value for a backend."""
        return Value(entry.stored, None if entry.stored is not None else entry.handle)

    def take_outcome(self, call_id: int, result: Outcome) -> None:
        """Take the outcome of a call."""
        if self.plain is not None and call_id in self.plain.express.seats:
            self._refused(call_id, result)
            return
        task_id = self._actions.calls.get(call_id)
        if task_id is None or call_id not in self.scheduler.running:
            return
        head, _ = Head.decode(result.head)
        data = self._actions.data[task_id]
        data.last = result
        if head.tag is Tag.BROKEN:
            self._refused(call_id, result)
            return
        retryable = bool(head.flags & Flag.RETRYABLE)
        self.scheduler.finished(call_id, head.tag, retryable=retryable, duration=head.duration)

    def _refused(self, call_id: int, result: Outcome) -> None:
        """Learn that a worker would not start."""
        if self.plain is not None:
            self.plain.express.refused(call_id)
        if not self.scheduler.refused(call_id):
            assert result.stored is not None
            self.fail(result.stored)

    # Recording

    def record(self) -> Recorder:
        """Record what happens from now on to the tasks that come from now on."""
        # Most executors are not recorded.
        from polyexec.recording import Recorder

        if self.recorder is None:
            pid = 0 if self.backend.capabilities.processes else os.getpid()
            recorder = Recorder(self.loop, f"{self.info.backend} {self.executor_id}", pid=pid, data=self._actions.data)
            recorder.hosts.update((node.id, node.host) for node in self.backend.nodes())
            self.scheduler.observer = recorder
            if self.plain is not None:
                self.plain.record(recorder)
            self.recorder = recorder
        if self._is_over:
            self.recorder.end()
        return self.recorder

    def _end_recording(self) -> None:
        self._is_over = True
        if self.recorder is not None:
            self.recorder.end()

    def _note_place(self, call_id: int, pid: int) -> None:
        task_id = self._actions.calls.get(call_id)
        if self.recorder is not None and task_id is not None:
            self.recorder.placed(task_id, pid)

    def _look_after(self, recorder: Recorder) -> None:
        if self.plain is not None and self.plain.watcher is not None:
            self.plain.watcher.look()
        recorder.tidy()

    def _settle_notes(self) -> None:
        self._notes_posted = False
        self.objects.settle_notes()

    def _on_written(self, request_id: object, call_id: int, main: bool, value: Value) -> None:
        self.display.when_written(lambda: self.post(self.requests.reply, request_id, "ok", None))

    def _take_nodes(self) -> None:
        nodes = self.backend.nodes()
        self.scheduler.ledger.update(nodes)
        self.scheduler.nodes_changed()
        self.capacity = tuple(NodeState.of_node(node) for node in nodes if node.alive)
        if self.recorder is not None:
            self.recorder.hosts.update((node.id, node.host) for node in nodes)
        if self.plain is not None:
            self.plain.express.limit = sum(node.has("cpus") // UNIT for node in self.capacity)

    def _free(self, handle: object) -> None:
        self.backend.free(handle)

    def _forget(self, entry_id: int) -> None:
        self.scheduler.forget(entry_id)
        self.streams.forget(entry_id)
        self.lineage.forget(entry_id)

    def _abandon(self, entry_id: int) -> None:
        """Learn that nobody refers any more to what a task will give: streams and actors live for that alone."""
        self.streams.close(entry_id)
        if entry_id in self.scheduler.actors.actors:
            self._abandoned.append(entry_id)

    def _report(self, entry: Entry, summary: str) -> None:
        self.callbacks.post(lambda: log_unretrieved(entry, summary))


def _task_of(data: TaskData, parent: int | None, caller: object = None) -> Task:
    spec = data.spec
    return Task(
        data.entries[0].id,
        spec.name,
        _need_of(spec),
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
        placement=spec.placement,
        width=spec.width,
        actor=spec.actor,
        caller=caller,
    )


def _need_of(spec: TaskSpec) -> dict[str, int]:
    if spec.actor is not None:
        return {}
    return resident_need(spec.request) if spec.role is Role.ACTOR else need_of(spec.request)


def log_unretrieved(entry: Entry, summary: str) -> None:
    """Report an error that nobody has asked for (S12)."""
    _logger.warning("nobody asked for the error of task %r: %s", entry.name, summary)

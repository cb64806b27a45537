"""Carrying out what the scheduler decides. A part of the runtime: everything here runs in the loop thread."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from polyexec import lanes, outcome
from polyexec.endings import failure_of
from polyexec.errors import BackendBroken, ObjectLost, PolyexecError
from polyexec.hooks import ask_hook
from polyexec.lineage import is_missing
from polyexec.mailbox import Mailbox
from polyexec.records import (
    Action,
    ActorGone,
    Answer,
    Cancelled,
    Consult,
    DependencyFailed,
    Dismiss,
    Drop,
    Ended,
    Ending,
    EndWait,
    Failed,
    Granted,
    Halt,
    Invoke,
    Lend,
    Resume,
    Settle,
    Start,
)
from polyexec.session import Entry
from polyexec.spi import Call, Lease
from polyexec.stored import Head, Outcome, Stored, Tag
from polyexec.tasks import TaskData, revise_task
from polyexec.wire import Attempt, Role, TaskSpec

if TYPE_CHECKING:
    from polyexec.recording import Recorder
    from polyexec.runtime import Runtime

_logger = logging.getLogger("polyexec")


class Actions:
    """Does what the scheduler's actions say.

    Args:
        runtime: what it is a part of.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.data: dict[int, TaskData] = {}
        self.calls: dict[int, int] = {}

    def carry_out(self, batch: Sequence[Action]) -> None:
        """Carry out some actions, in order; what calls have made is let go last, when results refer to it."""
        faults: list[Exception] = []
        for action in batch:
            method = self._METHODS.get(type(action))
            try:
                if method is not None:
                    method(self, action)
            except Exception as fault:
                # The others must still be carried out: each of them may be what somebody waits for.
                faults.append(fault)
        for action in batch:
            if isinstance(action, Drop):
                self.calls.pop(action.call, None)
                self._runtime.desk.drop(action.call)
                self._runtime.requests.end_call(action.call)
        if faults:
            raise faults[0]

    def _start(self, action: Start) -> None:
        if action.is_seat:
            assert self._runtime.plain is not None
            self._runtime.plain.granted(action.call, action.grant.node)
            return
        data = self.data[action.task]
        spec = data.spec
        self.calls[action.call] = action.task
        for entry in data.entries:
            entry.running, entry.attempts = True, action.attempt
        needed = self._needed(spec)
        if any(map(is_missing, needed)):
            # Lost since it became ready.
            self._runtime.post(self._runtime.lineage.miss, action.call, (), "")
            return
        ledger = self._runtime.scheduler.ledger
        lease = Lease(ledger.node_of(action.grant.node), spec.request, ledger.gpu_ids(action.grant))
        attempt = self._attempt(action, spec, lease, needed)
        values = [self._runtime.value_of(entry) for entry in needed]
        if self._runtime.recorder is not None:
            self._note_start(self._runtime.recorder, action, lease.node, needed)
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
            data.body_handle,
            self._is_resident(spec),
        )
        try:
            self._runtime.backend.submit(call)
        except Exception as error:
            _logger.debug("backend refused call %d", action.call, exc_info=True)
            stored = outcome.encode_error(BackendBroken(f"cannot start task {spec.name!r}: {error}"))
            self._runtime.take_outcome(action.call, Outcome.of(stored))

    def _note_start(self, recorder: Recorder, action: Start, node: str, needed: Sequence[Entry]) -> None:
        runs = not (action.queued or self._runtime.backend.capabilities.places_calls)
        recorder.handed(action.task, action.attempt, node, sum(entry.nbytes for entry in needed), runs=runs)

    def _is_resident(self, spec: TaskSpec) -> bool:
        # A stream ends by itself; where calls run inline it must not run in the thread that reads it.
        return spec.role is Role.ACTOR or (spec.role is Role.STREAM and self._runtime.backend.capabilities.inline)

    def _invoke(self, action: Invoke) -> None:
        data = self.data[action.task]
        spec = data.spec
        self.calls[action.call] = action.task
        for entry in data.entries:
            entry.running, entry.attempts = True, 1
        needed = self._needed(spec)
        lost = next(filter(is_missing, needed), None)
        if lost is not None:
            # To wait for it again would let later calls of its caller overtake it.
            error = ObjectLost(lost.name, f"it was to be an argument of {spec.name!r}")
            self._runtime.take_outcome(action.call, Outcome.of(outcome.encode_error(error)))
            return
        attempt = Attempt(
            action.call,
            action.task,
            1,
            spec.name,
            1,
            spec.env,
            None,
            tuple(entry.item for entry in needed),
            spec.num_returns,
            None,
            spec.timeout is not None,
        )
        if self._runtime.recorder is not None:
            node = self._runtime.scheduler.ledger.node_of(action.node)
            size = sum(entry.nbytes for entry in needed)
            self._runtime.recorder.handed(action.task, 1, node, size, runs=True, actor=spec.actor)
        values = [self._runtime.value_of(entry) for entry in needed]
        self._runtime.desk.invoke(action, attempt, data.body, data.body_handle, values)

    def _dismiss(self, action: Dismiss) -> None:
        self._runtime.desk.dismiss(action)

    def _needed(self, spec: TaskSpec) -> list[Entry]:
        return [self._runtime.objects.entries[value] for value in spec.dependencies]

    def _attempt(self, action: Start, spec: TaskSpec, lease: Lease, needed: Sequence[Entry]) -> Attempt:
        assigns = self._runtime.backend.capabilities.assigns_gpus
        return Attempt(
            action.call,
            action.task,
            action.attempt,
            spec.name,
            max(1, int(spec.request.cpus)),
            spec.env,
            None if assigns or not spec.request.gpus else lease.gpu_ids,
            tuple(entry.item for entry in needed),
            spec.num_returns,
            spec.retry_on,
            spec.timeout is not None,
            spec.packages,
        )

    def _halt(self, action: Halt) -> None:
        if not self._runtime.desk.halt(action.call):
            self._runtime.backend.cancel(action.call, force=action.force)

    def _settle(self, action: Settle) -> None:
        data = self.data.pop(action.task)
        ending = action.ending
        for entry in data.entries:
            entry.attempts = action.attempts
        if isinstance(ending, Ended):
            assert data.last is not None
            head, _ = Head.decode(data.last.head)
            self._runtime.objects.settle(data.entries, head, data.last.stored, data.last.handle)
            self.call_back(data.entries)
            error = None
        else:
            error = self._stored_ending(data, ending)
            self.settle_all(data.entries, error)
        if self._runtime.recorder is not None:
            self._runtime.recorder.settled(action.task, action.attempts, action.tag, ending, data.last, error)
        if action.tag is not Tag.VALUE or not self._runtime.lineage.keep(data, action.attempts):
            self.release(data)
        if data.lane is not None:
            lanes.close_lane(data.lane)

    def _stored_ending(self, data: TaskData, ending: Ending) -> Stored:
        if isinstance(ending, DependencyFailed):
            source = self._runtime.objects.entries[ending.value]
            source.retrieved = True
            if source.tag is not Tag.CANCELLED:
                for entry in data.entries:
                    own = f"task {entry.name!r} did not run, because {source.name!r}, which it needs, failed"
                    entry.note = f"{source.note}\n{own}" if source.note else own
                assert source.stored is not None
                return source.stored
            return outcome.cancelled(data.spec.name, f"{source.name!r}, which it needs, was cancelled")
        if isinstance(ending, Failed):
            return ending.error
        if isinstance(ending, Granted):
            return outcome.encode_value(data.spec.name, None)
        if isinstance(ending, ActorGone) and data.spec.actor is not None:
            # Whoever has called the actor is told of its end.
            self._runtime.objects.entries[data.spec.actor].retrieved = True
        tag = Tag.CANCELLED if isinstance(ending, Cancelled) else Tag.ERROR
        return outcome.encode_error(failure_of(data.spec.name, ending), tag=tag)

    def settle_all(self, entries: list[Entry], stored: Stored) -> None:
        """Give values an outcome, and call back."""
        head, _ = Head.decode(stored.data)
        self._runtime.objects.settle(entries, head, stored, None)
        self.call_back(entries)

    def call_back(self, entries: Sequence[Entry]) -> None:
        """Let what users want to be called run in its own thread."""
        for entry in entries:
            callbacks = entry.callbacks
            # Whoever adds one at this very moment may take it back, and calls it himself then.
            with contextlib.suppress(IndexError):
                while callbacks:
                    self._runtime.callbacks.post(callbacks.pop(0))

    def release(self, data: TaskData) -> None:
        """Let go of what a task has referred to."""
        self._runtime.objects.refer(data.spec.dependencies, -1)
        self._runtime.objects.refer(data.spec.references, -1)
        if data.body_handle is not None:
            self._runtime.backend.free(data.body_handle)

    def _answer(self, action: Answer) -> None:
        self.answer(action.token, action.value)

    def answer(self, token: object, value: bool | PolyexecError) -> None:
        """Tell whoever has cancelled something whether that worked."""
        if isinstance(token, Mailbox):
            token.put(value)
        elif token is not None:
            self._runtime.requests.answer(token, value)

    def _end_wait(self, action: EndWait) -> None:
        self._runtime.requests.end_wait(action.wait, action.wake)

    def _lend(self, action: Lend) -> None:
        if not self._runtime.desk.hosts(action.call):
            self._runtime.backend.blocked(action.call)

    def _resume(self, action: Resume) -> None:
        if not self._runtime.desk.hosts(action.call):
            self._runtime.backend.resumed(action.call)

    def _consult(self, action: Consult) -> None:
        data = self.data[action.task]
        task = self._runtime.scheduler.tasks[action.task]
        ended = self._attempt_of(data, action.ending)
        spec, attempt = data.spec, task.attempts

        def job() -> None:
            answer = ask_hook(spec, ended, attempt, self._runtime.check_feasible)
            self._runtime.post(self._decided, action, answer)

        self._runtime.hooks.post(job)

    def _attempt_of(self, data: TaskData, ending: Ending) -> Callable[[], Stored]:
        """Give how an attempt ended, to be asked for in another thread: the engine may have to bring it."""
        if not isinstance(ending, Ended):
            return partial(outcome.encode_error, failure_of(data.spec.name, ending))
        assert data.last is not None
        return partial(self._stored_outcome, data.last)

    def _stored_outcome(self, last: Outcome) -> Stored:
        return self._runtime.backend.get(last.handle) if last.stored is None else last.stored

    def _decided(self, action: Consult, answer: TaskSpec | Stored | None) -> None:
        task = self._runtime.scheduler.tasks.get(action.task)
        if task is None:
            return
        if isinstance(answer, TaskSpec):
            self.data[action.task].spec = answer
            revise_task(task, answer)
            self._runtime.scheduler.decided(action.task, None)
        else:
            self._runtime.scheduler.decided(action.task, action.ending if answer is None else Failed(answer))

    _METHODS: ClassVar[dict[type[Any], Callable[[Any, Any], None]]] = {
        Start: _start,
        Halt: _halt,
        Settle: _settle,
        Answer: _answer,
        EndWait: _end_wait,
        Lend: _lend,
        Resume: _resume,
        Consult: _consult,
        Invoke: _invoke,
        Dismiss: _dismiss,
    }

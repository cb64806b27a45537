"""What running tasks ask of the executor. A part of the runtime: everything here runs in the loop thread."""

from __future__ import annotations

import itertools
import pickle
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from polyexec import lanes, outcome
from polyexec.errors import DeadlockError, ExecutorClosed, PolyexecError, ResourceExhausted
from polyexec.lineage import is_missing
from polyexec.records import Running, Stop, Wait, Wake
from polyexec.session import Entry
from polyexec.spi import Value
from polyexec.stored import Head, Message, Stored
from polyexec.tasks import TaskData

if TYPE_CHECKING:
    from polyexec.runtime import Runtime

Handler: TypeAlias = Callable[..., None]


class Requests:
    """Answers requests.

    Args:
        runtime: what it is a part of.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._numbers = itertools.count(1)
        self._waits: dict[int, tuple[object, tuple[int, ...], int | None]] = {}
        self._blocks: dict[int, tuple[str, Callable[[], None]]] = {}
        self._holds: dict[int, Counter[int]] = {}
        self._given: dict[int, dict[int, object]] = {}
        self._handlers: dict[str, Handler] = {
            name.removeprefix("_on_"): getattr(self, name) for name in dir(self) if name.startswith("_on_")
        }

    def serve(self, kind: str, handler: Handler) -> None:
        """Let another part of the runtime answer a kind of request.

        Args:
            kind: its name.
            handler: called in the loop with the request's id, the call that asks, whether the thread of its body
                does, the value that came with it, and the request's own fields; answers by ``reply``, now or later,
                or raises a ``PolyexecError``, which becomes the answer.
        """
        self._handlers[kind] = handler

    def handle(self, request_id: object, call_id: int, message: Stored) -> None:
        """Answer a request, now or later."""
        kind, main, released, fields, data, speaker = pickle.loads(message.data)
        # A body that runs calls of its own lets each of them ask in its own name.
        call_id = call_id if speaker is None else speaker
        self._runtime.make_ordinary(call_id)
        call = self._runtime.scheduler.running.get(call_id)
        if call is None:
            self._error(
                request_id, ExecutorClosed("the task that asks has ended; its executor cannot be used any more")
            )
            return
        if main and _is_interrupted(call, kind):
            call.promised = True
            self.reply(request_id, "interrupted", None)
            return
        try:
            self._handlers[kind](request_id, call_id, main, self._brought(message, data), *fields)
        except PolyexecError as error:
            self._error(request_id, error)
        except OSError as error:
            # A large answer found no room on its way.
            self._error(request_id, ResourceExhausted("shared-memory", str(error)))
        self.let_go(call_id, released)

    def _brought(self, message: Stored, data: bytes | None) -> Value:
        """Give the value that comes with a request, if any."""
        if isinstance(message, Message) and message.handle is not None:
            return Value(handle=message.handle)
        if not message.buffers:
            return Value() if data is None else Value(Stored(data))
        first, *buffers = message.buffers
        # Where the task has its memory in common with this process, the value must not change with it (S2).
        copied = buffers if self._runtime.backend.capabilities.processes else map(bytes, buffers)
        return Value(Stored(bytes(first), tuple(copied)))

    def _on_submit(
        self, request_id: object, call_id: int, main: bool, value: Value, spec: Any, lane: int | None
    ) -> None:
        runtime = self._runtime
        if spec.actor is None:
            runtime.check_feasible(spec)
        runtime.keep_folder(spec)
        for entry_id in (*spec.dependencies, *spec.references):
            self._entry(entry_id)
        entries = runtime.new_entries(spec.name, spec.num_returns)
        self.keep(call_id, entries)
        runtime.objects.refer(spec.dependencies)
        runtime.objects.refer(spec.references)
        # An actor lives on without the task that has made it.
        parent = None if spec.width else runtime.scheduler.running[call_id].task.id
        body = value.stored or Stored(b"")
        runtime.submit(TaskData(spec, body, None, entries, lane, body_handle=value.handle), parent, ("task", parent))
        self.reply(request_id, "ok", entries[0].id)
        if lane is not None:
            # The submitter serves the lane; it is blocked until the task is settled.
            self._wait(call_id, None, tuple(entry.id for entry in entries), len(entries), None, main, lane)

    def _on_served(self, request_id: object, call_id: int, main: bool, value: Value, entry_id: int) -> None:
        self.reply(request_id, "ok", None)

    def _on_put(self, request_id: object, call_id: int, main: bool, value: Value, head: bytes) -> None:
        entry = self.new_entry(call_id, "put")
        self._runtime.put(entry, Head.decode(head)[0], value.handle, value.stored)
        self.reply(request_id, "ok", entry.id)

    def _on_promise(self, request_id: object, call_id: int, main: bool, value: Value, name: str) -> None:
        entry = self.new_entry(call_id, name)
        entry.promised = True
        self.reply(request_id, "ok", entry.id)

    def _on_fulfil(
        self, request_id: object, call_id: int, main: bool, value: Value, entry_id: int, head: bytes
    ) -> None:
        entry = self._runtime.objects.entries.get(entry_id)
        if entry is not None and entry.tag is None:
            self._runtime.put(entry, Head.decode(head)[0], value.handle, value.stored)
        self.reply(request_id, "ok", None)

    def _on_wait(
        self,
        request_id: object,
        call_id: int,
        main: bool,
        value: Value,
        ids: tuple[int, ...],
        needed: int,
        timeout: float | None,
    ) -> None:
        for entry_id in ids:
            self._entry(entry_id)
        self._wait(call_id, request_id, ids, needed, timeout, main, None)

    def _wait(
        self,
        call_id: int,
        request_id: object,
        ids: tuple[int, ...],
        needed: int,
        timeout: float | None,
        main: bool,
        lane: int | None,
    ) -> None:
        wait = Wait(next(self._numbers), call_id, set(ids), needed, main)
        self._waits[wait.id] = (request_id, ids, lane)
        self._runtime.watch(ids)
        self._runtime.scheduler.wait(wait, timeout)

    def block(
        self, request_id: object, call_id: int, main: bool, value: int, name: str, answer: Callable[[], None]
    ) -> None:
        """Let a call wait, as for a value, until the scheduler learns that something has arrived.

        Args:
            request_id: what it waits for the answer to.
            call_id: the call.
            main: the thread of its body waits.
            value: id of what shall arrive; may be new.
            name: of what it waits for, for errors.
            answer: replies when it has arrived; nobody calls it if the wait ends otherwise.
        """
        wait = Wait(next(self._numbers), call_id, {value}, 1, main)
        self._waits[wait.id] = (request_id, (), None)
        self._blocks[wait.id] = name, answer
        self._runtime.scheduler.wait(wait, None)

    def end_wait(self, wait_id: int, wake: Wake) -> None:
        """Reply to a wait."""
        request_id, ids, lane = self._waits.pop(wait_id)
        name, answer = self._blocks.pop(wait_id, ("", None))
        if lane is not None:
            lanes.close_lane(lane)
        elif answer is not None and wake is Wake.READY:
            answer()
        elif wake is Wake.INTERRUPTED:
            self.reply(request_id, "interrupted", None)
        elif wake is Wake.DEADLOCK:
            found = [self._runtime.objects.entries.get(entry_id) for entry_id in ids]
            names = sorted({entry.name for entry in found if entry is not None and entry.tag is None}) or [name]
            self._error(
                request_id,
                DeadlockError(
                    f"waiting for {', '.join(names[:5])} can never end: what is needed is held by tasks or actors that "
                    "wait. Ask for less in the waiting task, or do not wait inside it"
                ),
            )
        else:
            found = [self._runtime.objects.entries.get(entry_id) for entry_id in ids]
            done = [(entry.id, int(entry.tag)) for entry in found if entry is not None and entry.tag is not None]
            self.reply(request_id, "ok", done)

    def _on_fetch(self, request_id: object, call_id: int, main: bool, value: Value, entry_id: int) -> None:
        entry = self._entry(entry_id)
        entry.retrieved = True
        if is_missing(entry):
            self.reply(request_id, "ok", None)
            return
        if entry.handle is not None and self._runtime.backend.capabilities.loses_values:
            self._given.setdefault(call_id, {})[entry_id] = entry.handle
        self.reply(request_id, "ok", entry.note, [self._runtime.value_of(entry)])

    def _on_lost(self, request_id: object, call_id: int, main: bool, value: Value, entry_id: int, reason: str) -> None:
        """Learn that what a fetch has given could not be brought; the next wait for it ends when it is there again."""
        handle = self._given.get(call_id, {}).get(entry_id)
        self._runtime.lineage.lose(self._entry(entry_id), handle, reason)
        self.reply(request_id, "ok", handle is not None)

    def _on_status(self, request_id: object, call_id: int, main: bool, value: Value, entry_id: int) -> None:
        entry = self._entry(entry_id)
        self.reply(request_id, "ok", (None if entry.tag is None else int(entry.tag), entry.running, entry.attempts))

    def _on_cancel(
        self,
        request_id: object,
        call_id: int,
        main: bool,
        value: Value,
        task_id: int,
        force: bool,
        recursive: bool,
        running: bool,
    ) -> None:
        self._runtime.cancel(task_id, force=force, recursive=recursive, running=running, token=(request_id,))

    def _on_kill(self, request_id: object, call_id: int, main: bool, value: Value, actor_id: int) -> None:
        self._runtime.scheduler.actors.kill(actor_id, (request_id,))

    def answer(self, token: object, value: bool | PolyexecError) -> None:
        """Reply to a cancel."""
        assert isinstance(token, tuple)
        if isinstance(value, PolyexecError):
            self._error(token[0], value)
        else:
            self.reply(token[0], "ok", value)

    def _on_resources(self, request_id: object, call_id: int, main: bool, value: Value) -> None:
        self.reply(request_id, "ok", self._runtime.resources())

    def _on_info(self, request_id: object, call_id: int, main: bool, value: Value) -> None:
        self.reply(request_id, "ok", self._runtime.info)

    def _on_dump(self, request_id: object, call_id: int, main: bool, value: Value) -> None:
        from polyexec.survey import picture_of

        status = "closing" if self._runtime.closing else "open"
        self.reply(request_id, "ok", (status, str(self._runtime.info), picture_of(self._runtime)))

    def _on_started(self, request_id: object, call_id: int, main: bool, value: Value) -> None:
        self._runtime.scheduler.started(call_id)
        self.reply(request_id, "ok", None)

    def new_entry(self, call_id: int, name: str) -> Entry:
        """Make an entry that a call has a Future of."""
        entry = self._runtime.new_entries(name, 1)[0]
        self.keep(call_id, [entry])
        return entry

    def end_call(self, call_id: int) -> None:
        """Let go of what a call has made."""
        self._given.pop(call_id, None)
        for entry_id, count in self._holds.pop(call_id, Counter()).items():
            self._runtime.objects.refer([entry_id], -count)

    def hold(self, call_id: int, entry_ids: Sequence[int]) -> None:
        """Let a call refer to some more values."""
        self._runtime.objects.refer(entry_ids)
        self._holds.setdefault(call_id, Counter()).update(entry_ids)

    def keep(self, call_id: int, entries: Sequence[Entry]) -> None:
        """Let a call keep the one reference of new values until it drops them or ends."""
        # What runs in the body of another call shares its memory, in which Futures may outlive it.
        host = self._runtime.scheduler.running[call_id].host
        holds = self._holds.setdefault(call_id if host is None else host, Counter())
        holds.update(entry.id for entry in entries)

    def keepers(self, entry_id: int) -> Collection[int] | None:
        """Give the calls that refer to a value, None if somebody else does."""
        entry = self._runtime.objects.entries.get(entry_id)
        counts = {call_id: held[entry_id] for call_id, held in self._holds.items() if entry_id in held}
        return None if entry is None or entry.count > sum(counts.values()) else counts.keys()

    def let_go(self, call_id: int, released: Sequence[int]) -> None:
        """Learn that a call does not refer to some values any more."""
        held = self._holds.get(call_id, Counter())
        for entry_id in released:
            if held[entry_id] > 0:
                held[entry_id] -= 1
                if not held[entry_id]:
                    del held[entry_id]
                self._runtime.objects.refer([entry_id], -1)

    def _entry(self, entry_id: int) -> Entry:
        entry = self._runtime.objects.entries.get(entry_id)
        if entry is None:
            raise ExecutorClosed("this Future is from a task that has ended, and its value has been freed")
        return entry

    def _error(self, request_id: object, error: PolyexecError) -> None:
        self.reply(request_id, "error", outcome.encode_error(error).data)

    def reply(self, request_id: object, status: str, answer: Any, values: Sequence[Value] = ()) -> None:
        """Answer a request, with ``ok``, ``error`` or ``interrupted``."""
        self._runtime.backend.reply(request_id, pickle.dumps((status, answer)), values)


def _is_interrupted(call: Running, kind: str) -> bool:
    """Say whether the body of a call, asking for something, shall see that it is being stopped."""
    if kind == "served":
        # The calls that it served ran in its own thread, where nothing could be raised for it.
        return call.stop is not Stop.NO
    return call.stop is Stop.CANCEL and not call.forced and kind not in ("started", "fetch")

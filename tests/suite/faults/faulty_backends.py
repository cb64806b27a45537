"""Backends that break one promise each; the base, which keeps them all, is ``foreign_pool``."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Sequence
from typing import Any, ClassVar

import attrs
from foreign_pool.pool import ForeignPool, ForeignPoolConfig, _Worker

from polyexec import outcome
from polyexec.errors import ObjectLost
from polyexec.spi import (
    Call,
    Capabilities,
    Death,
    Deviation,
    EngineInfo,
    Head,
    Host,
    Node,
    Outcome,
    Stored,
    Tag,
    Value,
    Verdict,
)
from polyexec.wire import Attempt


class _Filter:
    """Stands between a backend and its host; what it does not change passes."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def __getattr__(self, name: str) -> Any:
        return getattr(self._host, name)


class Filtered(ForeignPool):
    """Reports to a filter instead of the host."""

    Filter: ClassVar[type[_Filter]]

    def open(self, host: Host) -> EngineInfo:
        return super().open(self.Filter(host))


class _Losing(_Filter):
    count = 0

    def finished(self, call_id: int, result: Outcome) -> None:
        self.count += 1
        if self.count % 40:
            self._host.finished(call_id, result)


class Loses(Filtered):
    """Does not report every fortieth result."""

    Filter = _Losing


class _Swallowing(_Filter):
    def finished(self, call_id: int, result: Outcome) -> None:
        if Head.decode(result.head)[0].tag is Tag.ERROR:
            result = Outcome.of(outcome.encode_value("swallowed", None))
        self._host.finished(call_id, result)


class Swallows(Filtered):
    """Gives None instead of an exception."""

    Filter = _Swallowing


class _Silent(_Filter):
    def lost(self, call_id: int, death: Death) -> None:
        return None


class SilentDeath(Filtered):
    """Does not report that a worker has died."""

    Filter = _Silent


class _Vague(_Filter):
    def lost(self, call_id: int, death: Death) -> None:
        self._host.lost(call_id, attrs.evolve(death, signal=None, exit_code=None))


class VagueDeath(Filtered):
    """Does not say how a worker has died."""

    Filter = _Vague


class Twice(ForeignPool):
    """Runs each call in another process first, and hides that."""

    def open(self, host: Host) -> EngineInfo:
        self._waiting: dict[int, Call] = {}
        return super().open(host)

    def submit(self, call: Call) -> None:
        self._waiting[call.id] = call
        shadow = _Worker(self, self._host.setup)
        shadow.send("run", -call.id, attrs.evolve(_attempt(call), call_id=-call.id).encode(), _packed(call.body), [])

    def _report(self, worker: _Worker, kind: str, number: int, *rest: Any) -> None:
        if number > 0 or kind == "request":
            super()._report(worker, kind, number, *rest)
        elif kind == "finished":
            worker.kill()
            super().submit(self._waiting.pop(-number))


class Merges(ForeignPool):
    """Answers a call that it has seen before with the result of the first."""

    def open(self, host: Host) -> EngineInfo:
        self._known: dict[bytes, Stored] = {}
        self._bodies: dict[int, bytes] = {}
        return super().open(host)

    def submit(self, call: Call) -> None:
        known = self._known.get(call.body.data)
        if known is not None:
            self._host.finished(call.id, Outcome.of(known))
            return
        self._bodies[call.id] = call.body.data
        super().submit(call)

    def _report(self, worker: _Worker, kind: str, number: int, *rest: Any) -> None:
        if kind == "finished" and number in self._bodies:
            self._known[self._bodies[number]] = Stored(*rest)
        super()._report(worker, kind, number, *rest)


class Queues(ForeignPool):
    """Takes calls before a worker is free, and starts them in order."""

    capabilities = Capabilities(queues_calls=True)
    newest_first = False

    def open(self, host: Host) -> EngineInfo:
        self._queue: list[Call] = []
        self._queueing = threading.Lock()
        return super().open(host)

    def submit(self, call: Call) -> None:
        with self._queueing:
            if call.queued and len(self._workers) >= self.config.total().cpus:
                self._queue.append(call)
                return
        super().submit(call)

    def cancel(self, call_id: int, *, force: bool) -> None:
        with self._queueing:
            left = [call for call in self._queue if call.id != call_id]
            revoked, self._queue = len(left) < len(self._queue), left
        if revoked:
            self._host.stopped(call_id, Verdict.REVOKED)
        else:
            super().cancel(call_id, force=force)

    def _free(self, worker: _Worker) -> None:
        with self._queueing:
            super()._free(worker)
            following = self._queue.pop(-1 if self.newest_first else 0) if self._queue else None
        if following is not None:
            super().submit(following)


class Reorders(Queues):
    """Starts the newest call first."""

    newest_first = True


class LiesOnCancel(ForeignPool):
    """Says that a call was interrupted and has ended, while its body runs on."""

    def cancel(self, call_id: int, *, force: bool) -> None:
        if force:
            super().cancel(call_id, force=True)
            return
        with self._lock:
            worker = self._workers.pop(call_id, None)
        if worker is not None:
            worker.call = None
        self._host.stopped(call_id, Verdict.DELIVERED)
        self._host.finished(call_id, Outcome.of(outcome.cancelled("some task")))

    def _report(self, worker: _Worker, kind: str, number: int, *rest: Any) -> None:
        if kind != "finished" or number == worker.call:
            super()._report(worker, kind, number, *rest)


class LeaksProcess(ForeignPool):
    """Leaves a process behind."""

    def open(self, host: Host) -> EngineInfo:
        # It ends by itself, so that the test that runs this leaves nothing either.
        subprocess.Popen(["sleep", "20"], start_new_session=True)
        return super().open(host)


class LeaksThread(ForeignPool):
    """Leaves a thread behind."""

    def close(self, *, kill: bool) -> None:
        threading.Thread(target=threading.Event().wait, name="left-behind", daemon=True).start()
        super().close(kill=kill)


class LeaksDescriptor(ForeignPool):
    """Leaves a descriptor open."""

    def close(self, *, kill: bool) -> None:
        os.pipe()
        super().close(kill=kill)


class WrongGpus(ForeignPool):
    """Shows all tasks the same accelerators."""

    def submit(self, call: Call) -> None:
        attempt = _attempt(call)
        if attempt.gpu_ids:
            same = tuple(map(str, range(len(attempt.gpu_ids))))
            call = attrs.evolve(call, head=attrs.evolve(attempt, gpu_ids=same).encode())
        super().submit(call)


class Overclaims(ForeignPool):
    """Says that it has more than it was given."""

    def nodes(self) -> Sequence[Node]:
        return [
            attrs.evolve(node, total=attrs.evolve(node.total, cpus=2 * node.total.cpus)) for node in super().nodes()
        ]


class Keeps(ForeignPool):
    """Keeps the values that are put."""

    def open(self, host: Host) -> EngineInfo:
        self._kept: dict[object, Stored] = {}
        return super().open(host)

    def put(self, stored: Stored) -> object | None:
        handle = object()
        self._kept[handle] = stored
        return handle

    def get(self, handle: object) -> Stored:
        try:
            return self._kept[handle]
        except KeyError:
            raise ObjectLost("put", "it is gone") from None

    def free(self, handle: object) -> None:
        self._kept.pop(handle, None)

    def submit(self, call: Call) -> None:
        super().submit(attrs.evolve(call, values=[self._here(value) for value in call.values]))

    def reply(self, request_id: object, message: bytes, values: Sequence[Value]) -> None:
        super().reply(request_id, message, [self._here(value) for value in values])

    def _here(self, value: Value) -> Value:
        return value if value.stored is not None else Value(self.get(value.handle))


class FreesEarly(Keeps):
    """Forgets a value once it was used."""

    def _here(self, value: Value) -> Value:
        found = super()._here(value)
        self._kept.pop(value.handle, None)
        return found


class Hoards(Keeps):
    """Never frees a value."""

    def free(self, handle: object) -> None:
        return None


class RetriesSilently(ForeignPool):
    """Runs the call of a worker that has died again, without asking."""

    def open(self, host: Host) -> EngineInfo:
        self._calls: dict[int, Call] = {}
        return super().open(_Retrying(host, self))

    def submit(self, call: Call) -> None:
        self._calls[call.id] = call
        super().submit(call)


class _Retrying(_Filter):
    def __init__(self, host: Host, backend: RetriesSilently) -> None:
        super().__init__(host)
        self._backend = backend

    def lost(self, call_id: int, death: Death) -> None:
        call = self._backend._calls.pop(call_id, None)
        if call is None:
            self._host.lost(call_id, death)
        else:
            ForeignPool.submit(self._backend, call)


class TakesOthersAlong(ForeignPool):
    """Kills all workers when one has died."""

    def open(self, host: Host) -> EngineInfo:
        return super().open(_Contagious(host, self))


class _Contagious(_Filter):
    def __init__(self, host: Host, backend: TakesOthersAlong) -> None:
        super().__init__(host)
        self._backend = backend

    def lost(self, call_id: int, death: Death) -> None:
        self._host.lost(call_id, death)
        with self._backend._lock:
            workers = [*self._backend._workers.values()]
        for worker in workers:
            worker.kill()


class NeverOpens(ForeignPool):
    """Waits for ever when it is opened."""

    def open(self, host: Host) -> EngineInfo:
        threading.Event().wait()
        return super().open(host)


class _Muting(_Filter):
    def told(self, call_id: int, message: Stored) -> None:
        return


class Mute(Filtered):
    """Passes on nothing of what calls tell."""

    Filter = _Muting


class _Late(_Filter):
    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._told: list[tuple[int, Stored]] = []

    def told(self, call_id: int, message: Stored) -> None:
        self._told.append((call_id, message))

    def finished(self, call_id: int, result: Outcome) -> None:
        self._host.finished(call_id, result)
        threading.Timer(0.2, self._tell).start()

    def _tell(self) -> None:
        told, self._told = self._told, []
        for call_id, message in told:
            self._host.told(call_id, message)


class TellsLate(Filtered):
    """Passes on what calls tell when they have ended."""

    Filter = _Late


class DeclaresWhatItKeeps(ForeignPool):
    """Declares a deviation from a clause that it keeps, and for which the suite has no other test."""

    deviations = (Deviation("W1", "none at all", "nothing else"),)


@attrs.frozen(kw_only=True)
class AddressedConfig(ForeignPoolConfig):
    """Takes the address of a cluster; there is none, so that workers are started anyhow."""

    address: str = attrs.field(default="", converter=str)


class Addressed(ForeignPool):
    """Says that it connects to somebody's cluster."""

    Config = AddressedConfig


def _attempt(call: Call) -> Attempt:
    return Attempt.decode(call.head)


def _packed(stored: Stored) -> tuple[bytes, list[bytes]]:
    return stored.data, [bytes(buffer) for buffer in stored.buffers]

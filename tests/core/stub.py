"""A backend that does nothing by itself: a test sees what it is told, and says what becomes of each call."""

from __future__ import annotations

from collections.abc import Sequence
from queue import SimpleQueue
from typing import Any, ClassVar

import attrs

from polyexec import Executor, Resources, outcome
from polyexec.driver import DriverSession
from polyexec.runtime import Runtime
from polyexec.session import NO_INFO
from polyexec.spi import Backend, Call, Capabilities, EngineInfo, Host, Node, Outcome, Stored, Value, Verdict
from polyexec.stored import Head

from .gates import LIMIT


@attrs.frozen(kw_only=True)
class StubConfig:
    """What the stub has."""

    total: Resources = attrs.field(factory=lambda: Resources(2))
    keeps: bool = False


class StubBackend(Backend):
    """Queues what it is told, for a test to look at.

    With ``keeps`` it keeps values as an engine with an object store does: those of ``put``, and all results.
    """

    Config = StubConfig
    capabilities: ClassVar[Capabilities] = Capabilities()
    config: StubConfig

    def open(self, host: Host) -> EngineInfo:
        self.host = host
        self.alive = True
        self.refuses: Exception | None = None
        self.calls: SimpleQueue[Call] = SimpleQueue()
        self.cancels: SimpleQueue[tuple[int, bool]] = SimpleQueue()
        self.kept: dict[object, Stored] = {}
        self.freed: SimpleQueue[object] = SimpleQueue()
        self.closed: list[bool] = []
        return EngineInfo("stub 1.0")

    def close(self, *, kill: bool) -> None:
        self.closed.append(kill)

    def nodes(self) -> Sequence[Node]:
        return (Node("node", "host", self.config.total),) if self.alive else ()

    def submit(self, call: Call) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.calls.put(call)

    def cancel(self, call_id: int, *, force: bool) -> None:
        self.cancels.put((call_id, force))

    def reply(self, request_id: object, message: bytes, values: Sequence[Value]) -> None:
        raise NotImplementedError

    def put(self, stored: Stored) -> object | None:
        return self._keep(stored) if self.config.keeps else None

    def get(self, handle: object) -> Stored:
        return self.kept[handle]

    def free(self, handle: object) -> None:
        del self.kept[handle]
        self.freed.put(handle)

    def _keep(self, stored: Stored) -> object:
        handle = f"handle {len(self.kept)}"
        self.kept[handle] = stored
        return handle

    # What a test does

    def take(self) -> Call:
        """Give the next call that was submitted."""
        return self.calls.get(timeout=LIMIT)

    def finish(self, call: Call, value: Any) -> None:
        """Let a call end with a value, or with an exception."""
        error = isinstance(value, BaseException)
        stored = outcome.encode_error(value) if error else outcome.encode_value(call.name, value)
        if self.config.keeps:
            _, length = Head.decode(stored.data)
            self.host.finished(call.id, Outcome(stored.data[:length], None, self._keep(stored)))
        else:
            self.host.finished(call.id, Outcome.of(stored))

    def revoke_all(self) -> None:
        """Answer the next attempt to stop a call: it never starts."""
        call_id, _ = self.cancels.get(timeout=LIMIT)
        self.host.stopped(call_id, Verdict.REVOKED)


def connect_stub(config: StubConfig) -> tuple[Executor, StubBackend]:
    """Do as ``polyexec.connect`` does, without an entry point."""
    backend = StubBackend(config)
    runtime = Runtime(backend, f"stub{id(backend)}")
    engine = backend.open(runtime)
    return Executor(DriverSession(backend, runtime, attrs.evolve(NO_INFO, engine=engine.engine, workers=2))), backend

"""The backend: the core's thread on one side, an event loop in a thread of its own on the other."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ClassVar, TypeVar

from polyexec.errors import ObjectLost
from polyexec.spi import (
    Backend,
    Call,
    Capabilities,
    Deviation,
    EngineInfo,
    Host,
    Node,
    Protection,
    Stored,
    Value,
    WorkerState,
)
from polyexec_dask import engine_threads, memory
from polyexec_dask.cluster import Cluster
from polyexec_dask.configuration import DaskConfig
from polyexec_dask.existing_cluster import ExistingCluster
from polyexec_dask.looks import look_at
from polyexec_dask.own_cluster import OwnCluster
from polyexec_dask.remote import Kept

Result = TypeVar("Result")


class DaskBackend(Backend):
    """Runs calls on Dask's distributed scheduler."""

    Config: ClassVar[type[Any]] = DaskConfig
    deviations: ClassVar[tuple[Deviation, ...]] = (
        Deviation(
            "F16",
            "What a task has started is found by the process group of its worker. When the worker has died, nothing "
            "tells any more where a process came from that has left this group.",
            "Processes in the worker's process group die with it; those that lead a group or a session of their own "
            "live on.",
        ),
    )
    capabilities: ClassVar[Capabilities] = Capabilities(
        processes=True, queues_calls=True, remote=True, shares_memory=True, places_calls=True
    )

    def __init__(self, config: DaskConfig) -> None:
        super().__init__(config)
        self._config = config
        self._cluster: Cluster
        self._loop: asyncio.AbstractEventLoop
        self._thread: threading.Thread
        self._orders: deque[Callable[[], None]] = deque()
        self._calls: list[Call] = []
        self._is_closed = False

    def open(self, host: Host) -> EngineInfo:
        kind = OwnCluster if self._config.address is None else ExistingCluster
        self._cluster = kind(host, self._config)
        self._loop = asyncio.new_event_loop()
        self._engine = engine_threads.Watch()
        self._thread = threading.Thread(target=self._serve, name=f"polyexec-dask-{host.executor_id[:8]}", daemon=True)
        self._thread.start()
        try:
            return self._run(self._cluster.open())
        except BaseException:
            self.close(kill=True)
            raise

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        with self._engine:
            try:
                self._loop.run_forever()
            finally:
                self._loop.run_until_complete(self._loop.shutdown_asyncgens())
                self._loop.run_until_complete(self._loop.shutdown_default_executor())
                self._loop.close()

    def _run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self, *, kill: bool) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        try:
            self._run(self._cluster.close(kill=kill))
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def nodes(self) -> Sequence[Node]:
        return self._cluster.nodes()

    def protection(self) -> Protection:
        return self._cluster.protection()

    def _order(self, action: Callable[..., None], *arguments: Any) -> None:
        """Have something done in the event loop, in the order of these calls, with one wake-up for many."""
        self._orders.append(lambda: action(*arguments))
        if len(self._orders) == 1:
            self._loop.call_soon_threadsafe(self._obey)

    def _obey(self) -> None:
        try:
            for _ in range(len(self._orders)):
                self._orders.popleft()()
            self._hand_over()
            self._cluster.balance()
        finally:
            if self._orders:
                self._loop.call_soon(self._obey)

    def _take(self, call: Call) -> None:
        self._calls.append(call)

    def _hand_over(self) -> None:
        """Send the calls that were taken, together."""
        calls, self._calls = self._calls, []
        if calls:
            self._cluster.dispatcher.submit(calls)

    def submit(self, call: Call) -> None:
        self._order(self._take, call)

    def cancel(self, call_id: int, *, force: bool) -> None:
        self._order(self._cancel, call_id, force)

    def _cancel(self, call_id: int, force: bool) -> None:
        self._hand_over()
        self._cluster.dispatcher.cancel(call_id, force=force)

    def reply(self, request_id: object, message: bytes, values: Sequence[Value]) -> None:
        self._order(self._reply, request_id, message, values)

    def _reply(self, request_id: object, message: bytes, values: Sequence[Value]) -> None:
        self._cluster.dispatcher.reply(request_id, message, values)

    def put(self, stored: Stored) -> object | None:
        if stored.nbytes < memory.THRESHOLD:
            return None
        return Kept.holding(stored)

    def get(self, handle: object) -> Stored:
        assert isinstance(handle, Kept)
        try:
            return handle.load()
        except OSError as error:
            raise ObjectLost("put", str(error)) from error

    def free(self, handle: object) -> None:
        self._order(self._free, handle)

    def _free(self, kept: Kept) -> None:
        self._cluster.dispatcher.free(kept)

    def blocked(self, call_id: int) -> None:
        self._order(self._blocked, call_id)

    def _blocked(self, call_id: int) -> None:
        self._cluster.dispatcher.blocked(call_id)

    def inspect(self, timeout: float) -> Sequence[WorkerState]:
        return [] if self._is_closed else look_at(self._cluster.dispatcher.remotes, self._loop, timeout)

    def resumed(self, call_id: int) -> None:
        self._order(self._resumed, call_id)

    def _resumed(self, call_id: int) -> None:
        self._cluster.dispatcher.resumed(call_id)

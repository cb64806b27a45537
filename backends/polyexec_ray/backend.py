"""The backend: nodes, and who among them runs what."""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, cast

import ray

from polyexec.errors import BackendBroken, BackendLost, ObjectLost
from polyexec.options import Resources
from polyexec.spi import Backend, Call, Capabilities, Death, EngineInfo, Host, Node, Stored, Value
from polyexec_ray import nodes
from polyexec_ray.config import RayConfig
from polyexec_ray.engine import Engine, acquire
from polyexec_ray.errors import first_line, translated
from polyexec_ray.freight import LARGE, Kept, load, reference_of, unload
from polyexec_ray.link import Link, Surroundings
from polyexec_ray.site import Site

_TICK = 0.5
_END_DELAY = 5.0


class RayBackend(Backend):
    """Ray: a pool of worker actors on each node.

    State: ``_sites`` and ``_places`` are written by the core's thread, the latter also where calls end, by atomic
    operations. ``_nodes`` is replaced as a whole by the ticker thread.
    """

    Config: ClassVar[type[Any]] = RayConfig
    capabilities: ClassVar[Capabilities] = Capabilities(
        processes=True, assigns_gpus=True, queues_calls=True, remote=True
    )

    config: RayConfig

    def __init__(self, config: RayConfig) -> None:
        super().__init__(config)
        self._host: Host
        self._engine: Engine
        self._around: Surroundings
        self._nodes: tuple[Node, ...] = ()
        self._sites: dict[str, Site] = {}
        self._places: dict[int, Site] = {}
        self._jobs: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._ticker: threading.Thread | None = None
        self._failed = False

    def open(self, host: Host) -> EngineInfo:
        self._host = _Watched(host, self._places)
        self._engine = acquire(self.config)
        try:
            self._start()
        except BaseException:
            self.close(kill=True)
            raise
        return EngineInfo(f"ray {self._engine.version}", self._engine.address, self._engine.dashboard)

    def close(self, *, kill: bool) -> None:
        self._jobs.put(None)
        if self._ticker is not None:
            self._ticker.join()
        pids = [pid for site in self._sites.values() for pid in site.pids()] if self._engine.own else []
        if not self._failed:
            for site in self._sites.values():
                with contextlib.suppress(Exception):
                    site.close()
        self._engine.release()
        _wait_for_end(pids)

    def nodes(self) -> Sequence[Node]:
        return self._nodes

    def submit(self, call: Call) -> None:
        site = self._site(call.lease.node)
        if site is None:
            death = Death(call.lease.node, cause="the node has left the cluster", started=False)
            self._host.lost(call.id, death)
            return
        self._places[call.id] = site
        site.submit(call)

    def cancel(self, call_id: int, *, force: bool) -> None:
        site = self._places.get(call_id)
        if site is None:
            site = next(iter(self._sites.values()))
        site.cancel(call_id, force=force)

    def reply(self, request_id: object, message: bytes, values: Sequence[Value]) -> None:
        link, number = cast(tuple[Link, int], request_id)
        link.reply(number, message, values)

    def put(self, stored: Stored) -> object | None:
        if stored.nbytes < LARGE:
            return None
        try:
            return Kept(ray.put(load(stored)))
        except Exception as error:
            raise translated(error, "put") from error

    def get(self, handle: object) -> Stored:
        reference = reference_of(handle)
        if reference is None:
            raise ObjectLost("a task", "it has been freed")
        try:
            return unload(ray.get(reference))
        except Exception as error:
            raise translated(error, "a task") from error

    def free(self, handle: object) -> None:
        if isinstance(handle, Kept):
            handle.reference = None

    def blocked(self, call_id: int) -> None:
        site = self._places.get(call_id)
        if site is not None:
            site.block(call_id)

    def resumed(self, call_id: int) -> None:
        site = self._places.get(call_id)
        if site is not None:
            site.resume(call_id)

    def _start(self) -> None:
        own = self._engine.own
        total = self.config.total() if own else Resources()
        self._around = Surroundings(
            host=self._host,
            own=own,
            client=self._engine.client,
            spare=int(total.cpus),
            idle_timeout=self.config.idle_timeout,
            start_timeout=self.config.start_timeout,
            later=self._jobs.put,
            engine_failure=self._engine_failure,
        )
        if own:
            node = Node(_node_id(), socket.gethostname(), total, slots=max(8, 4 * int(total.cpus)))
            self._nodes = (node,)
            site = self._sites[node.id] = Site(self._around, None, node.host, int(total.cpus))
            site.prestart()
            self._greet(site)
        else:
            self._nodes = nodes.current()
        self._ticker = threading.Thread(target=self._tick, name="polyexec-ray-ticker", daemon=True)
        self._ticker.start()

    def _greet(self, site: Site) -> None:
        try:
            ray.get(site.link.agent.host.remote(), timeout=self.config.start_timeout)
        except Exception as error:
            raise BackendBroken(f"Ray does not start the agent of the workers: {first_line(error)}") from error

    def _site(self, node_id: str) -> Site | None:
        site = self._sites.get(node_id)
        if site is not None:
            return site
        node = next((node for node in self._nodes if node.id == node_id and node.alive), None)
        if node is None:
            return None
        return self._sites.setdefault(node_id, Site(self._around, node_id, node.host, int(node.total.cpus)))

    def _engine_failure(self) -> str | None:
        dead = self._engine.dead_process()
        return None if dead is None else f"Ray's {dead} has died, and the instance with it"

    def _tick(self) -> None:
        due = time.monotonic() + _TICK
        while True:
            try:
                job = self._jobs.get(timeout=max(0.0, due - time.monotonic()))
            except queue.Empty:
                job = self._look_after
                due = time.monotonic() + _TICK
            if job is None:
                return
            try:
                job()
            except Exception as error:
                if not self._failed:
                    self._failed = True
                    self._host.broken(BackendBroken(f"Ray does not do what it is asked: {first_line(error)}"))

    def _look_after(self) -> None:
        failure = self._engine_failure()
        if failure is None and not self._engine.own:
            failure = self._look_at_nodes()
        if failure is not None:
            if not self._failed:
                self._failed = True
                self._host.broken(BackendLost(failure))
            return
        for site in list(self._sites.values()):
            site.tick(time.monotonic())

    def _look_at_nodes(self) -> str | None:
        failure = nodes.unreachable(self._engine.address)
        if failure is not None:
            return failure
        found = nodes.current()
        if found != self._nodes:
            self._nodes = found
            self._host.nodes_changed()
        return None


class _Watched:
    """The core, with a look at where calls end."""

    def __init__(self, host: Host, places: dict[int, Site]) -> None:
        self.executor_id = host.executor_id
        self.setup = host.setup
        self.started = host.started
        self.stopped = host.stopped
        self.request = host.request
        self.nodes_changed = host.nodes_changed
        self.broken = host.broken
        self._finished = host.finished
        self._lost = host.lost
        self._forget = places.pop

    def finished(self, call_id: int, outcome: Any) -> None:
        self._forget(call_id, None)
        self._finished(call_id, outcome)

    def lost(self, call_id: int, death: Death) -> None:
        self._forget(call_id, None)
        self._lost(call_id, death)


def _node_id() -> str:
    return str(ray.get_runtime_context().get_node_id())


def _wait_for_end(pids: Sequence[int]) -> None:
    """Wait until processes of this machine have ended, which Ray does not."""
    end = time.monotonic() + _END_DELAY
    while time.monotonic() < end and any(os.path.exists(f"/proc/{pid}") for pid in pids):
        time.sleep(0.005)

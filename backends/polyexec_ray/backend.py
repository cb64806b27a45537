"""The backend: nodes, and who among them runs what."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import ray

from polyexec.errors import BackendBroken, BackendLost, ObjectLost
from polyexec.options import Resources
from polyexec.spi import (
    Backend,
    Call,
    Capabilities,
    Death,
    Deviation,
    EngineInfo,
    Host,
    Node,
    Protection,
    Stored,
    Value,
    WorkerState,
)
from polyexec_ray import nodes
from polyexec_ray.config import RayConfig
from polyexec_ray.engine import Engine, acquire
from polyexec_ray.errands import Errands
from polyexec_ray.errors import first_line, translated
from polyexec_ray.freight import LARGE, Kept, load, reference_of, unload
from polyexec_ray.link import Link, Surroundings
from polyexec_ray.processes import end_family, family
from polyexec_ray.site import Site

_FIRST_LOOK = 10.0


class RayBackend(Backend):
    """Ray: a pool of worker actors on each node.

    State: ``_sites`` and ``_places`` are written by the core's thread, the latter also where calls end, by atomic
    operations. ``_nodes`` is replaced as a whole by the ticker thread.
    """

    Config: ClassVar[type[Any]] = RayConfig
    deviations: ClassVar[tuple[Deviation, ...]] = (
        Deviation(
            "F9",
            "Ray's gRPC keeps two sockets open in the driver when ray.shutdown has ended an instance, and fails if "
            "they are closed under it.",
            "No process, thread, file or connection is left; two descriptors of sockets without a peer are, for each "
            "instance of our own that was stopped.",
        ),
        Deviation(
            "F8",
            "Ray's processes end by themselves when they find that the driver is gone. Two of them may try first, for "
            "about a minute, to report this to one that has ended already, and none removes the folder of their logs.",
            "Workers, what tasks have started, and shared memory are gone at once; processes of Ray's own are after "
            "about a minute, and the folder polyexec-* stays among the temporary files.",
        ),
        Deviation(
            "F16",
            "What a task has started is found by the process group of its worker. When the worker has died, nothing "
            "tells any more where a process came from that has left this group.",
            "Processes in the worker's process group die with it; those that lead a group or a session of their own "
            "live on.",
        ),
    )
    capabilities: ClassVar[Capabilities] = Capabilities(
        processes=True,
        assigns_gpus=True,
        queues_calls=True,
        remote=True,
        shares_memory=True,
        loses_values=True,
        places_calls=True,
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
        self._errands: Errands

    def open(self, host: Host) -> EngineInfo:
        self._host = _Watched(host, self._places)
        self._engine = acquire(self.config)
        self._errands = Errands(self._tick, self._look, host.broken)
        try:
            self._start()
        except BaseException:
            self.close(kill=True)
            raise
        return EngineInfo(f"ray {self._engine.version}", self._engine.address, self._engine.dashboard)

    def close(self, *, kill: bool) -> None:
        self._errands.end()
        lost = self._errands.failed
        pids = [pid for site in self._sites.values() for pid in site.pids()]
        workers = family(pids) if self._engine.own and not lost else {}
        if not lost:
            for site in self._sites.values():
                with contextlib.suppress(Exception):
                    site.close()
        self._engine.release()
        self._errands.join()
        end_family(workers)

    def nodes(self) -> Sequence[Node]:
        return self._nodes

    def protection(self) -> Protection:
        return self._engine.protection()

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
            return Kept(ray.put(load(stored, copy=self._engine.client)))
        except Exception as error:
            raise translated(error, "put") from error

    def get(self, handle: object) -> Stored:
        reference = reference_of(handle)
        if reference is None:
            raise ObjectLost("a task", "it has been freed")
        try:
            return unload(self._bring(reference))
        except BackendLost:
            raise
        except Exception as error:
            raise translated(error, "a task") from error

    def _bring(self, reference: Any) -> Any:
        """Wait for a value; looks now and then, and ever more rarely, whether Ray still lives."""
        patience = _FIRST_LOOK
        while True:
            try:
                return ray.get(reference, timeout=patience)
            except ray.exceptions.GetTimeoutError:
                if self._errands.failed:
                    raise BackendLost("Ray is gone, and the value with it") from None
                # What is on its way begins anew, maybe.
                patience *= 2

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

    def inspect(self, timeout: float) -> Sequence[WorkerState]:
        sites = list(self._sites.items())
        if self._engine.own:
            return [state for node, site in sites for state in site.look(node, timeout)]
        # Ray brings the questions and the answers; all nodes have the same time.
        questions = [(node, site, site.ask_agent(timeout / 2)) for node, site in sites]
        end = time.monotonic() + timeout
        return [state for node, site, answer in questions for state in site.look_afar(node, answer, end)]

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
            later=self._errands.later,
            engine_failure=self._engine_failure,
            is_alive=self._is_alive,
        )
        self._errands.start()
        if own:
            slots = max(8, 4 * int(total.cpus))
            node = Node(_node_id(), socket.gethostname(), total, slots, gpu_ids=self.config.gpu_ids())
            self._nodes = (node,)
            site = self._sites[node.id] = Site(self._around, None, node.host, int(total.cpus))
            site.prestart()
            self._greet(site)
        else:
            self._nodes = nodes.current()

    def _greet(self, site: Site) -> None:
        try:
            ray.get(site.link.agent.host.remote(), timeout=self.config.start_timeout)
        except Exception as error:
            raise BackendBroken(f"Ray does not start the agent of the workers: {first_line(error)}") from error

    def _site(self, node_id: str) -> Site | None:
        site = self._sites.get(node_id)
        if site is not None:
            return None if site.has_left else site
        node = next((node for node in self._nodes if node.id == node_id and node.alive), None)
        if node is None:
            return None
        return self._sites.setdefault(node_id, Site(self._around, node_id, node.host, int(node.total.cpus)))

    def _engine_failure(self) -> str | None:
        dead = self._engine.dead_process()
        return None if dead is None else f"Ray's {dead} has died, and the instance with it"

    def _is_alive(self, node_id: str) -> bool:
        self._take_nodes()
        return any(node.alive for node in self._nodes if node.id == node_id)

    def _take_nodes(self) -> None:
        found = nodes.current()
        if found != self._nodes:
            self._nodes = found
            self._host.nodes_changed()

    def _tick(self) -> None:
        if not self._engine.own:
            self._take_nodes()
        for site in list(self._sites.values()):
            site.tick(time.monotonic())

    def _look(self) -> str | None:
        failure = self._engine_failure()
        if failure is None and not self._engine.own:
            failure = nodes.unreachable(self._engine.address)
        return failure


class _Watched:
    """The core, with a look at where calls end."""

    def __init__(self, host: Host, places: dict[int, Site]) -> None:
        self.executor_id = host.executor_id
        self.setup = host.setup
        self.started = host.started
        self.placed = host.placed
        self.stopped = host.stopped
        self.request = host.request
        self.told = host.told
        self.nodes_changed = host.nodes_changed
        self.broken = host.broken
        self._finished = host.finished
        self._missing = host.missing
        self._lost = host.lost
        self._forget = places.pop

    def finished(self, call_id: int, outcome: Any) -> None:
        self._forget(call_id, None)
        self._finished(call_id, outcome)

    def missing(self, call_id: int, handles: Sequence[object], reason: str) -> None:
        self._forget(call_id, None)
        self._missing(call_id, handles, reason)

    def lost(self, call_id: int, death: Death) -> None:
        self._forget(call_id, None)
        self._lost(call_id, death)


def _node_id() -> str:
    return str(ray.get_runtime_context().get_node_id())

"""A cluster that runs already: we borrow its workers and leave it as it was."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Callable, Coroutine
from typing import Any

from polyexec.errors import BackendBroken, BackendLost, PolyexecError
from polyexec.options import Resources
from polyexec.spi import Death, EngineInfo, Host, Node, Protection
from polyexec_dask import security
from polyexec_dask.cluster import Cluster
from polyexec_dask.configuration import DaskConfig
from polyexec_dask.dispatcher import Dispatcher
from polyexec_dask.engine import VERSION, Client, dumps, loads
from polyexec_dask.exits import ExitRecorder, as_death, exit_status
from polyexec_dask.plugin import AgentPlugin, operation
from polyexec_dask.remote import Remote

_CHECK_SECONDS = 0.5
_EXTRA_SLOTS = 4
_REFRESH_SECONDS = 2.0
_SILENCE_SECONDS = 30.0
_NANNY_SECONDS = 3.0
_REPLACEMENT_SECONDS = 20.0
_GPU_NAMES = ("GPU", "gpu", "gpus")
_LABEL = re.compile(r"label\.[^.]+\..+")
"""Dask has resources, which are amounts, but no labels: a resource of such a name is one."""


class ExistingCluster(Cluster):
    """Uses the workers of a scheduler at an address.

    Args:
        host: the core.
        config: where the scheduler is.
    """

    def __init__(self, host: Host, config: DaskConfig) -> None:
        super().__init__(host)
        self._config = config
        self._address = config.address or ""
        self._timeout = config.connect_timeout
        self._start_timeout = config.start_timeout
        self._limit = config.calls_per_worker
        self._information: dict[str, dict[str, Any]] = {}
        self._attaching: set[str] = set()
        self._refused: set[str] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._client: Any = None
        self._is_lost = False
        self._departed: dict[str, tuple[dict[str, Any], float]] = {}

    async def open(self) -> EngineInfo:
        """Connect, put our agent into every worker, and attach to it."""
        self._client = self.client = await self._connect()
        self.dispatcher = Dispatcher(self._host, self.client, limit=self._limit, secedes=True)
        try:
            await self.client.register_plugin(ExitRecorder())
            await self.client.register_plugin(AgentPlugin(self._host.executor_id, self._host.setup))
        except Exception as error:
            raise BackendBroken(
                f"the workers of {self._address} cannot load polyexec: {error}; install the same version of polyexec, "
                "with its Dask extra, on the scheduler and on all workers"
            ) from error
        await self._find_workers()
        self.client.subscribe_topic("all", self._on_event)
        self._start(self._keep_watch())
        information = await self.client.scheduler.identity()
        port = information.get("services", {}).get("dashboard")
        host = self._address.split("://")[1].rsplit(":", 1)[0]
        dashboard = f"http://{host}:{port}/status" if port else None
        return EngineInfo(f"dask.distributed {VERSION}", self._address, dashboard)

    def protection(self) -> Protection:
        """What the address says: the cluster decides."""
        encrypted = self._config.is_protected
        key = self._config.tls_key or self._config.tls_cert
        known = "TLS with certificates of the cluster's owner" if encrypted else ""
        return Protection(known, encrypted, (key,) if key else ())

    async def _find_workers(self) -> None:
        """Attach to what is there; wait a while for the first worker, but not for ever: the cluster may grow later."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout
        await self._refresh(raises=True)
        while not self.dispatcher.remotes and loop.time() < deadline:
            await asyncio.sleep(_CHECK_SECONDS)
            await self._refresh(raises=True)

    async def _connect(self) -> Any:
        protection = security.given(self._config)
        client = Client(
            self._address, security=protection, asynchronous=True, set_as_default=False, timeout=self._timeout
        )
        try:
            await asyncio.wait_for(client, self._timeout)
        except (OSError, ValueError) as error:
            with contextlib.suppress(Exception):
                await client.close()
            reason = str(error).splitlines()[0] if str(error) else f"no answer within {self._timeout:g} s"
            raise BackendLost(f"no Dask scheduler answers at {self._address} ({reason})") from None
        return client

    def _start(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _on_event(self, event: tuple[float, Any]) -> None:
        _, message = event
        if isinstance(message, dict) and message.get("action") in ("add-worker", "remove-worker"):
            self._start(self._refresh())

    async def _keep_watch(self) -> None:
        loop = asyncio.get_running_loop()
        heard = refreshed = loop.time()
        while True:
            await asyncio.sleep(_CHECK_SECONDS)
            comm = self.client.scheduler_comm
            if self.client.status != "running" or comm is None or comm.closed():
                self._lose(f"the Dask scheduler at {self._address} is gone")
                return
            if loop.time() - refreshed < _REFRESH_SECONDS:
                continue
            refreshed = loop.time()
            try:
                await asyncio.wait_for(self._refresh(), _SILENCE_SECONDS)
                heard = loop.time()
            except OSError:
                if loop.time() - heard >= _SILENCE_SECONDS:
                    self._lose(f"the Dask scheduler at {self._address} does not answer")
                    return

    def _lose(self, reason: str) -> None:
        self._is_lost = True
        self._host.broken(BackendLost(reason))

    async def _refresh(self, *, raises: bool = False) -> None:
        identity = await self.client.scheduler.identity(n_workers=-1)
        self._information = dict(identity["workers"])
        known = self._attaching | self._refused | set(self.dispatcher.remotes)
        fresh = [address for address in self._information if address not in known]
        self._attaching.update(fresh)
        errors = await asyncio.gather(*(self._adopt(address) for address in fresh))
        self._publish()
        found = [error for error in errors if error is not None]
        if raises and found and not self.dispatcher.remotes:
            raise found[0]

    async def _adopt(self, address: str) -> PolyexecError | None:
        host = str(self._information[address]["host"])
        try:
            work = self._attach(address, host, host)
            self.dispatcher.add(await asyncio.wait_for(work, self._start_timeout))
        except BackendBroken as error:
            self._refused.add(address)
            return error
        except OSError as error:
            self._refused.add(address)
            return BackendLost(f"the Dask worker at {address} cannot be reached from here ({error})")
        finally:
            self._attaching.discard(address)
        return None

    def _publish(self) -> None:
        self._forget_departed()
        hosts: dict[str, list[dict[str, Any]]] = {}
        present = [self._information[address] for address in self.dispatcher.remotes if address in self._information]
        for information in [*present, *(worker for worker, _ in self._departed.values())]:
            hosts.setdefault(str(information["host"]), []).append(information)
        lost = {node.id for node in self._nodes} - hosts.keys()
        self._set_nodes([_node(host, workers, self._limit) for host, workers in sorted(hosts.items())])
        for node in lost:
            self.dispatcher.abandon(node)

    def _forget_departed(self) -> None:
        """Forget the dead workers that their nannies have replaced, or had long enough to replace."""
        now = asyncio.get_running_loop().time()
        nannies = {self._information.get(address, {}).get("nanny") for address in self.dispatcher.remotes}
        for address, (information, deadline) in list(self._departed.items()):
            if now > deadline or information["nanny"] in nannies:
                del self._departed[address]

    def _on_link_closed(self, remote: Remote) -> None:
        super()._on_link_closed(remote)
        if self._is_closing:
            return
        information = self._information.get(remote.address, {})
        if information.get("nanny"):
            deadline = asyncio.get_running_loop().time() + _REPLACEMENT_SECONDS
            self._departed[remote.address] = (information, deadline)
        self._publish()

    def _kill(self, remote: Remote) -> None:
        if remote.shares_memory:
            with contextlib.suppress(ProcessLookupError):
                os.kill(remote.pid, signal.SIGKILL)
        else:
            self._start(self._kill_remotely(remote))

    def _guard(self, remote: Remote, before: int, allowance: int) -> None:
        remote.link.send(("guard", before, allowance))

    async def _kill_remotely(self, remote: Remote) -> None:
        killed = await self._ask_nanny(remote, os.kill, remote.pid, int(signal.SIGKILL))
        if not killed:
            remote.link.send(("die",))

    async def _ask_nanny(self, remote: Remote, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Run a function in a worker's nanny; gives a list with its result, or an empty one if that is not possible."""
        nanny = self._information.get(remote.address, {}).get("nanny")
        if not nanny:
            return []
        try:
            work = self.client.rpc(nanny).run(function=dumps(function), args=dumps(arguments))
            answer = await asyncio.wait_for(work, _NANNY_SECONDS)
        except OSError:
            return []
        if answer.get("status") != "OK":
            return []
        result = answer["result"]
        return [loads(result) if isinstance(result, bytes) else result]

    def _bury(self, remote: Remote, mourn: Callable[[Death], None]) -> None:
        self._start(self._mourn(remote, mourn))

    async def _mourn(self, remote: Remote, mourn: Callable[[Death], None]) -> None:
        answer = await self._ask_nanny(remote, exit_status, remote.address)
        mourn(Death(remote.host, remote.pid, cause=remote.cause, **as_death(answer[0] if answer else None)))

    async def close(self, *, kill: bool) -> None:
        """Take our agent out of all workers, and disconnect."""
        self._is_closing = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._client is None:
            return
        if kill:
            for remote in self.dispatcher.remotes.values():
                if any(record.started for record in remote.records.values()):
                    self._kill(remote)
        await self._close_links()
        if not self._is_lost:
            with contextlib.suppress(OSError):
                work = self.client.unregister_worker_plugin(operation(self._host.executor_id))
                await asyncio.wait_for(work, _NANNY_SECONDS)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.client.close()


def _node(host: str, workers: list[dict[str, Any]], limit: int) -> Node:
    count = len(workers) * limit
    custom: dict[str, float] = {}
    for worker in workers:
        for name, amount in worker.get("resources", {}).items():
            custom[name] = custom.get(name, 0) + amount
    labels = dict(name.split(".", 2)[1:] for name in sorted(custom) if _LABEL.fullmatch(name))
    custom = {name: amount for name, amount in custom.items() if not _LABEL.fullmatch(name)}
    gpus = sum(custom.pop(name, 0) for name in _GPU_NAMES)
    cpus = sum(worker["nthreads"] for worker in workers)
    memory = sum(int(worker.get("memory_limit") or 0) for worker in workers)
    slots = max(2 * count, count + _EXTRA_SLOTS)
    return Node(host, host, Resources(cpus, gpus, memory, custom), slots, labels=labels)

"""A cluster of our own: a Dask scheduler in this process, and worker processes on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable
from typing import Any

import attrs

from polyexec import memory_usage
from polyexec.errors import BackendBroken
from polyexec.spi import Death, EngineInfo, Host, Node, Protection
from polyexec_dask import own_scheduler, security
from polyexec_dask.cluster import Cluster
from polyexec_dask.configuration import DaskConfig
from polyexec_dask.dispatcher import Dispatcher
from polyexec_dask.engine import VERSION
from polyexec_dask.nursery import Nursery
from polyexec_dask.remote import Remote

_START_ATTEMPTS = 3
_KILLED_ATTEMPTS = 20
_EXTRA_SLOTS = 4
_SPARE_SECONDS = 3.0
_DRAIN_SECONDS = 1.0
_EXIT_SECONDS = 3.0
_DEAF_SECONDS = 10.0


@attrs.define(eq=False)
class _Child:
    """A worker process of ours."""

    name: str
    pid: int | None = None
    remote: Remote | None = None
    ended: asyncio.Event = attrs.field(factory=asyncio.Event)
    status: int = 0
    timer: asyncio.TimerHandle | None = None
    retired: bool = False


class OwnCluster(Cluster):
    """Starts, replaces and ends workers.

    Args:
        host: the core.
        config: what to start.
    """

    def __init__(self, host: Host, config: DaskConfig) -> None:
        super().__init__(host)
        self._config = config
        total = config.total()
        self._target = int(total.cpus)
        self._hostname = socket.gethostname()
        self._node = Node(
            self._hostname,
            self._hostname,
            total,
            slots=max(2 * self._target, self._target + _EXTRA_SLOTS),
            gpu_ids=config.gpu_ids(),
        )
        self._children: dict[str, _Child] = {}
        self._attaching: set[asyncio.Task[None]] = set()
        self._failures = 0
        self._numbers = 0
        self._folder = ""
        self._nurseries = 0
        self._closed_nurseries: list[Nursery] = []
        self._ready: asyncio.Future[None] | None = None
        self._spare_check: asyncio.TimerHandle | None = None
        self._scheduler: Any = None
        self._nursery: Nursery | None = None
        self._security: Any = None

    async def open(self) -> EngineInfo:
        """Start the scheduler and all workers, and wait until they are ready."""
        loop = asyncio.get_running_loop()
        self._folder = tempfile.mkdtemp(prefix="polyexec-dask-")
        self._nursery = Nursery(self, self._folder)
        self._security = security.made(self._config.tls)
        self._ready = loop.create_future()
        self._scheduler = await own_scheduler.start(
            self._security, self._on_arrived, self._folder, dashboard=self._config.dashboard
        )
        self.client = await own_scheduler.connect(self._scheduler.address, self._security)
        self.dispatcher = Dispatcher(self._host, self.client, limit=1, secedes=False, width=self._target)
        self.balance()
        await self._ready
        self._set_nodes([self._node])
        dashboard = own_scheduler.dashboard(self._scheduler)
        return EngineInfo(f"dask.distributed {VERSION}", self._scheduler.address, dashboard)

    def protection(self) -> Protection:
        """A key that this process, the nursery and its workers alone have."""
        encrypted = self._security is not None
        known = "TLS with a key made for this cluster, which only its own processes have" if encrypted else ""
        return Protection(known, encrypted, (self._folder,))

    def balance(self) -> None:
        """Start the workers that are missing, and have those checked that are too many."""
        if self._is_closing:
            return
        living = sum(not child.retired and not _is_gone(child) for child in self._children.values())
        for _ in range(self._wanted() - living):
            self._start_child()
        if living > self._wanted() and self._spare_check is None:
            self._spare_check = asyncio.get_running_loop().call_later(_SPARE_SECONDS, self._retire_spare)

    def _wanted(self) -> int:
        """Count the workers that are needed: beside the usual ones, some for calls that wait or that hold no cpu."""
        remotes = [
            child.remote for child in self._children.values() if child.remote is not None and not _is_gone(child)
        ]
        waiting = sum(bool(remote.blocked_count) for remote in remotes)
        busy = sum(bool(remote.records) for remote in remotes)
        return max(self._target + waiting, busy + self.dispatcher.shortage())

    def _retire_spare(self) -> None:
        self._spare_check = None
        ready = [
            child for child in self._children.values() if not child.retired and not _is_gone(child) and child.remote
        ]
        idle = [child for child in ready if child.remote is not None and not child.remote.records]
        for child in idle[: max(0, len(ready) - self._wanted())]:
            child.retired = True
            if child.remote is not None:
                child.remote.gone = True
                child.remote.link.send(("exit",))
        self.balance()

    def _start_child(self) -> None:
        self._numbers += 1
        name = f"polyexec-{self._numbers}"
        child = self._children[name] = _Child(name)
        loop = asyncio.get_running_loop()
        child.timer = loop.call_later(self._config.start_timeout, self._give_up, child)
        self._nursery_or_fail().spawn(name, self._specification(name))

    def _specification(self, name: str) -> dict[str, Any]:
        options: dict[str, Any] = {
            "scheduler_ip": self._scheduler.address,
            "name": name,
            "nthreads": 1,
            "host": own_scheduler.LOOPBACK,
            # The core accounts for memory; Dask would stop giving work to a process that it thinks too large.
            "memory_limit": 0,
            "security": self._security,
        }
        return {"executor_id": self._host.executor_id, "setup": self._host.setup, "options": options}

    def _nursery_or_fail(self) -> Nursery:
        assert self._nursery is not None
        return self._nursery

    def _on_arrived(self, name: str, address: str) -> None:
        child = self._children.get(name)
        if child is not None:
            task = asyncio.get_running_loop().create_task(self._welcome(child, address))
            self._attaching.add(task)
            task.add_done_callback(self._attaching.discard)

    async def _welcome(self, child: _Child, address: str) -> None:
        try:
            remote = await self._attach(address, self._node.id, self._hostname)
        except BackendBroken as error:
            self._fail(error)
            return
        except OSError:
            # It died while it started; its end is reported by the nursery.
            return
        child.remote = remote
        if child.timer is not None:
            child.timer.cancel()
        self._failures = 0
        self.dispatcher.add(remote)
        ready = sum(other.remote is not None for other in self._children.values())
        if self._ready is not None and not self._ready.done() and ready >= self._target:
            self._ready.set_result(None)

    def _give_up(self, child: _Child) -> None:
        if child.pid is not None:
            self._nursery_or_fail().kill(child.pid)
        seconds = self._config.start_timeout
        self._fail(BackendBroken(f"a Dask worker was not ready after {seconds:g} s; start_timeout= allows for more"))

    def _fail(self, error: BackendBroken) -> None:
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(error)
        elif not self._is_closing:
            self._host.broken(error)

    def on_spawned(self, name: str, pid: int) -> None:
        """Learn that a worker has a process."""
        child = self._children.get(name)
        if child is not None:
            child.pid = pid

    def on_refused(self, name: str, reason: str) -> None:
        """Learn that the system gives no more processes."""
        self._children.pop(name, None)
        self._fail(BackendBroken(f"cannot start a Dask worker: {reason}"))

    def on_ended(self, pid: int, status: int) -> None:
        """Learn that a worker's process has ended."""
        for child in list(self._children.values()):
            if child.pid == pid:
                self._on_child_ended(child, status)

    def _on_child_ended(self, child: _Child, status: int) -> None:
        child.status = status
        child.ended.set()
        if child.timer is not None:
            child.timer.cancel()
        if child.remote is None:
            del self._children[child.name]
            self._failures += 1
            # Who is killed from outside while it starts has most likely nothing wrong with it.
            if self._failures >= (_KILLED_ATTEMPTS if status == -signal.SIGKILL else _START_ATTEMPTS):
                reason = f"exit status {status}" if status >= 0 else f"signal {-status}"
                self._fail(BackendBroken(f"Dask workers die while they start, {self._failures} in a row ({reason})"))
                return
        else:
            # What it had sent before it died is still being read; the connection then closes by itself.
            asyncio.get_running_loop().call_later(_DRAIN_SECONDS, child.remote.link.close)
        self.balance()

    def on_outgrown(self, pid: int, used: int, allowance: int) -> None:
        """Learn that a worker's process is being killed because of its memory."""
        for child in self._children.values():
            if child.pid == pid and child.remote is not None:
                child.remote.cause = memory_usage.describe(used, allowance)

    def on_nursery_lost(self) -> None:
        """Learn that the nursery has died, by nobody's order; its workers died with it."""
        if self._is_closing:
            return
        self._nurseries += 1
        if self._nurseries > _START_ATTEMPTS:
            self._fail(BackendBroken("the process that starts Dask workers dies again and again"))
            return
        children = list(self._children.values())
        self._closed_nurseries.append(self._nursery_or_fail())
        self._nursery = Nursery(self, self._folder)
        for child in children:
            if child.pid is not None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(child.pid, signal.SIGKILL)
            self._on_child_ended(child, -signal.SIGKILL)

    def _kill(self, remote: Remote) -> None:
        nursery = self._nursery_or_fail()
        nursery.kill(remote.pid)
        child = next((child for child in self._children.values() if child.remote is remote), None)
        if child is not None:
            asyncio.get_running_loop().call_later(_DEAF_SECONDS, self._insist, child, nursery)

    def _insist(self, child: _Child, nursery: Nursery) -> None:
        """End a nursery that does not do what it is told, stopped by a signal perhaps; its workers end with it."""
        if not child.ended.is_set() and nursery is self._nursery and not self._is_closing:
            nursery.kill_itself()

    def _guard(self, remote: Remote, before: int, allowance: int) -> None:
        self._nursery_or_fail().guard(remote.pid, before, allowance)

    def _bury(self, remote: Remote, mourn: Callable[[Death], None]) -> None:
        child = next((child for child in self._children.values() if child.remote is remote), None)
        if child is None:
            mourn(Death(remote.host, remote.pid))
            return
        # A connection that is gone, whatever the reason, must not leave a body running.
        self._kill(remote)
        task = asyncio.get_running_loop().create_task(self._mourn(child, remote, mourn))
        self._attaching.add(task)
        task.add_done_callback(self._attaching.discard)

    async def _mourn(self, child: _Child, remote: Remote, mourn: Callable[[Death], None]) -> None:
        await child.ended.wait()
        self._children.pop(child.name, None)
        self.balance()
        number, code = (-child.status, None) if child.status < 0 else (None, child.status)
        mourn(Death(remote.host, remote.pid, number, code, remote.cause))

    async def close(self, *, kill: bool) -> None:
        """End all workers and the scheduler."""
        self._is_closing = True
        for timer in [self._spare_check, *(child.timer for child in self._children.values())]:
            if timer is not None:
                timer.cancel()
        if not kill:
            await self._dismiss()
        if hasattr(self, "dispatcher"):
            await self._close_links()
        for task in list(self._attaching):
            task.cancel()
        await asyncio.gather(*self._attaching, return_exceptions=True)
        if hasattr(self, "client"):
            await self.client.close()
        for nursery in [*self._closed_nurseries, self._nursery]:
            if nursery is not None:
                await nursery.close()
        if self._scheduler is not None:
            await own_scheduler.stop(self._scheduler)
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _dismiss(self) -> None:
        living = [child for child in self._children.values() if child.remote is not None]
        for child in living:
            if child.remote is not None:
                child.remote.link.send(("exit",))
        with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.gather(*(child.ended.wait() for child in living)), _EXIT_SECONDS)


def _is_gone(child: _Child) -> bool:
    return child.ended.is_set() or (child.remote is not None and child.remote.gone)

"""What clusters of our own and existing ones have in common."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from polyexec.spi import Death, EngineInfo, Host, Node, Protection
from polyexec_dask.dispatcher import Dispatcher
from polyexec_dask.link import Message
from polyexec_dask.remote import Remote, attach


class Cluster(ABC):
    """Where workers come from and how they end. All methods but ``nodes`` belong to the event loop.

    Args:
        host: the core.
    """

    client: Any
    dispatcher: Dispatcher
    _limit = 1

    def __init__(self, host: Host) -> None:
        self._host = host
        self._serving: set[asyncio.Task[None]] = set()
        self._nodes: tuple[Node, ...] = ()
        self._is_closing = False

    @abstractmethod
    async def open(self) -> EngineInfo:
        """Start or find the workers."""

    @abstractmethod
    def protection(self) -> Protection:
        """Say how others are kept out; from any thread."""

    @abstractmethod
    async def close(self, *, kill: bool) -> None:
        """Leave nothing of ours."""

    def balance(self) -> None:
        """Have as many workers as the calls need; called after each change."""
        return None

    @abstractmethod
    def _kill(self, remote: Remote) -> None:
        """Kill a worker process, whatever it does."""

    @abstractmethod
    def _bury(self, remote: Remote, mourn: Callable[[Death], None]) -> None:
        """Find out how a worker process ended, and call back with it."""

    @abstractmethod
    def _guard(self, remote: Remote, before: int, allowance: int) -> None:
        """Have a worker process killed when it uses more memory than before and an allowance; 0 ends this."""

    def nodes(self) -> Sequence[Node]:
        """Give the nodes as they are now; from any thread."""
        return self._nodes

    def _set_nodes(self, nodes: Sequence[Node]) -> None:
        changed = tuple(nodes) != self._nodes
        self._nodes = tuple(nodes)
        if changed:
            self._host.nodes_changed()

    async def _attach(
        self,
        address: str,
        node: str,
        host: str,
    ) -> Remote:
        remotes: list[Remote] = []

        def receive(message: Message) -> None:
            self.dispatcher.receive(remotes[0], message)

        def closed() -> None:
            self._on_link_closed(remotes[0])

        options = self.client.security.get_connection_args("client")
        link, greeting = await attach(address, self._host.executor_id, self._limit, options, receive, closed)
        shares = greeting.shares_memory
        remotes.append(Remote(address, node, host, greeting.pid, link, shares, self._kill, self._bury, self._guard))
        task = asyncio.create_task(link.serve())
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        return remotes[0]

    def _on_link_closed(self, remote: Remote) -> None:
        if not self._is_closing:
            self.dispatcher.remove(remote)

    async def _close_links(self) -> None:
        for remote in list(self.dispatcher.remotes.values()):
            remote.link.close()
        await asyncio.gather(*self._serving, return_exceptions=True)

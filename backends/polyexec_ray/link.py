"""The driver's link to the agent of a node."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import attrs
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from polyexec.spi import Host, Message, Stored, Value, Verdict
from polyexec_ray.agent import Agent, Early, Gone, News, Request, Told
from polyexec_ray.errors import translated
from polyexec_ray.freight import LARGE, Kept, is_somewhere, load, reference_of, unload

_CAUSE = "killed because the task was cancelled, or ran too long"


@attrs.frozen(eq=False)
class Surroundings:
    """What a node's side of the driver must know of its backend.

    Attributes:
        host: the core.
        own: Ray is ours alone.
        client: Ray is reached through a Ray Client server.
        spare: idle workers of the plain kind that are kept.
        idle_timeout: seconds after which other idle workers are ended.
        start_timeout: seconds that a worker of our own instance may take to start.
        later: runs a function soon, in a thread that may block.
        engine_failure: says what is wrong with Ray itself, None if nothing.
        is_alive: asks Ray whether a node is part of the cluster, and lets the core know. Blocks.
    """

    host: Host
    own: bool
    client: bool
    spare: int
    idle_timeout: float
    start_timeout: float
    later: Callable[[Callable[[], object]], None]
    engine_failure: Callable[[], str | None]
    is_alive: Callable[[str], bool]

    def notify(self, reference: Any, done: Callable[[Any], object]) -> None:
        """Let a function be called with a value, or with an exception, as soon as it is there."""
        # Ray ends this process if nobody holds the reference until a large value has come.
        deliver = partial(_deliver, done, reference)
        if not self.client:
            reference._on_completed(deliver)
            return
        # Ray Client calls back in the thread that all its answers come through, and registering waits for an answer.
        self.later(lambda: reference._on_completed(lambda value: self.later(partial(deliver, value))))


class Listener(ABC):
    """What a link reports; methods are called from Ray's threads."""

    @abstractmethod
    def gone(self, worker_id: int) -> None:
        """Learn that a worker has died."""

    @abstractmethod
    def early(self, news: Early) -> None:
        """Take what a worker gives before its turn."""

    @abstractmethod
    def agent_lost(self, error: BaseException) -> None:
        """Learn that the agent has died."""


class Link:
    """Starts an agent, and talks to it.

    Args:
        around: the backend.
        node: Ray's id of the node, None if there is but one.
        listener: who is told the agent's news.
    """

    def __init__(self, around: Surroundings, node: str | None, listener: Listener) -> None:
        self._around = around
        self._host = around.host
        self._listener = listener
        options: dict[str, Any] = {"num_cpus": 0, "max_restarts": 0, "max_concurrency": 100_000}
        if node is not None:
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
        self.agent: Any = ray.remote(Agent).options(**options).remote()
        self._ended = False
        self._ask()

    def end(self) -> None:
        """Kill the agent. Blocks."""
        self._ended = True
        ray.kill(self.agent)

    def interrupt(self, worker_id: int, call_id: int) -> None:
        """Interrupt a call, and tell the host what became of that."""
        self._around.notify(self.agent.interrupt.remote(worker_id, call_id), partial(self._stopped, call_id))

    def kill(self, worker_id: int, call_id: int) -> None:
        """Kill the worker that runs a call, and tell the host what became of that."""
        self._around.notify(self.agent.kill.remote(worker_id, call_id, _CAUSE), partial(self._stopped, call_id))

    def limit(self, worker_id: int, growth: int | None) -> None:
        """Let a worker be killed when its memory grows by more than so many bytes."""
        self.agent.limit.remote(worker_id, growth)

    def examine(self, worker_id: int, done: Callable[[Any], None]) -> None:
        """Ask how a worker died; give an ``Autopsy``, or an exception if nobody knows."""
        self._around.notify(self.agent.autopsy.remote(worker_id), done)

    def reply(self, number: int, message: bytes, values: Sequence[Value]) -> None:
        """Bring the reply to a nested request."""
        if any(value.stored is not None and value.stored.nbytes >= LARGE for value in values):
            self._around.later(lambda: self._reply(number, message, values))
        else:
            self._reply(number, message, values)

    def _reply(self, number: int, message: bytes, values: Sequence[Value]) -> None:
        self.agent.reply.remote(number, (message, [_part(value) for value in values]))

    def _stopped(self, call_id: int, verdict: Any) -> None:
        self._host.stopped(call_id, Verdict[verdict] if isinstance(verdict, str) else Verdict.LATE)

    def _ask(self) -> None:
        self._around.notify(self.agent.news.remote(), self._take)

    def _take(self, told: Any) -> None:
        if self._ended:
            return
        if isinstance(told, BaseException):
            self._around.later(partial(self._listener.agent_lost, told))
            return
        for news in told:
            self._pass_on(news)
        # In this order: it tells the agent that all of that has been dealt with.
        self._ask()

    def _pass_on(self, news: News) -> None:
        if isinstance(news, Request):
            self._request(news)
        elif isinstance(news, Told):
            self._host.told(news.call_id, unload(news.cargo))
        elif isinstance(news, Gone):
            self._listener.gone(news.worker_id)
        else:
            self._listener.early(news)

    def _request(self, news: Request) -> None:
        message = unload(news.cargo)
        if not news.parked:
            self._host.request((self, news.number), news.call_id, message)
            return
        reference = self.agent.cargo.remote(news.number)
        if self._around.client:
            self._around.notify(reference, partial(self._fetched, news, message))
        else:
            reference._on_ready(lambda _: self._around.later(partial(self._stored, news, message, reference)))

    def _stored(self, news: Request, message: Stored, reference: Any) -> None:
        """Pass on a request whose value has become an object of Ray's that belongs to the driver."""
        if is_somewhere(reference):
            request = Message(message.data, (), Kept(reference))
            self._host.request((self, news.number), news.call_id, request)
        else:
            # It is small enough for Ray to keep it here, or an error.
            self._around.notify(reference, partial(self._fetched, news, message))

    def _fetched(self, news: Request, message: Stored, value: Any) -> None:
        """Pass on a request whose value has come here."""
        if isinstance(value, BaseException):
            self.agent.reply.remote(news.number, translated(value, "a request"))
            return
        found = unload(value)
        request = Stored(message.data, (found.data, *found.buffers))
        self._host.request((self, news.number), news.call_id, request)


def _deliver(done: Callable[[Any], object], held: Any, value: Any) -> None:
    """Pass on what has come under a reference that was held until now."""
    done(value)


def _part(value: Value) -> Any:
    """Give a value of a reply: cargo, or a list with a reference, which Ray does not resolve on the way."""
    if value.stored is None:
        return [reference_of(value.handle)]
    # The agent passes small ones on, and cannot pickle the buffers that Ray would give it.
    large = value.stored.nbytes >= LARGE
    return [ray.put(load(value.stored))] if large else load(value.stored, copy=True)

"""The driver's hold on one worker, and what workers are distinguished by."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from typing import Any

import attrs
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from polyexec.options import Resources
from polyexec.spi import Call
from polyexec_ray.worker import Worker

_NUMBERS = itertools.count(1)
_Items = tuple[tuple[str, Any], ...]


@attrs.frozen
class Kind:
    """What a worker process is made with; a call runs in a worker of its kind only.

    Attributes:
        cpus: that Ray counts for it.
        gpus: that Ray counts for it, and makes visible to it alone.
        memory: bytes that Ray counts for it.
        custom: amounts of custom resources that Ray counts for it.
        env: environment variables that are set in its process before it runs anything.
    """

    cpus: float = 0
    gpus: float = 0
    memory: int = 0
    custom: _Items = ()
    env: _Items = ()

    @property
    def single_use(self) -> bool:
        """Whether it runs one call only, because what a call leaves on an accelerator goes with its process alone."""
        return self.gpus > 0


PLAIN = Kind()


def kind_of(call: Call, *, own: bool) -> Kind:
    """Give the kind of worker for a call.

    Args:
        call: the call.
        own: Ray is ours alone: the core counts everything, and Ray need not.

    Returns:
        The kind.
    """
    if own and not call.env:
        return PLAIN
    held, env = call.lease.held, tuple(sorted(call.env.items()))
    if own:
        return Kind(env=env)
    return Kind(held.cpus, held.gpus, held.memory, _sorted(held), env)


def _sorted(held: Resources) -> _Items:
    return tuple(sorted((name, amount) for name, amount in held.custom.items() if amount))


class Hand:
    """A worker as the driver sees it; its fields are guarded by the lock of its site.

    Attributes:
        id: unique in this process.
        kind: what it was made with.
        claims: Ray counts its cpus.
        actor: Ray's handle.
        pid: its process id, None until it has started.
        calls: what it was given and has not ended, in order, by id.
        used: it has been given calls.
        worn: it must not be used again.
        limited: its memory is watched.
        since: since when it is in its present state, by the monotonic clock.
    """

    def __init__(self, kind: Kind, *, claims: bool) -> None:
        self.claims = claims
        self.id = next(_NUMBERS)
        self.kind = kind
        self.actor: Any = None
        self.pid: int | None = None
        self.calls: dict[int, Call] = {}
        self.used = False
        self.worn = False
        self.limited = False
        self.since = time.monotonic()
        self._named: tuple[str, str] = ("", "")
        self._method: Any = None

    def start(self, agent: Any, setup: bytes, node: str | None, *, copy: bool) -> Any:
        """Let Ray start the process.

        Args:
            agent: the agent of its node.
            setup: for the envelope.
            node: where it must run, None if there is but one node.
            copy: see ``polyexec_ray.freight.load``.

        Returns:
            The reference to what it says when it has started.
        """
        options = _options(self.kind, node, claims=self.claims)
        self.actor = ray.remote(Worker).options(**options).remote(self.id, agent, setup, dict(self.kind.env), copy=copy)
        return self.actor.start.remote()

    def method(self, method: str, name: str) -> Any:
        """Give a method of the worker under a task's name, which Ray's tools show."""
        if self._named != (method, name):
            self._named = method, name
            self._method = getattr(self.actor, method).options(name=name)
        return self._method


def _options(kind: Kind, node: str | None, *, claims: bool) -> Mapping[str, Any]:
    options: dict[str, Any] = {
        "num_cpus": kind.cpus if claims else 0,
        "num_gpus": kind.gpus,
        "max_restarts": 0,
        "max_task_retries": 0,
    }
    if kind.memory:
        options["memory"] = kind.memory
    if kind.custom:
        options["resources"] = dict(kind.custom)
    if node is not None:
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    return options

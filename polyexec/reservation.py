"""Reservations: what users hold of bundles that were taken together (R11)."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

import attrs

from polyexec.errors import ExecutorClosed, SpecificationError, TaskCancelled
from polyexec.executor import Executor
from polyexec.future import Future
from polyexec.gangs import STRATEGIES
from polyexec.options import Bundle, Resources, TaskOptions
from polyexec.placement import placement_of
from polyexec.session import Session, session_for, session_here
from polyexec.wire import GangSpec

_NAMES = {"cpus": "cpus", "gpus": "gpus", "memory": "memory", "resources": "custom"}


class Reservation:
    """Bundles of resources that were taken together, for tasks that are submitted to them. Made by ``reserve``.

    Use it as a context manager: it holds its bundles until it is closed, also if nobody refers to it. ``len`` gives the
    number of bundles, an index the executor of one of them. It may be passed to tasks. All methods may be called from
    any thread.
    """

    def __init__(
        self, session: Session, options: TaskOptions, chosen: frozenset[str], reservation: int, count: int
    ) -> None:
        self._session = session
        self._options = options
        self._chosen = chosen
        self._id = reservation
        self._count = count

    @property
    def executor(self) -> Executor:
        """An executor whose tasks run in any of the bundles."""
        return self._view(None)

    def __getitem__(self, index: int) -> Executor:
        index = _index(index)
        if not -self._count <= index < self._count:
            raise IndexError(f"the reservation has {self._count} bundles, none with the index {index}")
        return self._view(index % self._count)

    def __len__(self) -> int:
        return self._count

    @property
    def nodes(self) -> tuple[str | None, ...]:
        """Ids of the nodes of the bundles; None for one whose node is lost, until there is room for it elsewhere.

        Raises:
            ExecutorClosed: the reservation is closed.
        """
        nodes = session_here(self._session).reserved(self._id)
        if nodes is None:
            raise ExecutorClosed("the reservation is closed, and has no nodes any more")
        return nodes

    def close(self) -> None:
        """Give the bundles back. Does not block for tasks; harmless when called again.

        What runs in them runs on, and keeps what it holds until it ends. What waits for them and has not started
        fails with ``ExecutorClosed``, and so does a later ``submit``.
        """
        session_here(self._session).unreserve(self._id)

    def __enter__(self) -> Reservation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self._session.executor_id, self._options, self._chosen, self._id, self._count)

    def __repr__(self) -> str:
        return f"<polyexec.Reservation of {self._count} bundles>"

    def _view(self, index: int | None) -> Executor:
        options = attrs.evolve(self._options, bundle=Bundle(self._id, index))
        return Executor(self._session, options, chosen=self._chosen)


def _index(value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"a bundle is named by its number, group[0] for example, not by {value!r}") from None


def _restore(executor_id: str, options: TaskOptions, chosen: frozenset[str], *identity: int) -> Reservation:
    return Reservation(session_for(executor_id), options, chosen, *identity)


def reserve(
    session: Session,
    options: TaskOptions,
    chosen: frozenset[str],
    bundles: Iterable[Resources | Mapping[str, Any]],
    strategy: str,
    timeout: float | None,
) -> Reservation:
    """Do what ``Executor.reserve`` promises."""
    if timeout is not None and not (isinstance(timeout, (int, float)) and timeout >= 0):
        raise SpecificationError(f"timeout= takes a number of seconds that is not negative, not {timeout!r}")
    spec = _specification(bundles, strategy, options)
    found = _wait_for(session_here(session), spec, timeout)
    return Reservation(session, options, chosen, found, len(spec.bundles))


def _specification(bundles: Iterable[Resources | Mapping[str, Any]], strategy: str, options: TaskOptions) -> GangSpec:
    if strategy not in STRATEGIES:
        raise SpecificationError(f"strategy= of reserve is one of {', '.join(STRATEGIES)}, not {strategy!r}")
    if options.bundle is not None:
        raise SpecificationError("a bundle cannot be divided into bundles: reserve through the executor itself")
    if isinstance(bundles, (str, Mapping)) or not isinstance(bundles, Iterable):
        raise SpecificationError(f"reserve takes a list of bundles, for example [{{'cpus': 1}}], not {bundles!r}")
    amounts = tuple(map(_amounts, bundles))
    if not amounts:
        raise SpecificationError("reserve takes at least one bundle, for example [{'cpus': 1}]")
    return GangSpec(amounts, strategy, placement_of(options), options.priority, options.infeasible == "wait")


def _amounts(bundle: Resources | Mapping[str, Any]) -> Resources:
    if isinstance(bundle, Mapping):
        unknown = sorted(map(str, bundle.keys() - _NAMES.keys()))
        if unknown:
            raise SpecificationError(f"unknown resource {unknown[0]!r} in a bundle; valid are {', '.join(_NAMES)}")
        bundle = Resources(**{_NAMES[name]: amount for name, amount in bundle.items()})
    if not isinstance(bundle, Resources):
        raise SpecificationError(f"a bundle is a mapping such as {{'cpus': 1}}, or a Resources, not {bundle!r}")
    # A bundle is on one node and is made of what a task may ask for.
    TaskOptions(gpus=bundle.gpus)
    return bundle


def _wait_for(session: Session, spec: GangSpec, timeout: float | None) -> int:
    """Wait for the bundles; if this raises, nothing is held and nothing is asked for any more."""
    entry = session.reserve(spec)
    try:
        Future[None](session, entry).result(timeout)
    except BaseException as error:
        session.unreserve(entry.id)
        if isinstance(error, TaskCancelled):
            raise ExecutorClosed("the executor was closed before the reservation had its bundles") from None
        if isinstance(error, TimeoutError):
            raise TimeoutError(f"reserve: no room for all bundles within {timeout:g} s; none is held") from None
        raise
    return entry.id

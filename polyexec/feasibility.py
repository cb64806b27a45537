"""Refusing at once what could never run (R3). For any thread: it only reads what the loop has published."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from polyexec.errors import DeadlockError, ExecutorClosed, InfeasibleResources
from polyexec.gangs import Shape
from polyexec.node_state import SLOT, Need, NodeState, add_needs, amounts_of, need_of
from polyexec.options import Resources
from polyexec.placement import Placement
from polyexec.reservations import Place
from polyexec.wire import GangSpec, TaskSpec


def check_task(spec: TaskSpec, nodes: Sequence[NodeState], places: Mapping[int, tuple[Place, ...]]) -> None:
    """Check that a task could run.

    Args:
        spec: the task.
        nodes: the living nodes, with nothing held.
        places: of the bundles, by reservation.

    Raises:
        InfeasibleResources: no node, or no bundle of its reservation, could ever meet its request.
        ExecutorClosed: its reservation is closed.
    """
    need, placement = need_of(spec.request), spec.placement
    if placement is not None and placement.reservation is not None:
        _check_bundles(spec, need, placement, nodes, places)
    elif not spec.patient and not any(node.could_fit(need) for node in _allowed(nodes, placement)):
        asked = f"{spec.request}{placement or ''}"
        raise InfeasibleResources(spec.name, asked, _existing(nodes, placement))


def _check_bundles(
    spec: TaskSpec,
    need: Need,
    placement: Placement,
    nodes: Sequence[NodeState],
    places: Mapping[int, tuple[Place, ...]],
) -> None:
    found = places.get(placement.reservation or 0)
    if found is None:
        raise ExecutorClosed(f"task {spec.name!r} cannot run: its reservation is closed")
    mine = [place for index, place in enumerate(found) if placement.index in (None, index)]
    allowed = {None, *(node.id for node in _allowed(nodes, placement))}
    if not any(place.node in allowed and _is_large_enough(place.need, need) for place in mine):
        existing = "; ".join(f"{amounts_of(place.need)} in a bundle on node {place.node!r}" for place in mine)
        raise InfeasibleResources(spec.name, f"{spec.request}{placement}", existing)


def check_own(
    spec: TaskSpec, nodes: Sequence[NodeState], places: Mapping[int, tuple[Place, ...]], own: Collection[int]
) -> None:
    """Check that a task which runs in the thread that submits it does not wait for what this thread has reserved.

    Args:
        spec: the task.
        nodes: the living nodes, with nothing held.
        places: of the bundles, by reservation.
        own: the reservations that this thread has made.

    Raises:
        DeadlockError: it would wait for ever.
    """
    need, placement = need_of(spec.request), spec.placement
    if spec.patient or (placement is not None and placement.reservation is not None):
        return
    mine = [place for reservation in own for place in places.get(reservation, ())]
    for node in _allowed(nodes, placement):
        if node.could_fit(need, add_needs(place.need for place in mine if place.node == node.id)):
            return
    raise DeadlockError(
        f"task {spec.name!r} can never start: it runs in this thread, which has reserved what it needs. Submit it to "
        "the reservation, or close that first"
    )


def check_gang(spec: GangSpec, nodes: Sequence[NodeState]) -> None:
    """Check that a reservation could get its bundles.

    Args:
        spec: the reservation.
        nodes: the living nodes, with nothing held.

    Raises:
        InfeasibleResources: the nodes could never meet it.
    """
    if spec.patient or shape_of(spec).could_fit(nodes):
        return
    bundles = "; ".join(f"{count} with {amounts}" for amounts, count in Counter(map(str, spec.bundles)).items())
    number = "1 bundle" if len(spec.bundles) == 1 else f"{len(spec.bundles)} bundles"
    asked = f"{number} ({bundles}) by the strategy {spec.strategy!r}{spec.placement or ''}"
    raise InfeasibleResources("reserve", asked, _existing(nodes, spec.placement))


def shape_of(spec: GangSpec) -> Shape:
    """Give what the bundles of a reservation need; they take no slot."""
    return Shape(dict(enumerate(map(_bundle_need, spec.bundles))), spec.strategy, placement=spec.placement)


def _bundle_need(amounts: Resources) -> Need:
    return {name: amount for name, amount in need_of(amounts).items() if name != SLOT}


def _is_large_enough(bundle: Need, need: Need) -> bool:
    return all(bundle.get(name, 0) >= amount for name, amount in need.items() if name != SLOT)


def _allowed(nodes: Sequence[NodeState], placement: Placement | None) -> Sequence[NodeState]:
    return nodes if placement is None else [node for node in nodes if placement.allows(node.node)]


def _existing(nodes: Sequence[NodeState], placement: Placement | None) -> str:
    return "; ".join(f"{node.node.total} on {_described(node, placement)}" for node in nodes) or "no node"


def _described(node: NodeState, placement: Placement | None) -> str:
    if placement is None:
        return "one node"
    labels = f" with the labels {dict(node.node.labels)}" if node.node.labels else ""
    return f"node {node.id!r}{labels}"

"""Where a task may run: what its options say about nodes, as a value by which ready tasks are grouped."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from polyexec.options import TaskOptions
from polyexec.spi import Node


@attrs.frozen
class Placement:
    """What a task asks of its node; None stands for a task that asks nothing.

    Attributes:
        spread: prefer the node on which least runs.
        node: id of a node.
        soft: the node is a wish: another is taken if it is gone, or could never meet the request.
        labels: names and values that the node must have.
        reservation: the reservation in whose bundles it must run.
        index: the bundle, None for any.
    """

    spread: bool = False
    node: str | None = None
    soft: bool = False
    labels: tuple[tuple[str, str], ...] = ()
    reservation: int | None = None
    index: int | None = None

    def allows(self, node: Node) -> bool:
        """Say whether a node meets all conditions; a wish is none."""
        if self.node is not None and not self.soft and self.node != node.id:
            return False
        return has_labels(node.labels, self.labels)

    def __str__(self) -> str:
        parts = []
        if self.reservation is not None:
            parts.append(" in any bundle of its reservation" if self.index is None else f" in bundle {self.index}")
        if self.node is not None and not self.soft:
            parts.append(f" on node {self.node!r}")
        if self.labels:
            parts.append(f" on a node with the labels {dict(self.labels)}")
        return "".join(parts)


def has_labels(labels: Mapping[str, str], wanted: tuple[tuple[str, str], ...]) -> bool:
    """Say whether labels have all the values that are wanted."""
    return all(labels.get(name) == value for name, value in wanted)


def placement_of(options: TaskOptions) -> Placement | None:
    """Give what options ask of the node, None if nothing."""
    bundle, affinity = options.bundle, options.node
    if bundle is None and affinity is None and not options.labels and options.strategy == "default":
        return None
    return Placement(
        options.strategy == "spread",
        None if affinity is None else affinity.id,
        affinity is not None and affinity.soft,
        tuple(sorted(options.labels.items())),
        None if bundle is None else bundle.reservation,
        None if bundle is None else bundle.index,
    )

"""The nodes of a cluster that is not ours, as the core wants to know them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray

from polyexec.errors import BackendLost
from polyexec.options import Resources
from polyexec.spi import Node
from polyexec_ray.addresses import check_listening

_ATTEMPTS = 3
_OTHER = ("CPU", "GPU", "memory", "object_store_memory")


def current() -> tuple[Node, ...]:
    """Ask Ray for the nodes. Blocks."""
    return tuple(_node(entry) for entry in ray.nodes())  # type: ignore[no-untyped-call]


def _node(entry: Mapping[str, Any]) -> Node:
    amounts = entry.get("Resources", {})
    custom = {name: amount for name, amount in amounts.items() if name not in _OTHER and ":" not in name}
    total = Resources(amounts.get("CPU", 0), amounts.get("GPU", 0), int(amounts.get("memory", 0)), custom)
    return Node(
        entry["NodeID"],
        entry.get("NodeManagerHostname", ""),
        total,
        slots=max(8, 4 * int(total.cpus)),
        alive=bool(entry["Alive"]),
        labels=dict(entry.get("Labels") or {}),
    )


def unreachable(address: str) -> str | None:
    """Say in one line that nobody listens at an address any more, None if somebody does."""
    failure: str | None = None
    for _ in range(_ATTEMPTS):
        try:
            check_listening(address)
        except BackendLost as error:
            failure = f"the connection to Ray is gone: {error}"
        except ValueError:
            return None
        else:
            return None
    return failure

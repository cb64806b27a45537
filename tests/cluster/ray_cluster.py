"""Run as a script: what becomes of values whose node is lost, on a Ray cluster of several nodes on this machine (O7).

The arguments are a folder for the cluster, and one for marks. It prints one line for each story.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

import polyexec

LIMIT = 60.0
SIZE = 2**20
FOLDER = Path(sys.argv[2])


def made(name: str, *needed: Any) -> bytes:
    """Make a large value on whichever node this runs, and note it."""
    with (FOLDER / name).open("a") as file:
        file.write(f"{os.getpid()}\n")
    return name.encode() * (SIZE // len(name) + len(needed))


def length(value: bytes) -> int:
    return len(value)


def read_here(future: Any) -> int:
    """Ask for a value inside a task."""
    return len(future[0].result(LIMIT))


def report(*what: object) -> None:
    """Print one line, which Ray's own do not begin like."""
    print("story:", *what, flush=True)


def starts(name: str) -> int:
    return len((FOLDER / name).read_text().split())


class Far:
    """The node on which values are made, again and again another one."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._node: Any = None

    def begin(self, ex: polyexec.Executor) -> None:
        self._node = self._cluster.add_node(num_cpus=2, resources={"far": 2}, include_dashboard=False)
        while ex.resources().total.custom.get("far") != 2:
            threading.Event().wait(0.05)

    def replace(self, ex: polyexec.Executor) -> None:
        """Kill the node with all that it holds, and add another."""
        self._cluster.remove_node(self._node, allow_graceful=False)
        while ex.resources().total.custom.get("far"):
            threading.Event().wait(0.05)
        self.begin(ex)


def error_of(future: Any) -> str:
    error = future.exception(LIMIT)
    return f"{type(error).__name__} {getattr(error, 'task', '')}"


def tell(ex: polyexec.Executor, far: Far) -> None:
    there = ex.options(resources={"far": 1}, retries=1)
    near = ex.options(resources={"near": 1}, name="near")

    values = {name: there.options(name=name).submit(made, name) for name in ("read", "used", "asked", "twice")}
    chain = there.submit(made, "second", there.submit(made, "first"))
    once = there.options(name="once", retries=0).submit(made, "once")
    ex.wait([*values.values(), chain, once], timeout=LIMIT)
    far.replace(ex)
    report("read", len(values["read"].result(LIMIT)) >= SIZE // 2, starts("read"), values["read"].attempts)
    report("used", near.submit(length, values["used"]).result(LIMIT) >= SIZE // 2, starts("used"))
    report("asked", near.submit(read_here, [values["asked"]]).result(LIMIT) >= SIZE // 2, starts("asked"))
    report("chain", near.submit(length, chain).result(LIMIT) >= SIZE // 2, starts("first"), starts("second"))
    report("dependent", error_of(near.submit(length, once)))
    report("once", error_of(once), starts("once"))
    # Where it is made, so that there is no copy of it elsewhere.
    report("twice", there.submit(length, values["twice"]).result(LIMIT) >= SIZE // 2, starts("twice"))
    far.replace(ex)
    report("again", error_of(values["twice"]), starts("twice"))


def main() -> None:
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 2,
            "resources": {"near": 2},
            "include_dashboard": False,
            "temp_dir": sys.argv[1],
            "node_ip_address": "127.0.0.1",
        },
    )
    try:
        with polyexec.connect(f"ray?address={cluster.address}&log_to_driver=0") as ex:
            far = Far(cluster)
            far.begin(ex)
            tell(ex, far)
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()

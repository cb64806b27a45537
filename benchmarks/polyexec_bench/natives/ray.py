"""Ray without polyexec."""

from __future__ import annotations

from typing import Any

import ray

from polyexec_bench.systems import Function, System


def local_cluster(workers: int) -> System:
    """Start Ray on this machine, without a dashboard; a function is exported once, and runs at most once a call."""
    ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    remote: dict[Function, Any] = {}

    def submit(function: Function, *args: Any) -> Any:
        call = remote.get(function)
        if call is None:
            call = remote[function] = ray.remote(num_cpus=1, max_retries=0)(function).remote
        return call(*args)

    return System(ray, submit, ray.get, True, ray.shutdown)

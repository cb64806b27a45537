"""Dask distributed without polyexec."""

from __future__ import annotations

from functools import partial
from typing import Any

import distributed

from polyexec_bench.systems import System


def local_cluster(workers: int) -> System:
    """Open a local cluster: processes of one thread each, no dashboard; identical calls are not merged."""
    engine: Any = distributed
    cluster = engine.LocalCluster(
        n_workers=workers, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=None
    )
    client = engine.Client(cluster)

    def close() -> None:
        client.close()
        cluster.close()

    return System(client, partial(client.submit, pure=False), client.gather, True, close)

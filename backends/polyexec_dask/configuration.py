"""The keys of a ``dask`` specification."""

from __future__ import annotations

import attrs
from attrs.converters import optional

from polyexec.config import LocalClusterConfig, boolean, positive, seconds, text


@attrs.frozen(kw_only=True)
class DaskConfig(LocalClusterConfig):
    """Keys of ``dask?key=value``.

    Attributes:
        address: of a scheduler that runs already, such as ``tcp://10.0.0.1:8786``; None starts a cluster of our own.
        dashboard: whether a cluster of our own serves Dask's dashboard, on the loopback interface.
        tls: whether a cluster of our own encrypts and authenticates its connections with a key made for it alone;
            None for yes if the package ``cryptography`` is installed.
        connect_timeout: seconds that the scheduler at ``address`` may take to answer.
        calls_per_worker: number of calls that run at the same time in one worker process of an existing cluster.
            With more than 1, a call that kills its process, or is killed, takes the others in it along.
    """

    address: str | None = attrs.field(default=None, converter=optional(text))
    dashboard: bool = attrs.field(default=False, converter=boolean)
    tls: bool | None = attrs.field(default=None, converter=optional(boolean))
    connect_timeout: float = attrs.field(default=8.0, converter=seconds)
    calls_per_worker: int = attrs.field(default=1, converter=positive)

    def __attrs_post_init__(self) -> None:
        if self.address is None:
            return
        if "://" not in self.address:
            raise ValueError(f"address {self.address!r} is not like 'tcp://host:port'")
        ours = ("workers", "memory", "gpus", "resources")
        given = [name for name in ours if getattr(self, name)]
        if given:
            raise ValueError(f"{', '.join(given)} cannot be given with address=: that cluster has its own")

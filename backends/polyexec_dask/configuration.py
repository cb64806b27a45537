"""The keys of a ``dask`` specification."""

from __future__ import annotations

import os
from typing import Any

import attrs
from attrs.converters import optional

from polyexec.config import LocalClusterConfig, boolean, positive, seconds, text

_OURS = ("workers", "memory", "gpus", "resources", "tls")
_THEIRS = ("tls_ca_file", "tls_cert", "tls_key")


def _file(value: Any) -> str:
    """Let the path of a file pass."""
    path = text(value)
    if not os.path.isfile(path):
        raise ValueError(f"there is no file {path!r}")
    return os.path.abspath(path)


@attrs.frozen(kw_only=True)
class DaskConfig(LocalClusterConfig):
    """Keys of ``dask?key=value``.

    Attributes:
        address: of a scheduler that runs already, such as ``tls://10.0.0.1:8786``; None starts a cluster of our own.
        dashboard: whether a cluster of our own serves Dask's dashboard, on the loopback interface.
        tls: whether a cluster of our own encrypts and authenticates its connections with a key made for it alone;
            None for yes if the package ``cryptography`` is installed.
        tls_ca_file: PEM file with the certificate of those who have signed those of the cluster at ``address``; None
            for what Dask's own configuration says, as for the next two.
        tls_cert: our certificate, in a PEM file.
        tls_key: its key, in a PEM file without a passphrase; None if it is in the file of the certificate.
        allow_insecure: do not warn that the cluster at ``address`` asks nobody who he is.
        connect_timeout: seconds that the scheduler at ``address`` may take to answer.
        calls_per_worker: number of calls that run at the same time in one worker process of an existing cluster.
            With more than 1, a call that kills its process, or is killed, takes the others in it along.
    """

    address: str | None = attrs.field(default=None, converter=optional(text))
    dashboard: bool = attrs.field(default=False, converter=boolean)
    tls: bool | None = attrs.field(default=None, converter=optional(boolean))
    tls_ca_file: str | None = attrs.field(default=None, converter=optional(_file))
    tls_cert: str | None = attrs.field(default=None, converter=optional(_file))
    tls_key: str | None = attrs.field(default=None, converter=optional(_file))
    allow_insecure: bool = attrs.field(default=False, converter=boolean)
    connect_timeout: float = attrs.field(default=8.0, converter=seconds)
    calls_per_worker: int = attrs.field(default=1, converter=positive)

    def __attrs_post_init__(self) -> None:
        theirs = self._given(_THEIRS)
        if self.address is None:
            if theirs:
                raise ValueError(f"{theirs} cannot be given without address=: a cluster of our own makes its own key")
            return
        scheme, found, host = self.address.partition("://")
        if "@" in self.address:
            raise ValueError("an address has no user and no password in it: Dask knows none")
        if not found or not scheme.isalnum() or not host.strip("/") or self.address.split() != [self.address]:
            raise ValueError(f"address {self.address!r} is not like 'tls://host:port' or 'tcp://host:port'")
        if ours := self._given(_OURS):
            raise ValueError(f"{ours} cannot be given with address=: that cluster has its own")
        if theirs and not self.is_protected:
            raise ValueError(f"{theirs} cannot be given with {self.address!r}: an address tls://... uses them")
        if bool(self.tls_ca_file) != bool(self.tls_cert) or (self.tls_key and not self.tls_cert):
            raise ValueError("tls_ca_file= and tls_cert= go together, and tls_key= with them")

    @property
    def is_protected(self) -> bool:
        """Whether all connections to the cluster at ``address`` are encrypted and authenticated."""
        return self.address is not None and self.address.startswith(("tls://", "wss://"))

    def _given(self, names: tuple[str, ...]) -> str:
        return ", ".join(name for name in names if getattr(self, name) not in (None, {}))

"""The keys of a ``ray`` specification."""

from __future__ import annotations

from typing import Any

import attrs

from polyexec.config import LocalClusterConfig, boolean, seconds, text
from polyexec.options import parse_bytes

_OWN_ONLY = ("workers", "gpus", "memory", "resources", "store_limit", "dashboard")


def _address(value: Any) -> str | None:
    """Let ``auto``, ``HOST:PORT`` and ``ray://HOST:PORT`` pass."""
    if value is None:
        return None
    address = text(value)
    if "@" in address:
        raise ValueError("an address has no user and no password in it: Ray knows none")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address != "auto" and not (host and port.isdecimal() and int(port) < 1 << 16 and address.split() == [address]):
        raise ValueError(f"{value!r} is not auto, HOST:PORT or ray://HOST:PORT")
    return address


def _size(value: Any) -> int | None:
    return None if value is None else parse_bytes(value)


@attrs.frozen(kw_only=True)
class RayConfig(LocalClusterConfig):
    """Keys of ``ray?key=value``; without an address, a Ray instance of our own is started on this machine.

    Attributes:
        address: an existing cluster, ``auto``, ``HOST:PORT`` or ``ray://HOST:PORT``; None for an instance of our own.
        store_limit: bytes of the object store of our own instance; None for Ray's default.
        dashboard: start Ray's dashboard with our own instance.
        allow_insecure: do not warn that the cluster at ``address`` asks nobody who he is.
        idle_timeout: seconds after which a worker that is not needed is given back.
    """

    address: str | None = attrs.field(default=None, converter=_address)
    store_limit: int | None = attrs.field(default=None, converter=_size)
    dashboard: bool = attrs.field(default=False, converter=boolean)
    allow_insecure: bool = attrs.field(default=False, converter=boolean)
    idle_timeout: float = attrs.field(default=10.0, converter=seconds)

    def __attrs_post_init__(self) -> None:
        if self.address is None:
            return
        given = [field.name for field in attrs.fields(RayConfig) if field.name in _OWN_ONLY]
        for name in given:
            if getattr(self, name) != getattr(_DEFAULTS, name):
                raise ValueError(f"{name}= is for an instance of our own, and address= is for one that exists already")


_DEFAULTS = RayConfig()

"""Where a Ray cluster is, and whether anybody listens there."""

from __future__ import annotations

import socket

from ray._private import services

from polyexec.errors import BackendLost

_TIMEOUT = 5.0


def resolve(address: str) -> str:
    """Turn ``auto`` into the address of the cluster that Ray finds; let other addresses pass.

    Args:
        address: ``auto``, ``HOST:PORT`` or ``ray://HOST:PORT``.

    Returns:
        The address.

    Raises:
        BackendLost: there is none, or there are several.
    """
    if address != "auto":
        return address
    try:
        return str(services.canonicalize_bootstrap_address_or_die("auto"))
    except (ConnectionError, ValueError) as error:
        raise BackendLost(f"address=auto finds no Ray cluster to use: {error}") from None


def host_and_port(address: str) -> tuple[str, int]:
    """Split ``HOST:PORT`` or ``ray://HOST:PORT``."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    return host.strip("[]"), int(port)


def check_listening(address: str) -> None:
    """Raise ``BackendLost`` in one line if nobody listens, where Ray would retry for minutes."""
    try:
        with socket.create_connection(host_and_port(address), timeout=_TIMEOUT):
            return
    except OSError as error:
        raise BackendLost(f"no Ray cluster answers at {address}: {error}") from None

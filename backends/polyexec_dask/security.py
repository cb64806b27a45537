"""Keys: those that are made for one cluster, and those of a cluster that runs already."""

from __future__ import annotations

import logging
from typing import Any

from polyexec.errors import BackendBroken, SpecificationError
from polyexec_dask import engine
from polyexec_dask.configuration import DaskConfig

_logger = logging.getLogger("polyexec")
_WARNING = (
    "the connections of this Dask cluster are not authenticated, so that other users of this machine can run code as "
    "you: pip install cryptography, or say tls=0 if there are none"
)
_PASSPHRASE = "ENCRYPTED"


def made(tls: bool | None) -> Any:
    """Make a key for one cluster.

    Args:
        tls: whether to use one, None for if that is possible.

    Returns:
        Dask's security, or None.

    Raises:
        BackendBroken: it is wanted, and not possible.
    """
    if tls is False:
        return None
    try:
        return engine.temporary_security()
    except ImportError:
        if tls:
            raise BackendBroken('tls=1 needs the package "cryptography": pip install cryptography') from None
        _logger.warning(_WARNING)
        return None


def given(config: DaskConfig) -> Any:
    """Give Dask's security for the cluster at an address; None for what Dask's configuration says.

    Args:
        config: says in which files the keys are.

    Raises:
        SpecificationError: the files cannot be used, or there are none.
    """
    if config.tls_cert is None:
        if config.is_protected and engine.Security().get_connection_args("client")["ssl_context"] is None:
            raise SpecificationError(
                f"{config.address} needs tls_ca_file=, tls_cert= and tls_key=, or the same in Dask's own configuration"
            )
        return None
    key = config.tls_key or config.tls_cert
    try:
        with open(key, encoding="ascii", errors="replace") as file:
            # OpenSSL would ask for the passphrase on the terminal, and wait.
            if _PASSPHRASE in file.read():
                raise SpecificationError(f"the key in {key!r} has a passphrase: give one without")
        found = engine.Security(
            require_encryption=True,
            tls_ca_file=config.tls_ca_file,
            tls_client_cert=config.tls_cert,
            tls_client_key=config.tls_key,
        )
        found.get_connection_args("client")
    except OSError as error:
        raise SpecificationError(f"tls_ca_file=, tls_cert= or tls_key= cannot be used: {error}") from error
    return found

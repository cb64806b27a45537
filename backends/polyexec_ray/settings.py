"""Ray's settings while it starts or connects."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

from ray._private import ray_constants


@contextlib.contextmanager
def private_settings(token: str) -> Iterator[None]:
    """Let Ray listen on the loopback interface alone, with a token of our own, and phone nobody."""
    wanted = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": token,
        "RAY_USAGE_STATS_ENABLED": "0",
        ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0",
    }
    # Ray would take this one before that of the file.
    before = {name: os.environ.get(name) for name in (*wanted, "RAY_AUTH_TOKEN")}
    reachable = ray_constants.ENABLE_RAY_CLUSTER
    os.environ.update(wanted)
    os.environ.pop("RAY_AUTH_TOKEN", None)
    ray_constants.ENABLE_RAY_CLUSTER = False
    forget_settings()
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = reachable
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def forget_settings() -> None:
    """Let Ray read its authentication settings again; it does so once in a process otherwise."""
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def authentication() -> str:
    """Say how Ray tells those who belong to a cluster from others, empty if it does not; for one that is connected."""
    from ray._raylet import AuthenticationMode, get_authentication_mode  # type: ignore[attr-defined]

    known = ["Ray's token"] if get_authentication_mode() == AuthenticationMode.TOKEN else []
    return " and ".join(["TLS", *known] if is_encrypted() else known)


def is_encrypted() -> bool:
    """Say whether Ray uses TLS (https://docs.ray.io/en/latest/ray-core/configure.html, "TLS authentication")."""
    return os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")


def token_file() -> str | None:
    """Name the file from which Ray takes the token for a cluster that runs already, None if it is no file."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return None
    return os.environ.get("RAY_AUTH_TOKEN_PATH") or os.path.expanduser("~/.ray/auth_token")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep Ray's log to errors; what it has to say about its start is said better by ours."""
    logger = logging.getLogger("ray")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)

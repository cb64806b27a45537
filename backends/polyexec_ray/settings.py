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
    before = {name: os.environ.get(name) for name in wanted}
    reachable = ray_constants.ENABLE_RAY_CLUSTER
    os.environ.update(wanted)
    ray_constants.ENABLE_RAY_CLUSTER = False
    _forget_settings()
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = reachable
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _forget_settings() -> None:
    """Let Ray read its authentication settings again; it does so once in a process otherwise."""
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


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

"""Log files that Ray leaves open in the driver when an instance of our own is stopped.

It leaves sockets, too, two for each instance, shut down on both sides; but gRPC still knows their numbers, and fails if
they are closed under it.
"""

from __future__ import annotations

import os


def descriptors() -> dict[int, str]:
    """Give the open descriptors of this process, and what they refer to."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
    return found


def sweep(folder: str) -> None:
    """Let go of the log files in a folder that is gone.

    Args:
        folder: where its files were.
    """
    for descriptor, target in descriptors().items():
        if target.startswith(folder):
            _blind(descriptor)


def _blind(descriptor: int) -> None:
    # Ray closes its logs itself when it starts again, so that the number must stay taken.
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(null, descriptor, inheritable=False)
    os.close(null)

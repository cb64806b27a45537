"""How many calls may run at the same time on this machine."""

from __future__ import annotations

from polyexec.config import LocalClusterConfig, usable_cpus

EXTRA = 4


def slots_for(config: LocalClusterConfig) -> int:
    """Give room for one call on each cpu, and for some that hold no cpu."""
    workers = config.workers or usable_cpus()
    return max(2 * workers, workers + EXTRA)

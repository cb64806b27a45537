"""Killing workers from outside, and nobody else."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections.abc import Sequence

from polyexec.testing.watch import family


def kill_relative(pid: int) -> bool:
    """Kill a process if it is one that comes from this one; say whether that was done.

    Its number may have been given to somebody else's process meanwhile, so that it is looked at through a descriptor.
    """
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if not any(process.pid == pid for process in family()):
            return False
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            return True
        return False
    finally:
        os.close(descriptor)


class Killer:
    """Kills one of the workers that are known to it now and then, in a thread of its own.

    Args:
        chance: what is drawn: the victim, and the time until the next, which is distributed exponentially.
        mean: seconds between two kills.

    Attributes:
        count: how many were killed; to be read after ``stop``.
    """

    def __init__(self, chance: random.Random, mean: float) -> None:
        self.count = 0
        self._chance = chance
        self._mean = mean
        self._known: tuple[int, ...] = ()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="soak-killer", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def know(self, pids: Sequence[int]) -> None:
        """Choose victims from these from now on."""
        self._known = tuple(pids)

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._chance.expovariate(1 / self._mean)):
            if self._known:
                self.count += kill_relative(self._chance.choice(self._known))

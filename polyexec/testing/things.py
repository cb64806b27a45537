"""What a driver may leave on this machine: processes, temporary files, names in shared memory."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterable

import attrs

from polyexec.testing.tools import eventually
from polyexec.testing.watch import LINUX, Process, family


@attrs.frozen
class Things:
    """What there is on this machine at one time that may belong to a driver.

    Attributes:
        processes: that come from this one.
        files: in the folder for temporary files.
        shared: in the folder of shared memory.
    """

    processes: set[Process]
    files: set[str]
    shared: set[str]

    @staticmethod
    def now() -> Things:
        """Look."""
        shared = set(os.listdir("/dev/shm")) if LINUX else set()
        return Things(family(), set(os.listdir(tempfile.gettempdir())), shared)

    def processes_left(self) -> list[str]:
        """Give the processes that are there now and were not then."""
        return sorted(f"{found.pid} {found.command[:120]}" for found in family() - self.processes)

    def files_left(self) -> list[str]:
        """Give the temporary files that are there now and were not then."""
        return sorted(Things.now().files - self.files)

    def memory_left(self, owners: Iterable[Process]) -> list[str]:
        """Give the shared memory that was not there then and has the id of an owner that was not in its name."""
        own = {str(found.pid) for found in owners if found not in self.processes}
        return sorted(name for name in Things.now().shared - self.shared if own & set(re.findall(r"\d+", name)))

    def end_others(self, grace: float) -> None:
        """Kill the processes that were not there then, each by its own id, and wait until they have ended."""
        for found in family() - self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(found.pid, signal.SIGKILL)
        with contextlib.suppress(AssertionError):
            eventually(lambda: not self.processes_left(), "they have ended", grace)

    def remove_files(self) -> None:
        """Remove the temporary files that were not there then."""
        for name in self.files_left():
            path = os.path.join(tempfile.gettempdir(), name)
            shutil.rmtree(path, ignore_errors=True)
            with contextlib.suppress(OSError):
                os.unlink(path)

"""The backend's own threads: one for what may block in Ray, and one that never does and sees that Ray lives."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

from polyexec.errors import BackendBroken, BackendLost
from polyexec_ray.errors import first_line

_TICK = 0.5
_LOOK = 0.25


class Errands:
    """Runs functions one after the other, one of them again and again, and watches Ray from another thread.

    Ray's calls wait for its control service, if that has died, and end the process when a minute is over; so who
    watches must call nothing of Ray's.

    Args:
        tick: run twice a second.
        look: says in one line what is wrong with Ray, None if nothing. Must not call Ray.
        broken: told once, if something is.
    """

    def __init__(
        self, tick: Callable[[], None], look: Callable[[], str | None], broken: Callable[[BaseException], None]
    ) -> None:
        self.failed = False
        self._tick = tick
        self._look = look
        self._broken = broken
        self._jobs: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._runner = threading.Thread(target=self._run, name="polyexec-ray-errands", daemon=True)
        self._watcher = threading.Thread(target=self._watch, name="polyexec-ray-watch", daemon=True)

    def start(self) -> None:
        """Start the threads."""
        self._runner.start()
        self._watcher.start()

    def later(self, job: Callable[[], object]) -> None:
        """Run a function soon."""
        self._jobs.put(job)

    def end(self) -> None:
        """End the threads, and wait for that unless Ray is dead: then one of them may wait for it, for a while."""
        self._ended.set()
        self._jobs.put(None)
        if self._watcher.ident is not None:
            self._watcher.join()
        if self._runner.ident is not None and not self.failed:
            self._runner.join()

    def join(self) -> None:
        """Wait for the threads once Ray's connection is closed."""
        if self._runner.ident is not None:
            self._runner.join()

    def _run(self) -> None:
        due = time.monotonic() + _TICK
        while True:
            try:
                job = self._jobs.get(timeout=max(0.0, due - time.monotonic()))
            except queue.Empty:
                job, due = self._tick, time.monotonic() + _TICK
            if job is None:
                return
            try:
                job()
            except Exception as error:
                if not self._ended.is_set():
                    self._fail(BackendBroken(f"Ray does not do what it is asked: {first_line(error)}"))

    def _watch(self) -> None:
        while not self._ended.wait(_LOOK):
            failure = self._look()
            if failure is not None:
                self._fail(BackendLost(failure))
                return

    def _fail(self, error: BaseException) -> None:
        if not self.failed:
            self.failed = True
            self._broken(error)

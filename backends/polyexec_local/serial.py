"""Tasks in the thread that submits them, one at a time: for debuggers, and as the reference for the others."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import ClassVar

import attrs

from polyexec import lanes
from polyexec.config import LocalClusterConfig, boolean
from polyexec.spi import Call, Capabilities, Deviation
from polyexec_local.deviations import IN_PROCESS
from polyexec_local.inprocess import InProcessBackend


@attrs.frozen(kw_only=True)
class SerialConfig(LocalClusterConfig):
    """Configuration of ``serial``.

    Attributes:
        isolate: give tasks copies of their arguments, as the other backends do; 0 shares them.
    """

    isolate: bool = attrs.field(default=True, converter=boolean)


class SerialBackend(InProcessBackend):
    """Runs each call before ``submit`` returns. ``workers`` is the number of cpus that tasks may ask for."""

    Config = SerialConfig
    capabilities = Capabilities(inline=True, processes=False)
    deviations: ClassVar[tuple[Deviation, ...]] = IN_PROCESS

    def __init__(self, config: SerialConfig) -> None:
        super().__init__(config)
        if not config.isolate:
            # Shadows the class's own: whether arguments are shared is the user's choice.
            self.capabilities = attrs.evolve(type(self).capabilities, shares_arguments=True)  # type: ignore[misc]
        self._residents: list[threading.Thread] = []

    def slots(self) -> int:
        """One task at a time; those that wait lend their slot."""
        return 1

    def submit(self, call: Call) -> None:
        """Let the submitting thread run the call; one that lives on has a thread, and runs while others wait for it."""
        if call.resident:
            thread = threading.Thread(target=self.run, args=(call,), name=f"polyexec-{call.name}", daemon=True)
            self._residents = [one for one in self._residents if one.is_alive()]
            self._residents.append(thread)
            thread.start()
            return
        assert call.lane is not None
        lanes.post(call.lane, _Work(self, call))

    def run_here(self, call: Call) -> None:
        """Run a call in this thread."""
        if threading.current_thread() is not threading.main_thread():
            self.run(call)
            return
        watch = _CtrlC()
        try:
            self.run(call)
        finally:
            watch.end()

    def close(self, *, kill: bool) -> None:
        """Wait for threads to end; those that cannot be interrupted end by themselves if ``kill`` is set."""
        for thread in self._residents:
            if not kill:
                thread.join()


@attrs.frozen(eq=False)
class _Work:
    backend: SerialBackend
    call: Call

    def run(self) -> None:
        self.backend.run_here(self.call)

    def abandon(self) -> None:
        self.backend.report_cancelled(self.call)


class _CtrlC:
    """Notices a real SIGINT while a task runs in the main thread.

    To the task it is a KeyboardInterrupt, which the envelope catches as it catches those that a task raises itself;
    the user who pressed Ctrl-C wants the program to end, so it is raised again behind the task (W7).
    """

    def __init__(self) -> None:
        self._came = False
        self._previous = signal.getsignal(signal.SIGINT)
        if callable(self._previous):
            signal.signal(signal.SIGINT, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._came = True
        if callable(self._previous):
            self._previous(number, frame)

    def end(self) -> None:
        """Put the handler back; raise KeyboardInterrupt if there was a signal."""
        if signal.getsignal(signal.SIGINT) == self._note:
            signal.signal(signal.SIGINT, self._previous)
        if self._came:
            raise KeyboardInterrupt

"""The process that stands between the template and one worker.

It is the parent of the worker and adopts the orphans among the worker's descendants, whatever session they are in. So
it knows when and how the worker ends, ends then whatever the worker's tasks have started, and nothing else. It reports
to the driver by itself, so that it works without the template; and when the driver is gone it kills the worker, even
one that is stuck in C code. It has one thread.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any

from polyexec_local.children import ChildSignals, adopt_orphans, die_with, kill_children, leave

_TELL_AFTER = 0.25
"""Seconds after which a worker's end is reported although something that it has left behind has not ended yet."""

_PATIENCE = 0.05
"""Seconds between two looks for what is left."""

_NO_SIGNAL: int = getattr(socket, "MSG_NOSIGNAL", 0)


class Reporter:
    """The way to the driver, shared by a template and its keepers; each message arrives in one piece.

    Args:
        connection: a socket that keeps messages apart; it hangs up when the driver is gone.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def fileno(self) -> int:
        """Give the descriptor."""
        return self._connection.fileno()

    def tell(self, *message: Any, descriptors: Sequence[int] = ()) -> None:
        """Send a message. Blocks while the driver does not read; a driver that is gone is noticed elsewhere."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            socket.send_fds(self._connection, [pickle.dumps(message)], descriptors, _NO_SIGNAL)

    def close(self) -> None:
        """Close the descriptor."""
        self._connection.close()


def keep(reporter: Reporter, token: int, descriptor: int) -> socket.socket:
    """Fork a worker, and stay with it until it has ended; this process, a child of the template, ends then.

    Args:
        reporter: the way to the driver.
        token: the driver's name for the worker.
        descriptor: the worker's socket.

    Returns:
        The worker's socket, in the worker.
    """
    adopt_orphans()
    signals = ChildSignals()
    keeper = os.getpid()
    try:
        worker = os.fork()
    except OSError as error:
        reporter.tell("refused", token, str(error))
        leave(0)
    if worker == 0:
        die_with(keeper)
        os.setsid()
        signals.close()
        reporter.close()
        return socket.socket(fileno=descriptor)
    os.close(descriptor)
    try:
        _Keeper(reporter, token, worker, signals).run()
    except BaseException:
        sys.__excepthook__(*sys.exc_info())
        leave(1)
    leave(0)


class _Keeper:
    def __init__(self, reporter: Reporter, token: int, worker: int, signals: ChildSignals) -> None:
        self._reporter = reporter
        self._token = token
        self._worker = worker
        self._signals = signals
        self._code: int | None = None

    def run(self) -> None:
        self._introduce()
        self._signals.watch(self._reporter, 0)
        while self._lives():
            if self._signals.wait():
                os.kill(self._worker, signal.SIGKILL)
                break
        self._bury()

    def _introduce(self) -> None:
        """Tell the driver about the worker, with a descriptor of it, by which it can be killed and nothing else."""
        message = "spawned", self._token, self._worker
        try:
            lifeline = os.pidfd_open(self._worker)
            self._reporter.tell(*message, descriptors=[lifeline])
            os.close(lifeline)
        except (AttributeError, OSError):
            # An old kernel, or no descriptor is left; the driver then goes by the process id.
            self._reporter.tell(*message)

    def _lives(self) -> bool:
        """Say whether the worker has not ended; reap the orphans that have."""
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
            if ended.si_pid == self._worker:
                return False
            os.waitpid(ended.si_pid, 0)
        return True

    def _bury(self) -> None:
        """End what the worker has left, report, and return when nothing is left."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            # It is not reaped yet, so that this is its group and nobody else's.
            os.killpg(self._worker, signal.SIGKILL)
        until = time.monotonic() + _TELL_AFTER
        told = False
        while self._is_anything_left():
            if not told and self._code is not None and time.monotonic() > until:
                self._tell()
                told = True
            self._signals.wait(_PATIENCE)
        if not told:
            self._tell()

    def _is_anything_left(self) -> bool:
        """Kill and reap; what is killed makes orphans, which are next."""
        kill_children()
        try:
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self._worker:
                    self._code = os.waitstatus_to_exitcode(ended[1])
                kill_children()
        except ChildProcessError:
            return False
        return True

    def _tell(self) -> None:
        self._reporter.tell("exited", self._token, self._code)

"""One template process, and all that has come from it, as the driver sees them.

Belongs to its ``Template``, and with it to one thread. When the process dies its workers live on, and their ends are
still reported, by those who watch them; the messages end when nothing is left.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

_MESSAGE_LIMIT = 1 << 16
_DYING = 0.1
"""Seconds to wait for the status of a process that has closed its descriptors; it has all but ended."""

_ABANDONED = 1.0
"""Seconds to wait for the end of a worker whose keeper was killed: it must not run when others get what it held."""

_NO_SIGNAL: int = getattr(socket, "MSG_NOSIGNAL", 0)
_CLOSE_ON_EXEC: int = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


@attrs.frozen
class Spawned:
    """A worker has a process.

    Attributes:
        token: what it was asked for by.
        pid: its process id.
    """

    token: int
    pid: int


@attrs.frozen
class Exited:
    """A worker has ended, and what its tasks had started is being ended.

    Attributes:
        token: what it was asked for by.
        pid: its process id.
        code: as ``subprocess.Popen.returncode``; None if nobody knows, because who watched the worker was killed.
    """

    token: int
    pid: int
    code: int | None


@attrs.frozen
class Refused:
    """A worker was not started, and never will be.

    Attributes:
        token: what it was asked for by.
        reason: in words.
        accident: the template process has died, killed by somebody perhaps, so that another try may succeed.
    """

    token: int
    reason: str
    accident: bool = False


Event = Spawned | Exited | Refused


@attrs.define(eq=False)
class _Worker:
    pid: int
    lifeline: int

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self.lifeline >= 0:
                signal.pidfd_send_signal(self.lifeline, signal.SIGKILL)
            else:
                os.kill(self.pid, signal.SIGKILL)

    def lives(self, patience: float = 0.0) -> bool:
        if self.lifeline < 0:
            return True
        ended = select.poll()
        ended.register(self.lifeline, select.POLLIN)
        return not ended.poll(patience * 1000)

    def close(self) -> None:
        if self.lifeline >= 0:
            os.close(self.lifeline)
            self.lifeline = -1


class Generation:
    """One template process and its workers.

    Args:
        command: the code that the process runs; gets the numbers of its two descriptors as arguments.
        environment: its variables.

    Raises:
        OSError: no process, or no descriptor, is left.

    Attributes:
        process: the template.
        control: takes requests; it hangs up when the process has died.
        report: brings messages from the template and from those who watch its workers.
        ready: the process has imported everything.
        lost: the process has died.
        finished: no more messages come, because nothing is left.
        reason: why the process refuses all requests.
    """

    def __init__(self, command: str, environment: Mapping[str, str]) -> None:
        self.ready = self.lost = self.finished = False
        self.reason = ""
        self._asked: set[int] = set()
        self._doomed: set[int] = set()
        self._workers: dict[int, _Worker] = {}
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            self.control, control = _pair(ours, theirs)
            self.report, report = _pair(ours, theirs)
            self.process = subprocess.Popen(
                [sys.executable, "-c", command, str(control), str(report)],
                pass_fds=(control, report),
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )
            ours.pop_all()

    def ask(self, token: int, descriptor: int) -> bool:
        """Send a request for a worker.

        Args:
            token: names the worker.
            descriptor: its socket, of which the worker gets a copy.

        Returns:
            Whether it is sent; if not there is no room now, or the process has died.

        Raises:
            OSError: it cannot be sent.
        """
        try:
            socket.send_fds(self.control, [token.to_bytes(8, "little")], [descriptor], _NO_SIGNAL)
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            return False
        self._asked.add(token)
        return True

    def kill(self, token: int) -> None:
        """Kill a worker of this generation, at once or as soon as it is there."""
        if token in self._workers:
            self._workers[token].kill()
        elif token in self._asked:
            self._doomed.add(token)

    def lives(self, token: int) -> bool:
        """Say whether a worker of this generation has a process that has not ended."""
        return token in self._workers and self._workers[token].lives()

    def read(self) -> list[Event]:
        """Give what has happened."""
        events: list[Event] = []
        with contextlib.suppress(BlockingIOError):
            while not self.finished:
                data, descriptors, _, _ = socket.recv_fds(self.report, _MESSAGE_LIMIT, 1, _CLOSE_ON_EXEC)
                if data:
                    events += self._take(pickle.loads(data), *descriptors)
                else:
                    self.finished = True
                    events += [self._abandoned(token) for token in tuple(self._workers)]
        return events

    def _take(self, message: tuple[Any, ...], lifeline: int = -1) -> Iterator[Event]:
        match message:
            case ("ready",):
                self.ready = True
            case ("failed", reason):
                self.reason = reason
            case ("spawned", token, pid):
                yield from self._spawned(token, _Worker(pid, lifeline))
            case ("refused", token, reason) if token in self._asked:
                self._asked.remove(token)
                yield Refused(token, reason)
            case ("exited", token, code) if token in self._workers:
                yield self._exited(token, code)
            case ("abandoned", token) if token in self._workers:
                yield self._abandoned(token)

    def _spawned(self, token: int, worker: _Worker) -> Iterator[Event]:
        if token in self._asked:
            self._asked.remove(token)
            self._workers[token] = worker
            if token in self._doomed:
                self._doomed.remove(token)
                worker.kill()
            yield Spawned(token, worker.pid)
        else:
            # It was refused, because the template had died; but that had begun already.
            worker.kill()
            worker.close()

    def _abandoned(self, token: int) -> Exited:
        """Bury a worker that nobody watches; the kernel kills it with its keeper."""
        worker = self._workers[token]
        if worker.lifeline >= 0:
            worker.kill()
            worker.lives(_ABANDONED)
        return self._exited(token, None)

    def _exited(self, token: int, code: int | None) -> Exited:
        worker = self._workers.pop(token)
        worker.close()
        return Exited(token, worker.pid, code)

    def lose(self) -> list[Event]:
        """Note that the process has died; what it has not answered it will not answer."""
        self.lost = True
        self.control.close()
        try:
            ending = _ending(self.process.wait(_DYING))
        except subprocess.TimeoutExpired:
            self.process.kill()
            ending = "killed"
        reason = self.reason or f"the process that starts workers has died: {ending}"
        events: list[Event] = [Refused(token, reason, not self.reason) for token in self._asked]
        self._asked.clear()
        return events

    def dismiss(self) -> None:
        """Kill all workers, and let the process end."""
        for token in (*self._asked, *self._workers):
            self.kill(token)
        if not self.ready and not self.lost:
            # It may be importing for long, and has nothing to put in order.
            self.process.kill()
        self.lost = True
        self.control.close()

    def bury(self, timeout: float) -> None:
        """Wait for the end of the process, and close the descriptors.

        Args:
            timeout: seconds until it is killed.
        """
        try:
            self.process.wait(max(0.0, timeout))
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.close()

    def close(self) -> None:
        """Close the descriptors."""
        self.control.close()
        self.report.close()
        for worker in self._workers.values():
            worker.close()


def _pair(ours: contextlib.ExitStack, theirs: contextlib.ExitStack) -> tuple[socket.socket, int]:
    """Make a pair of sockets; give one, and a descriptor of the other."""
    mine, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.enter_context(mine)
    mine.setblocking(False)
    with other:
        # Not in the place of a standard stream, which a program may have closed: tasks write to those.
        descriptor = fcntl.fcntl(other.fileno(), fcntl.F_DUPFD_CLOEXEC, 3)
    theirs.callback(os.close, descriptor)
    return mine, descriptor


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"

"""One process of the pool, as the driver sees it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import time
import weakref

from polyexec_local.channel import Channel
from polyexec_local.holdings import Account
from polyexec_local.lending import Parcel
from polyexec_local.page import send_kit
from polyexec_local.worker import command

_members: weakref.WeakSet[Worker] = weakref.WeakSet()


class Worker:
    """One process, from its start to its burial.

    Attributes:
        ready: it has been set up, and takes calls.
        leaving: it was told to end.
        gone: it has ended.
        buried: it has been reaped, and nothing of it is left.
        fresh: nothing was sent to it after its call.
        unsent: its call waits for values from disk.
        deaf: it has ended before it read all that was sent to it.
        cause: why it was killed, if the pool did it.
        call: the call that it runs, None if it runs none, or plain ones.
        parcel: that call; its arguments are kept as long as it runs.
        account: what it has borrowed from the store.
        seat: the seat that it serves, 0 if none.
        functions: keys of those that it has.
        page: what it shares with the driver.
        deadline: when it is killed: if it is not ready by then, or has not ended as it should.
    """

    def __init__(self, timeout: float) -> None:
        ours, theirs = socket.socketpair()
        self.channel = Channel(ours, private=False)
        _members.add(self)
        with theirs:
            line, self.page = send_kit(ours)
            self.line = Channel(line, private=False)
            self.process = _started(theirs)
        ours.setblocking(False)
        line.setblocking(False)
        self.lifeline = os.pidfd_open(self.process.pid) if hasattr(os, "pidfd_open") else -1
        self.deadline = time.monotonic() + timeout
        self.ready = False
        self.leaving = False
        self.gone = False
        self.buried = False
        self.fresh = False
        self.unsent = False
        self.deaf = False
        self.cause = ""
        self.call: int | None = None
        self.parcel: Parcel | None = None
        self.account = Account()
        self.seat = 0
        self.functions: set[int] = set()

    @property
    def is_busy(self) -> bool:
        """Whether it runs something, or is there for plain calls."""
        return self.call is not None or bool(self.seat)

    def lives(self) -> bool:
        """Say whether the process has not ended, nor will in a moment, as far as is known by now."""
        if self.cause:
            return False
        try:
            return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        except ChildProcessError:
            return False

    def kill(self) -> None:
        """Kill the process, and what its tasks have started in its session."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def bury(self) -> int:
        """Reap the process; give what ``Popen.returncode`` gives."""
        if self.lifeline >= 0:
            os.close(self.lifeline)
        self.channel.close()
        self.line.close()
        code = self.process.wait()
        self.kill_rest()
        return code

    def kill_rest(self) -> None:
        """Kill what the dead process has left in its process group (F16)."""
        self.kill()


def _started(end: socket.socket) -> subprocess.Popen[bytes]:
    # Not in the place of a standard stream, which a program may have closed: tasks write to those.
    descriptor = fcntl.fcntl(end.fileno(), fcntl.F_DUPFD_CLOEXEC, 3)
    try:
        return subprocess.Popen(
            command(descriptor), pass_fds=(descriptor,), stdin=subprocess.DEVNULL, start_new_session=True
        )
    finally:
        os.close(descriptor)


def _let_go() -> None:
    """Run in a forked child: it must not keep workers alive when the driver is killed (F8)."""
    for member in tuple(_members):
        member.channel.close()
        member.line.close()


os.register_at_fork(after_in_child=_let_go)

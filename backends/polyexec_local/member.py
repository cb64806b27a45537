"""One process of the pool, as the driver sees it."""

from __future__ import annotations

import contextlib
import os
import socket
import time
import weakref

from polyexec_local.channel import Channel
from polyexec_local.holdings import Account
from polyexec_local.lending import Parcel
from polyexec_local.page import send_kit
from polyexec_local.template import Template

_members: weakref.WeakSet[Worker] = weakref.WeakSet()


class Worker:
    """One process, from the request for it to its burial.

    Args:
        template: forks it.
        token: the template's name for it.
        timeout: seconds that it may take to start.

    Raises:
        OSError: no process, or no descriptor, is left.

    Attributes:
        token: the template's name for it.
        pid: its process id, None until the template has told it; it may work before.
        process_id: the same as it has told itself when it was ready, 0 before.
        ready: it has been set up, and takes calls.
        leaving: it was told to end.
        doomed: it was killed, or has hung up, and ends in a moment.
        killed: the driver has killed it.
        refused: the system gave no process for it.
        used: it has had a call.
        gone: it has ended.
        buried: nothing of it is left.
        fresh: nothing was sent to it after its call.
        unsent: its call waits for values from disk.
        deaf: it has ended before it read all that was sent to it.
        cause: why it was killed, if the pool did it.
        call: the call that it runs, None if it runs none, or plain ones.
        parcel: that call; its arguments are kept as long as it runs.
        root: process id above all that counts towards the call's memory, None if that is not watched.
        account: what it has borrowed from the store.
        seat: the seat that it serves, 0 if none.
        functions: keys of those that it has.
        page: what it shares with the driver.
        deadline: when it is killed: if it is not ready by then, or has not ended as it should.
    """

    def __init__(self, template: Template, token: int, timeout: float) -> None:
        self._template = template
        self.token = token
        self.pid: int | None = None
        self.process_id = 0
        with contextlib.ExitStack() as stack:
            ours, theirs = map(stack.enter_context, socket.socketpair())
            line, self.page = send_kit(ours)
            stack.enter_context(line)
            self.channel = Channel(ours, private=False)
            self.line = Channel(line, private=False)
            ours.setblocking(False)
            line.setblocking(False)
            template.spawn(token, theirs)
            stack.pop_all()
        _members.add(self)
        self.deadline = time.monotonic() + timeout
        self.ready = False
        self.leaving = False
        self.doomed = False
        self.killed = False
        self.refused = False
        self.used = False
        self.gone = False
        self.buried = False
        self.fresh = False
        self.unsent = False
        self.deaf = False
        self.cause = ""
        self.call: int | None = None
        self.parcel: Parcel | None = None
        self.root: int | None = None
        self.account = Account()
        self.seat = 0
        self.functions: set[int] = set()

    @property
    def is_busy(self) -> bool:
        """Whether it runs something that will end, or is there for plain calls."""
        return (self.call is not None and not self.is_home) or bool(self.seat)

    @property
    def is_home(self) -> bool:
        """Whether something lives there."""
        return self.parcel is not None and self.parcel.resident

    def lives(self) -> bool:
        """Say whether the process has not ended, nor will in a moment, as far as is known by now."""
        return not self.doomed and (self.pid is None or self._template.lives(self.token))

    def kill(self) -> None:
        """Kill the process, now or as soon as it is there, and what its tasks have started."""
        self.doomed = self.killed = True
        self._template.kill(self.token)

    def give_up(self, cause: str) -> None:
        """Kill the process, for a reason that is told to whoever waits for its call."""
        self.cause = self.cause or cause
        self.kill()

    def close(self) -> None:
        """Close the descriptors."""
        self.channel.close()
        self.line.close()


def _let_go() -> None:
    """Run in a forked child: it must not keep workers alive when the driver is killed (F8)."""
    for member in tuple(_members):
        member.close()


os.register_at_fork(after_in_child=_let_go)

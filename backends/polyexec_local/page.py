"""A page of memory that a worker shares with the driver alone: what must be known without the worker's help.

Numbers of eight bytes, each written at once. The worker's main thread writes the mark, the plain call that it would
start, then looks at ``closed``, and if it may writes the call as started. ``closed`` is the last seat of which nothing
more may start; each side writes its own, which only grow. The driver closes a seat before it looks at the mark, and
looks only after a while, or when the worker is dead. So nothing starts that the driver takes for not started; and as
long as mark and start differ the worker has not looked yet.

Behind the numbers is room for what Python writes when the worker crashes: where its main thread was.
"""

from __future__ import annotations

import faulthandler
import fcntl
import mmap
import os
import socket

import polyexec
from polyexec_local.memory import Mapping, anonymous_file

_MARK, _STARTED, _CLOSED_BY_DRIVER, _CLOSED_BY_WORKER = range(4)
_CRASH_SIZE = 1 << 15
_SIZE = mmap.PAGESIZE + _CRASH_SIZE
_FRAME_LIMIT = 30
_OURS = tuple(os.path.dirname(os.path.abspath(path)) + os.sep for path in (__file__, polyexec.__file__))


class Page:
    """One worker's page.

    Args:
        descriptor: a file for it; may be closed afterwards.
        in_worker: this is the worker.
    """

    def __init__(self, descriptor: int, *, in_worker: bool = False) -> None:
        self._own = _CLOSED_BY_WORKER if in_worker else _CLOSED_BY_DRIVER
        mapping = Mapping(descriptor, _SIZE, writable=True)
        self._cells = mapping.memory(0, mmap.PAGESIZE).cast("Q")
        self._crash = mapping.memory(mmap.PAGESIZE, _CRASH_SIZE)

    def may_start(self, seat: int, call_id: int) -> bool:
        """Say whether a call may start, and take down that it does; in the worker's main thread."""
        cells = self._cells
        cells[_MARK] = call_id
        if cells[_CLOSED_BY_DRIVER] >= seat or cells[_CLOSED_BY_WORKER] >= seat:
            cells[_MARK] = cells[_STARTED]
            return False
        cells[_STARTED] = call_id
        return True

    @property
    def started(self) -> int:
        """The plain call that started last."""
        return self._cells[_STARTED]

    @property
    def is_undecided(self) -> bool:
        """Whether a call may be about to start."""
        return self._cells[_MARK] != self._cells[_STARTED]

    def close(self, seat: int) -> None:
        """Let nothing more start of a seat, and of those before it."""
        self._cells[self._own] = max(seat, self._cells[self._own])

    def stack(self) -> str:
        """Give the Python stack of a worker that has crashed, in the form of a traceback; empty if it has left none."""
        text = bytes(self._crash).rstrip(b"\0").decode(errors="replace")
        frames = [line for line in text.rpartition("(most recent call first):")[2].splitlines() if line[:3] == "  F"]
        while frames and frames[-1][8:].startswith((*_OURS, "<string>")):
            del frames[-1]
        if len(frames) > _FRAME_LIMIT:
            frames[_FRAME_LIMIT:] = [f"  ({len(frames) - _FRAME_LIMIT} frames omitted)"]
        return "\n".join(["Traceback of the crash (most recent call last):", *reversed(frames)]) if frames else ""


def _note_crashes(descriptor: int) -> None:
    """Let Python write where the main thread is when this process crashes, unless it has been told to write elsewhere.

    Args:
        descriptor: of the page; a copy of it stays open, because it is written to without further preparation.
    """
    if not faulthandler.is_enabled():
        kept = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
        os.lseek(kept, mmap.PAGESIZE, os.SEEK_SET)
        faulthandler.enable(kept, all_threads=False)


def send_kit(connection: socket.socket) -> tuple[socket.socket, Page]:
    """Make a page and a second connection for the worker at the other end of a connection, and send it its ends.

    Args:
        connection: to a worker that has not started yet, or waits for this.

    Returns:
        The driver's end of the second connection, and the page.

    Raises:
        OSError: there is no descriptor left.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            descriptor = anonymous_file(_SIZE)
            try:
                page = Page(descriptor)
                socket.send_fds(connection, [b"k"], [theirs.fileno(), descriptor])
            finally:
                os.close(descriptor)
        except BaseException:
            ours.close()
            raise
    return ours, page


def receive_kit(connection: socket.socket) -> tuple[socket.socket, Page]:
    """Take what ``send_kit`` has sent, in a worker. Blocks until it is there."""
    _, descriptors, _, _ = socket.recv_fds(connection, 1, 2)
    try:
        page = Page(descriptors[1], in_worker=True)
        _note_crashes(descriptors[1])
        return socket.socket(fileno=descriptors[0]), page
    finally:
        os.close(descriptors[1])

"""A page of memory that a worker shares with the driver alone: what must be known without the worker's help.

Two numbers of eight bytes, each written at once. The worker's main thread writes the mark: the plain call that it is
about to start. ``closed`` is the last seat of which nothing more may start; it only grows, and both sides write it.
The worker writes the mark before it looks at ``closed``; the driver writes ``closed`` before it looks at the mark,
and looks only after a while, or when the worker is dead. So nothing starts that the driver takes for not started.
"""

from __future__ import annotations

import mmap
import os
import socket

from polyexec_local.memory import Mapping, anonymous_file

_MARK, _CLOSED = 0, 1


class Page:
    """One worker's page.

    Args:
        descriptor: a file of at least one page; may be closed afterwards.
    """

    def __init__(self, descriptor: int) -> None:
        self._cells = Mapping(descriptor, mmap.PAGESIZE, writable=True).memory(0, mmap.PAGESIZE).cast("Q")

    def mark(self, call_id: int) -> None:
        """Say which call is about to start."""
        self._cells[_MARK] = call_id

    @property
    def marked(self) -> int:
        """The call that started last, or is about to, unless it sees that its seat is closed."""
        return self._cells[_MARK]

    @property
    def closed(self) -> int:
        """The last seat of which nothing more may start."""
        return self._cells[_CLOSED]

    def close(self, seat: int) -> None:
        """Let nothing more start of a seat, and of those before it."""
        self._cells[_CLOSED] = max(seat, self._cells[_CLOSED])


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
            descriptor = anonymous_file(mmap.PAGESIZE)
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
        return socket.socket(fileno=descriptors[0]), Page(descriptors[1])
    finally:
        os.close(descriptors[1])

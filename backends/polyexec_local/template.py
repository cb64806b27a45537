"""Starting worker processes by forking them from one that has imported everything that they need.

Everything belongs to one thread, the pool's; ``start`` may be called in another one before that. No method blocks but
``close``, and ``receive`` for a moment when somebody has killed the template or a keeper.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import time
import weakref
from collections import deque
from collections.abc import Sequence

from polyexec.errors import BackendBroken
from polyexec_local.generation import Event, Exited, Generation, Refused, Spawned

__all__ = ["Event", "Exited", "Refused", "Spawned", "Template"]

ENTRY = "polyexec_local.worker:serve"
_BOOTSTRAP = (
    "import sys; sys.path[:] = {path!a}; from polyexec_local.template_process import main; "
    "main(int(sys.argv[1]), int(sys.argv[2]), {entry!a}, {preload!a})"
)
_HUNG_UP = select.EPOLLHUP | select.EPOLLERR if hasattr(select, "epoll") else 0

_templates: weakref.WeakSet[Template] = weakref.WeakSet()


class Template:
    """The process from which the workers of a pool are forked; a new one is started when it has died.

    Workers see the environment variables and the import path of the driver as they were when this object was made,
    its standard output and error, and no other descriptor of it. They do not import its ``__main__``. When a worker
    ends, however that comes, everything ends that its tasks have started (F9, F16). When the driver is gone its workers
    are killed, whatever they do (F8). When the template dies its workers live on.

    Args:
        preload: names of modules to import once, in the template; they must not start threads.
        entry: ``"module:function"``, called in each worker with its socket; the worker ends when it returns.

    Raises:
        BackendBroken: the system is not Linux.
        OSError: no descriptor is left.
    """

    def __init__(self, preload: Sequence[str] = (), *, entry: str = ENTRY) -> None:
        if not hasattr(select, "epoll"):
            raise BackendBroken("worker processes need Linux: epoll, and adoption of orphaned processes")
        path = [os.path.abspath(item) for item in sys.path]
        self._command = _BOOTSTRAP.format(path=path, entry=entry, preload=tuple(preload))
        self._environment = dict(os.environ)
        self._generations: list[Generation] = []
        self._waiting: deque[tuple[int, socket.socket]] = deque()
        self._events: list[Event] = []
        self._epoll = select.epoll()
        _templates.add(self)

    def fileno(self) -> int:
        """Give the descriptor that is readable when ``receive`` has something to do."""
        return self._epoll.fileno()

    def start(self) -> None:
        """Start the template process if none runs, so that it is ready when the first worker is wanted.

        Raises:
            OSError: no process, or no descriptor, is left.
        """
        self._started()

    def spawn(self, token: int, connection: socket.socket) -> None:
        """Ask for a worker; ``Spawned`` or ``Refused`` answers.

        Args:
            token: a number from 0 that names the worker in all that follows; must not be used again.
            connection: the worker's end of a socket pair; closed here in any case.

        Raises:
            OSError: no process, or no descriptor, is left; no answer comes.
        """
        try:
            self._started()
        except OSError:
            connection.close()
            raise
        self._waiting.append((token, connection))
        self._send()
        self._watch()

    def kill(self, token: int) -> None:
        """Kill a worker, now or as soon as it is there.

        ``Exited`` comes as usual, or ``Refused`` if the request for it was still waiting.

        Args:
            token: names the worker; nothing happens if it has ended.
        """
        for generation in self._generations:
            generation.kill(token)
        for index, (waiting, connection) in enumerate(self._waiting):
            if waiting == token:
                del self._waiting[index]
                self._refuse(token, connection, "it was killed before it was started")
                break
        self._watch()

    def lives(self, token: int) -> bool:
        """Say whether a worker has a process that has not ended; its end may not have been received yet."""
        return any(generation.lives(token) for generation in self._generations)

    def give_up(self, reason: str) -> None:
        """Kill the template process, which takes too long; what it has not answered is refused.

        Args:
            reason: for those who are refused.
        """
        generation = self._current()
        if generation is not None:
            generation.reason = generation.reason or reason
            generation.process.kill()

    def receive(self) -> list[Event]:
        """Give what has happened, and send what there is room for."""
        hung_up = {descriptor for descriptor, mask in self._epoll.poll(0) if mask & _HUNG_UP}
        for generation in tuple(self._generations):
            died = not generation.lost and generation.control.fileno() in hung_up
            # Read after that was seen, so that nothing is missed that the process has sent before it died.
            self._events += generation.read()
            if not generation.lost and (died or generation.finished):
                self._epoll.unregister(generation.control)
                self._events += generation.lose()
            if generation.finished:
                self._epoll.unregister(generation.report)
                self._generations.remove(generation)
                generation.close()
        self._send()
        events, self._events = self._events, []
        self._watch()
        return events

    def close(self, timeout: float = 5.0) -> None:
        """Kill all workers, end the template process, and close all descriptors. Blocks until all are gone.

        Args:
            timeout: seconds to wait at most.
        """
        if self._epoll.closed:
            return
        until = time.monotonic() + timeout
        generations = tuple(self._generations)
        while self._waiting:
            self._waiting.popleft()[1].close()
        self.receive()
        for generation in generations:
            if not generation.lost:
                self._epoll.unregister(generation.control)
            generation.dismiss()
        while self._generations and (left := until - time.monotonic()) > 0:
            self._epoll.poll(left)
            self.receive()
        for generation in generations:
            generation.bury(until - time.monotonic())
        self._generations.clear()
        self._epoll.close()

    def _current(self) -> Generation | None:
        """Give the generation that takes requests."""
        return next((generation for generation in self._generations if not generation.lost), None)

    def _started(self) -> Generation:
        """Give the generation that takes requests, a new one if there is none."""
        generation = self._current()
        if generation is None:
            generation = Generation(self._command, self._environment)
            self._generations.append(generation)
            # That it hangs up is reported without being asked for.
            self._epoll.register(generation.control, 0)
            self._epoll.register(generation.report, select.EPOLLIN)
        return generation

    def _send(self) -> None:
        """Send the requests that there is room for, to a new template process if there is none."""
        while self._waiting:
            token, connection = self._waiting[0]
            try:
                if not self._started().ask(token, connection.fileno()):
                    return
            except OSError as error:
                self._refuse(token, connection, f"cannot start a worker process: {error}")
            else:
                connection.close()
            self._waiting.popleft()

    def _refuse(self, token: int, connection: socket.socket, reason: str) -> None:
        connection.close()
        self._events.append(Refused(token, reason))

    def _watch(self) -> None:
        """Let the descriptor be readable when there is room, or when there is something to receive already."""
        generation = self._current()
        if generation is not None:
            self._epoll.modify(generation.control, select.EPOLLOUT if self._waiting or self._events else 0)

    def _let_go(self) -> None:
        for generation in self._generations:
            generation.close()
        for _, connection in self._waiting:
            connection.close()
        self._epoll.close()


def _let_go() -> None:
    """Run in a forked child of the driver: it must not keep workers alive when the driver is killed (F8)."""
    for template in tuple(_templates):
        template._let_go()


os.register_at_fork(after_in_child=_let_go)

"""The driver's side of the process that forks the workers of a cluster of our own."""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
import subprocess
import sys
from typing import Any, Protocol

from polyexec_dask.frames import Frames

_BOOTSTRAP = (
    "import sys; sys.path[:] = sys.argv[4].split('\\n'); "
    "from polyexec_dask import nursery_process; nursery_process.main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])"
)

_PATIENCE = 5.0
"""Seconds that the process gets to end by itself, with all workers."""


class Listener(Protocol):
    """Who wants to know about workers; all methods are called in the event loop."""

    def on_spawned(self, name: str, pid: int) -> None:
        """Learn that a worker has a process."""

    def on_refused(self, name: str, reason: str) -> None:
        """Learn that the system gives no more processes."""

    def on_ended(self, pid: int, status: int) -> None:
        """Learn that a process has ended; the status is negative for a signal."""

    def on_outgrown(self, pid: int, used: int, allowance: int) -> None:
        """Learn that a process is being killed because of its memory."""

    def on_nursery_lost(self) -> None:
        """Learn that the nursery itself is gone, and all workers with it."""


class Nursery:
    """Starts worker processes by forking them from one that has Dask imported already.

    No worker imports the user's ``__main__``, so scripts need no guard.

    Args:
        listener: hears of workers.
        folder: for temporary files of the workers; the nursery removes it when the driver is gone.
    """

    def __init__(self, listener: Listener, folder: str) -> None:
        self._listener = listener
        mine, theirs = socket.socketpair()
        with theirs:
            # The module path goes along because the driver may have changed its own.
            path = "\n".join(entry or os.getcwd() for entry in sys.path)
            identity = [str(theirs.fileno()), str(os.getpid()), folder]
            command = [sys.executable, "-c", _BOOTSTRAP, *identity, path]
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], start_new_session=True
            )
        mine.setblocking(False)
        self._socket = mine
        self._frames = Frames()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(mine, self._read)
        self._outgoing = b""
        self.is_open = True

    def spawn(self, name: str, specification: dict[str, Any]) -> None:
        """Start a worker; the listener hears of it."""
        self._tell("spawn", name, specification)

    def kill(self, pid: int) -> None:
        """Kill a worker and what its tasks have started."""
        self._tell("kill", pid)

    def kill_itself(self) -> None:
        """Kill the process, and with it all workers; the listener hears of it."""
        self._process.kill()

    def guard(self, pid: int, before: int, allowance: int) -> None:
        """Kill a worker when it uses more memory than before, in bytes, and an allowance; 0 ends this."""
        self._tell("guard", pid, before, allowance)

    def _tell(self, *message: Any) -> None:
        if not self.is_open:
            return
        self._outgoing += Frames.pack(pickle.dumps(message))
        self._write()

    def _write(self) -> None:
        try:
            count = self._socket.send(self._outgoing)
        except BlockingIOError:
            count = 0
        except OSError:
            return
        self._outgoing = self._outgoing[count:]
        if self._outgoing:
            self._loop.add_writer(self._socket, self._write)
        else:
            self._loop.remove_writer(self._socket)

    def _read(self) -> None:
        try:
            data = self._socket.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        for frame in self._frames.feed(data):
            kind, *fields = pickle.loads(frame)
            getattr(self._listener, f"on_{kind}")(*fields)
        if not data:
            self._disconnect()
            self._listener.on_nursery_lost()

    def _disconnect(self) -> None:
        if self.is_open:
            self.is_open = False
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()

    async def close(self) -> None:
        """Kill all workers, and wait until the process is gone."""
        self._disconnect()
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._has_ended()
        except TimeoutError:
            self._process.kill()
            await self._has_ended()

    async def _has_ended(self) -> None:
        # No thread may do this: when the interpreter exits it is too late to start one.
        while self._process.poll() is None:
            await asyncio.sleep(0.005)

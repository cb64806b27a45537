"""The process that forks the workers of a cluster of our own. It imports Dask once, and its workers start from there.

It has one thread and no event loop. It is the parent of all workers, so that it knows how each of them ended and can
kill one without a race for its process id; and when the driver is gone, whatever ended it, it kills them all.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import pickle
import select
import shutil
import signal
import socket
import sys
from typing import Any

from polyexec import memory_usage
from polyexec_dask import worker_process
from polyexec_dask.frames import Frames

_PARENT_CHECK_SECONDS = 1.0
_PR_SET_PDEATHSIG = 1


class _Nursery:
    def __init__(self, control: socket.socket, driver: int, folder: str) -> None:
        self._control = control
        self._driver = driver
        self._children: set[int] = set()
        self._allowances: dict[int, tuple[int, int]] = {}
        self._frames = Frames()
        self._folder = folder
        self._wake, wake_write = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)

    def serve(self) -> None:
        try:
            while os.getppid() == self._driver:
                pause = memory_usage.CHECK_SECONDS if self._allowances else _PARENT_CHECK_SECONDS
                ready, _, _ = select.select([self._control.fileno(), self._wake], [], [], pause)
                self._check_memory()
                if self._wake in ready:
                    self._bury()
                if self._control.fileno() in ready and not self._obey():
                    return
        except OSError:
            return
        finally:
            self._end()

    def _obey(self) -> bool:
        data = self._control.recv(1 << 16)
        for frame in self._frames.feed(data):
            kind, *fields = pickle.loads(frame)
            if kind == "spawn":
                self._spawn(*fields)
            elif kind == "kill":
                self._kill(*fields)
            elif kind == "guard":
                self._guard(*fields)
        return bool(data)

    def _spawn(self, name: str, specification: dict[str, Any]) -> None:
        try:
            pid = os.fork()
        except OSError as error:
            self._tell("refused", name, str(error))
            return
        if pid == 0:
            self._become_worker(specification)
        self._children.add(pid)
        self._tell("spawned", name, pid)

    def _become_worker(self, specification: dict[str, Any]) -> None:
        status = 1
        try:
            parent = os.getppid()
            os.setsid()
            _die_with_parent(parent)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._control.close()
            os.close(self._wake)
            worker_process.main(specification, self._folder)
            status = 0
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    def _kill(self, pid: int) -> None:
        if pid in self._children:
            _kill_group(pid)

    def _guard(self, pid: int, before: int, allowance: int) -> None:
        self._allowances.pop(pid, None)
        if allowance and pid in self._children:
            self._allowances[pid] = (before, allowance)

    def _check_memory(self) -> None:
        for pid, (before, allowance) in list(self._allowances.items()):
            used = memory_usage.outgrown(pid, before, allowance)
            if used is not None:
                del self._allowances[pid]
                self._tell("outgrown", pid, used, allowance)
                self._kill(pid)

    def _bury(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, 4096)
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            # Whatever its tasks have started, and did not detach, does not outlive it.
            _kill_group(pid)
            self._children.discard(pid)
            self._allowances.pop(pid, None)
            self._tell("ended", pid, os.waitstatus_to_exitcode(status))

    def _tell(self, *message: Any) -> None:
        self._control.sendall(Frames.pack(pickle.dumps(message)))

    def _end(self) -> None:
        for pid in self._children:
            _kill_group(pid)
        for pid in self._children:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        shutil.rmtree(self._folder, ignore_errors=True)


def _kill_group(pid: int) -> None:
    # A worker that has only just been forked does not lead a group of its own yet.
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)


def _die_with_parent(parent: int) -> None:
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def main(descriptor: int, driver: int, folder: str) -> None:
    """Serve the driver until it is gone.

    Args:
        descriptor: of the socket to the driver.
        driver: its process id.
        folder: for temporary files of the workers; removed at the end.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()
    _Nursery(socket.socket(fileno=descriptor), driver, folder).serve()

"""The driver's side: it starts workers, hands calls over, and reports what they say and how they die."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import attrs

from foreign_pool.worker import packed
from polyexec.config import LocalClusterConfig
from polyexec.spi import Backend, Call, Death, EngineInfo, Host, Node, Outcome, Stored, Value, Verdict

_NODE = "pool"


@attrs.frozen(kw_only=True)
class ForeignPoolConfig(LocalClusterConfig):
    """Keys of ``foreign?...``: those that all engines with workers of their own have."""


class _Worker:
    def __init__(self, pool: ForeignPool, setup: bytes) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-c", "from foreign_pool.worker import main; main()", str(theirs.fileno())]
            # A session of its own keeps Ctrl-C away, and lets the worker be killed with whatever it has started.
            self.process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True
            )
        self.connection = Connection(ours.detach())
        self.connection.send(setup)
        self.call: int | None = None
        self.started = False
        self.reader = threading.Thread(target=pool.serve, args=(self,), name=f"foreign-pool-{self.process.pid}")
        self.reader.start()

    def send(self, *message: Any) -> None:
        # A worker that has just died is reported by its reader.
        with contextlib.suppress(OSError):
            self.connection.send(message)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


class ForeignPool(Backend):
    """A pool of processes. ``_workers`` and ``_idle`` are guarded by ``_lock``; a worker's fields too."""

    Config = ForeignPoolConfig

    def open(self, host: Host) -> EngineInfo:
        self._host = host
        self._lock = threading.Lock()
        self._workers: dict[int, _Worker] = {}
        self._idle: list[_Worker] = []
        return EngineInfo("foreign pool 1.0")

    def close(self, *, kill: bool) -> None:
        with self._lock:
            workers = [*self._idle, *self._workers.values()]
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.reader.join()

    def nodes(self) -> Sequence[Node]:
        total = self.config.total()
        # More slots than cpus, because a call may hold less than a cpu, or none.
        return [Node(_NODE, socket.gethostname(), total, slots=4 * int(total.cpus))]

    def submit(self, call: Call) -> None:
        with self._lock:
            # A call that waits for others lends its slot, so that more workers than slots may be needed.
            worker = self._idle.pop() if self._idle else _Worker(self, self._host.setup)
            self._workers[call.id] = worker
            worker.call, worker.started = call.id, False
        worker.send("run", call.id, call.head, packed(call.body), [_travelling(value) for value in call.values])

    def cancel(self, call_id: int, *, force: bool) -> None:
        with self._lock:
            worker = self._workers.get(call_id)
        if worker is None:
            self._host.stopped(call_id, Verdict.LATE)
        elif force:
            self._host.stopped(call_id, Verdict.DELIVERED)
            worker.kill()
        else:
            worker.send("cancel", call_id)

    def reply(self, request_id: object, message: bytes, values: Sequence[Value]) -> None:
        assert isinstance(request_id, tuple), "what this backend gave to Host.request"
        worker, number = request_id
        worker.send("reply", number, message, [_travelling(value) for value in values])

    def serve(self, worker: _Worker) -> None:
        """Report what a worker says, until it dies; runs in a thread for each worker."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                self._report(worker, *worker.connection.recv())
        worker.kill()
        status = worker.process.wait()
        worker.connection.close()
        with self._lock:
            if worker in self._idle:
                self._idle.remove(worker)
            call_id = worker.call
            self._workers.pop(call_id or 0, None)
        if call_id is not None:
            number, code = (-status, None) if status < 0 else (None, status)
            death = Death(socket.gethostname(), worker.process.pid, number, code, started=worker.started)
            self._host.lost(call_id, death)

    def _report(self, worker: _Worker, kind: str, number: int, *rest: Any) -> None:
        if kind == "started":
            worker.started = True
            self._host.started(number)
        elif kind == "finished":
            self._free(worker)
            self._host.finished(number, Outcome.of(Stored(*rest)))
        elif kind == "stopped":
            self._host.stopped(number, *rest)
        elif kind == "request" and worker.call is not None:
            self._host.request((worker, number), worker.call, Stored(*rest))
        elif kind == "told" and worker.call is not None:
            self._host.told(worker.call, Stored(*rest))

    def _free(self, worker: _Worker) -> None:
        with self._lock:
            if worker.call is not None:
                del self._workers[worker.call]
            worker.call = None
            self._idle.append(worker)


def _travelling(value: Value) -> tuple[bytes, list[bytes]]:
    assert value.stored is not None, "put() keeps nothing, so that the core has all values"
    return packed(value.stored)

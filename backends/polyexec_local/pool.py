"""The worker processes of the local engine, and the one thread that owns them.

All state belongs to the pool's thread. Others reach it by ``_post``: a queue, and a byte in a pipe that wakes the
thread's selector. Nothing is shared between workers: each has a socket pair and a process descriptor of its own, so
that the death of one is seen at once and tears nothing of another.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

from polyexec import envelope
from polyexec.errors import BackendBroken
from polyexec.spi import Death, Host, Outcome, Verdict
from polyexec_local.channel import Encoded, Frame, encode
from polyexec_local.member import Worker

_EXIT_GRACE = 5.0
"""Seconds that workers get to end by themselves when the pool stops."""

_FREE_DEATHS = 3
"""How many workers in a row may die while they start, killed from outside perhaps, before a call is refused for it."""

_END_GRACE = 1.0
"""Seconds that a worker gets to end when it cannot be spoken to any more."""

_LONGEST_PAUSE = 3600.0
"""Seconds; the system's own limit for a wait is less than what users may give as a timeout."""


class Pool:
    """Runs calls in processes; as many as there are calls, since the core limits those.

    Args:
        host: whom to report to.
        size: number of workers to keep when there is nothing to do.
        start_timeout: seconds that a worker may take to start.
    """

    def __init__(self, host: Host, size: int, start_timeout: float) -> None:
        self._host = host
        self._size = size
        self._start_timeout = start_timeout
        self._hostname = socket.gethostname()
        self._posted: SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]]] = SimpleQueue()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector = selectors.DefaultSelector()
        self._workers: list[Worker] = []
        self._idle: list[Worker] = []
        self._waiting: deque[tuple[int, Encoded]] = deque()
        self._refused = False
        self._failed_starts = 0
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="polyexec-pool", daemon=True)

    # For any thread

    def start(self) -> None:
        """Start the thread, which starts the workers."""
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        self._thread.start()
        self._post(self._fill)

    def submit(self, call_id: int, encoded: Encoded) -> None:
        """Run a call."""
        self._post(self._submit, call_id, encoded)

    def cancel(self, call_id: int, *, force: bool) -> None:
        """Stop a call."""
        self._post(self._cancel, call_id, force)

    def send(self, worker: Worker, encoded: Encoded) -> None:
        """Send a frame to a worker, if it lives."""
        self._post(self._send, worker, encoded)

    def stop(self, *, kill: bool) -> None:
        """End all workers and the thread. Blocks."""
        self._post(self._stop, kill)
        self._thread.join()
        self._selector.close()
        descriptors = self._wake_read, self._wake_write
        # Whoever posts from now on must not write into a file that gets the same number.
        self._wake_read = self._wake_write = -1
        for descriptor in descriptors:
            os.close(descriptor)

    def _post(self, function: Callable[..., None], *args: Any) -> None:
        self._posted.put((function, args))
        with contextlib.suppress(OSError):
            os.write(self._wake_write, b"\0")

    # In the pool's thread

    def _run(self) -> None:
        while not (self._stopping and not self._workers):
            for key, events in self._selector.select(self._pause()):
                self._guarded(self._serve, key.data, events, key.fd)
            self._kill_late()

    def _guarded(self, function: Callable[..., None], *args: Any) -> None:
        try:
            function(*args)
        except Exception as error:
            # Whatever it is, the thread lives on, so that every worker is buried and nobody waits for ever.
            broken = BackendBroken(f"internal error of the worker pool: {error!r}")
            broken.__cause__ = error
            self._host.broken(broken)

    def _serve(self, worker: Worker | None, events: int, descriptor: int) -> None:
        if worker is None:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_read, 1 << 16)
            self._take_posted()
        elif worker not in self._workers:
            return
        elif descriptor == worker.lifeline:
            self._bury(worker)
        else:
            if events & selectors.EVENT_WRITE:
                self._flush(worker)
            if events & selectors.EVENT_READ and not self._read(worker) and worker.lifeline < 0:
                self._bury(worker)

    def _take_posted(self) -> None:
        for _ in range(self._posted.qsize()):
            try:
                function, args = self._posted.get_nowait()
            except Empty:
                return
            self._guarded(function, *args)

    def _read(self, worker: Worker) -> bool:
        """Take what a worker has sent; False at the end of its stream."""
        try:
            frames = worker.channel.receive()
        except BlockingIOError:
            return True
        except ConnectionResetError:
            worker.deaf, frames = True, None
        except OSError as error:
            self._give_up(worker, f"what it sent cannot be taken: {error}")
            frames = None
        if frames is None:
            if worker.lifeline >= 0:
                self._selector.unregister(worker.channel)
            # Its end follows in a moment; if not, it is of no use any more.
            worker.deadline = min(worker.deadline, time.monotonic() + _END_GRACE)
            return False
        for frame in frames:
            self._take(worker, frame)
        return True

    def _drain(self, worker: Worker) -> None:
        """Take what a dead worker had sent; nothing that comes half is reported."""
        try:
            while (frames := worker.channel.receive()) is not None:
                for frame in frames:
                    self._take(worker, frame)
        except ConnectionResetError:
            worker.deaf = True
        except OSError:
            return

    @staticmethod
    def _give_up(worker: Worker, cause: str) -> None:
        worker.cause = worker.cause or cause
        worker.kill()

    def _take(self, worker: Worker, frame: Frame) -> None:
        if frame.kind == "finished":
            self._end_call(worker, frame, Outcome.of(frame.values[0]))
        elif frame.kind == "failed":
            self._end_call(worker, frame, envelope.exhausted(frame.fields[1]))
        elif frame.kind == "request":
            number, call_id = frame.fields
            self._host.request((worker, number), call_id, frame.values[0])
        elif frame.kind == "stopped":
            self._host.stopped(frame.fields[0], Verdict(frame.fields[1]))
        elif frame.kind == "ready":
            self._became_ready(worker, frame)

    def _end_call(self, worker: Worker, frame: Frame, outcome: Outcome) -> None:
        if worker.call == frame.fields[0]:
            self._free(worker)
            self._host.finished(frame.fields[0], outcome)

    def _became_ready(self, worker: Worker, frame: Frame) -> None:
        if frame.values:
            self._retire(worker)
            self._refuse(Outcome.of(frame.values[0]))
            return
        worker.ready, worker.deadline = True, float("inf")
        self._refused = False
        self._failed_starts = 0
        self._free(worker)

    def _refuse(self, outcome: Outcome) -> None:
        """Report that a worker did not start to the first call that waits for one."""
        self._refused = True
        if self._waiting:
            self._host.finished(self._waiting.popleft()[0], outcome)
        self._fill()

    def _free(self, worker: Worker) -> None:
        worker.call = None
        if worker.gone or worker.leaving:
            return
        if self._waiting:
            self._hand_over(worker, *self._waiting.popleft())
            return
        self._idle.append(worker)
        if len(self._idle) > self._size:
            self._retire(self._idle.pop(0))

    def _submit(self, call_id: int, encoded: Encoded) -> None:
        if self._stopping:
            return
        while self._idle:
            worker = self._idle.pop()
            if worker.lives():
                self._hand_over(worker, call_id, encoded)
                return
        self._waiting.append((call_id, encoded))
        self._fill()

    def _hand_over(self, worker: Worker, call_id: int, encoded: Encoded) -> None:
        worker.call = call_id
        self._send(worker, encoded)
        worker.fresh = True

    def _fill(self) -> None:
        """Start the workers that are missing: one for each call that waits, and the usual number at least.

        After a failed start only those are started that a call waits for, so that failing is bounded by the core.
        """
        if self._stopping:
            return
        starting = sum(not worker.ready and not worker.leaving for worker in self._workers)
        busy = sum(worker.call is not None for worker in self._workers)
        usual = 0 if self._refused else self._size - busy - len(self._idle) - starting
        for _ in range(max(usual, len(self._waiting) - starting)):
            self._start_worker()

    def _start_worker(self) -> None:
        try:
            worker = Worker(self._start_timeout)
        except OSError as error:
            self._refuse_soon(envelope.refusal(f"cannot start a worker process: {error}"))
            return
        self._workers.append(worker)
        self._selector.register(worker.channel, selectors.EVENT_READ, worker)
        if worker.lifeline >= 0:
            self._selector.register(worker.lifeline, selectors.EVENT_READ, worker)
        self._send(worker, encode("setup", (self._host.setup,)))

    def _refuse_soon(self, outcome: Outcome) -> None:
        self._refused = True
        if self._waiting:
            self._post(self._host.finished, self._waiting.popleft()[0], outcome)

    def _send(self, worker: Worker, encoded: Encoded) -> None:
        if worker not in self._workers or worker.cause:
            return
        worker.fresh = False
        try:
            done = worker.channel.enqueue(encoded)
        except (BrokenPipeError, ConnectionResetError):
            # It is dying; its lifeline says so in a moment.
            return
        except OSError as error:
            self._give_up(worker, f"nothing can be sent to it: {error}")
            return
        if not done:
            self._selector.modify(worker.channel, selectors.EVENT_READ | selectors.EVENT_WRITE, worker)

    def _flush(self, worker: Worker) -> None:
        with contextlib.suppress(OSError):
            if worker.channel.flush():
                self._selector.modify(worker.channel, selectors.EVENT_READ, worker)

    def _cancel(self, call_id: int, force: bool) -> None:
        waiting = next((item for item in self._waiting if item[0] == call_id), None)
        if waiting is not None:
            self._waiting.remove(waiting)
            self._host.stopped(call_id, Verdict.REVOKED)
            return
        worker = next((worker for worker in self._workers if worker.call == call_id), None)
        if worker is None:
            self._host.stopped(call_id, Verdict.LATE)
        elif force:
            worker.kill()
            self._host.stopped(call_id, Verdict.DELIVERED)
        else:
            self._send(worker, encode("interrupt", (call_id,)))

    def _retire(self, worker: Worker) -> None:
        worker.leaving = True
        self._send(worker, encode("exit"))

    def _bury(self, worker: Worker) -> None:
        worker.gone = True
        self._drain(worker)
        begun = not worker.fresh or not (worker.deaf or worker.channel.pending)
        self._workers.remove(worker)
        if worker in self._idle:
            self._idle.remove(worker)
        for file in (worker.channel, worker.lifeline):
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(file)
        code = worker.bury()
        if worker.call is not None:
            signal_number, exit_code = (-code, None) if code < 0 else (None, code)
            pid = worker.process.pid
            death = Death(self._hostname, pid, signal_number, exit_code, worker.cause, started=begun)
            self._host.lost(worker.call, death)
        if not worker.ready and not worker.leaving:
            ending = worker.cause or f"signal {-code}" if code < 0 else f"exit code {code}"
            self._failed_starts += 1
            if worker.cause or self._failed_starts > _FREE_DEATHS:
                self._refuse(envelope.refusal(f"a worker process ended while it started: {ending}"))
            else:
                self._fill()
        elif not self._stopping:
            self._fill()

    def _pause(self) -> float | None:
        first = min((worker.deadline for worker in self._workers), default=float("inf"))
        return None if first == float("inf") else min(max(0.0, first - time.monotonic()), _LONGEST_PAUSE)

    def _kill_late(self) -> None:
        for worker in self._workers:
            if worker.deadline <= time.monotonic():
                worker.deadline = float("inf")
                self._give_up(worker, f"it was not ready within {self._start_timeout:g} s" if not worker.ready else "")

    def _stop(self, kill: bool) -> None:
        self._stopping = True
        self._waiting.clear()
        for worker in self._workers:
            if kill or not worker.ready:
                worker.leaving = True
                worker.kill()
            else:
                self._retire(worker)
            worker.deadline = time.monotonic() + _EXIT_GRACE

"""The process of one system in one case, seen from the side that asks for rounds.

A process that does not answer in time, gives a wrong value or ends is shown as such, and takes no further part. All
that it started is killed. Linux only: it reads /proc and waits on process descriptors.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import Pipe, connection
from pathlib import Path
from typing import Any

import attrs

from polyexec_bench import usage

OPEN_LIMIT = 90.0
"""Seconds that a system may take to open and to answer from all workers."""

CLOSE_LIMIT = 20.0
"""Seconds that a system may take to close."""


@attrs.frozen
class Trouble:
    """Why a system takes no further part.

    Attributes:
        status: ``hang``, ``wrong``, ``failed`` or ``died``.
        error: what happened, in one line.
    """

    status: str
    error: str


class Player:
    """One system in one case.

    Args:
        case: what prepares the case in the process, as ``module:function``; it takes a ``Bench``.
        name: of the system.
        workers: how many it gets.
        environment: variables for the process, besides those of this one.
    """

    def __init__(self, case: str, name: str, workers: int, environment: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.trouble: Trouble | None = None
        self.notes: dict[str, Any] = {}
        self._folder = tempfile.mkdtemp(prefix="polyexec-bench-")
        self._log = Path(self._folder, "log")
        self._connection, theirs = Pipe()
        command = [sys.executable, "-m", "polyexec_bench.child", case, name, str(workers), self._folder]
        with self._log.open("wb") as log, theirs:
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno())],
                env={**os.environ, **(environment or {})}, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[theirs.fileno()],
            )  # fmt: skip
        self._lifeline = os.pidfd_open(self._process.pid)

    @property
    def plays(self) -> bool:
        """Say whether it takes part in the next round."""
        return self.trouble is None

    def await_ready(self) -> None:
        """Wait until the system is open."""
        answer = self._answer(OPEN_LIMIT)
        if answer is not None:
            self.notes = answer["notes"]

    def play(self, limit: float, *, memory: bool = False, **arguments: Any) -> dict[str, Any] | None:
        """Run one round. Blocks.

        Args:
            limit: seconds that it may take.
            memory: find the peak of the memory of all processes as well; looking for it takes time of its own.
            arguments: of the round.

        Returns:
            Its figures, with the processor time of all its processes; None if there are none, which ``trouble``
            explains.
        """
        before = usage.cpu_seconds(self._process.pid)
        with contextlib.suppress(BrokenPipeError):
            self._connection.send_bytes(json.dumps(arguments).encode())
        with usage.peak_memory(self._process.pid) if memory else contextlib.nullcontext() as peak:
            answer = self._answer(limit)
        if answer is None:
            return None
        figures = {**answer["figures"], "cpu_seconds": usage.cpu_seconds(self._process.pid) - before}
        return {**figures, "peak_bytes": peak.highest} if peak is not None else figures

    def _answer(self, limit: float) -> dict[str, Any] | None:
        ready = connection.wait([self._connection, self._lifeline], limit)
        if not ready:
            self._lose("hang", f"no answer within {limit:g} s")
            return None
        try:
            # Workers that were forked keep the other end open, so there may be no end of file when the process ends.
            message = self._connection.recv_bytes() if self._connection in ready else b""
        except (EOFError, OSError):
            message = b""
        if not message:
            last = self._log.read_text(errors="replace").splitlines()[-1:]
            self._lose("died", ": ".join(["its process ended", *last])[:500])
            return None
        answer: dict[str, Any] = json.loads(message)
        for status in ("wrong", "failed"):
            if status in answer:
                self._lose(status, answer[status])
                return None
        return answer

    def _lose(self, status: str, error: str) -> None:
        self.trouble = Trouble(status, error)
        self.end()

    def leave(self) -> None:
        """Let the process close its system and end. Does not block; harmless when called again."""
        self._connection.close()

    def end(self, grace: float = CLOSE_LIMIT) -> None:
        """End the process, within a number of seconds, and all that it has started. Harmless when called again."""
        if self._lifeline < 0:
            return
        self.leave()
        limit = 0.0 if self.trouble and self.trouble.status == "hang" else grace
        if not connection.wait([self._lifeline], limit):
            self.notes["close"] = f"not closed within {limit:g} s"
        left = usage.relatives(self._process.pid)
        self._process.kill()
        self._process.wait()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        os.close(self._lifeline)
        self._lifeline = -1
        shutil.rmtree(self._folder, ignore_errors=True)


@contextlib.contextmanager
def company(players: Sequence[tuple[str, str]], workers: int) -> Iterator[list[Player]]:
    """Start the processes of several systems, wait until all are open, and end them in the end.

    Args:
        players: case and system of each.
        workers: how many each gets.

    Yields:
        The players, in order.
    """
    started: list[Player] = []
    try:
        for case, name in players:
            started.append(Player(case, name, workers))
        for player in started:
            player.await_ready()
        yield started
        for player in started:
            player.leave()
        for player in started:
            player.end()
    finally:
        for player in started:
            player.end(grace=0.0)


def in_turn(players: Sequence[Player], number: int) -> list[Player]:
    """Order those who play for a round: another one begins in each, and every second round goes backwards."""
    there = [player for player in players if player.plays]
    first = number % len(there) if there else 0
    order = [*there[first:], *there[:first]]
    return order[::-1] if number % 2 else order

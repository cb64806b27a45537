"""Runs the rows. Every system of a row has a process of its own, kept warm; they run their rounds in turn.

A process that does not answer in time, gives a wrong value or ends is shown as such, and takes no further part in its
row. All that it started is killed. Linux only: it reads /proc and waits on process descriptors.
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
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import Pipe, connection
from pathlib import Path
from typing import Any

import attrs

from local.rows import Row, Scale
from local.systems import OPENERS

BENCHMARKS = Path(__file__).parents[1]
OPEN_LIMIT = 60.0
"""Seconds that a system may take to open and to answer from all workers."""
TINY_LIMIT = 30.0
"""Seconds that a round may take at most when it has next to nothing to do."""
CLOSE_LIMIT = 20.0
"""Seconds that a system may take to close."""


@attrs.define
class Result:
    """What came of one system in one row.

    Attributes:
        title: of the entrant.
        status: ``ok``, ``missing`` (not installed), ``hang``, ``wrong``, ``failed`` or ``died``.
        error: what happened, if not ok.
        rounds: the figures of each round.
        notes: what the case has noted.
    """

    title: str
    status: str = "ok"
    error: str = ""
    rounds: list[dict[str, float]] = attrs.Factory(list)
    notes: dict[str, Any] = attrs.Factory(dict)


def relatives(pid: int) -> list[int]:
    """Give the processes below a process, and those of the session that it leads, whoever is their parent now."""
    members = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text(errors="replace").rpartition(")")[2].split()
            members[int(path.parent.name)] = int(fields[1]), int(fields[3])
    found = {member for member, (_, session) in members.items() if session == pid}
    below = {pid}
    while below:
        below = {member for member, (parent, _) in members.items() if parent in below}
        found |= below
    return sorted(found - {pid})


class Player:
    """The process of one system in one row."""

    def __init__(self, row: Row, entrant: str, scale: Scale, module: str) -> None:
        self._limit = row.limit if scale != "tiny" else min(row.limit, TINY_LIMIT)
        self.result = Result(row.entrant(entrant).title)
        self._folder = tempfile.mkdtemp(prefix="local-engine-")
        self._log = Path(self._folder, "log")
        self._connection, theirs = Pipe()
        command = [sys.executable, "-m", "local.child", module, row.name, entrant, scale, self._folder]
        paths = [str(BENCHMARKS), *filter(None, [os.environ.get("PYTHONPATH")])]
        with self._log.open("wb") as log, theirs:
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno())],
                cwd=BENCHMARKS, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[theirs.fileno()],
            )  # fmt: skip
        self._lifeline = os.pidfd_open(self._process.pid)

    @property
    def plays(self) -> bool:
        """Say whether it takes part in the next round."""
        return self.result.status == "ok"

    def await_ready(self) -> None:
        """Wait until the system is open."""
        if answer := self._answer(OPEN_LIMIT):
            self.result.notes = answer["notes"]

    def play(self) -> None:
        """Run one round."""
        with contextlib.suppress(BrokenPipeError):
            self._connection.send_bytes(b"round")
        if answer := self._answer(self._limit):
            self.result.rounds.append(answer["metrics"])

    def _answer(self, limit: float) -> dict[str, Any]:
        """Wait for a message; it is empty if there is none that is good."""
        ready = connection.wait([self._connection, self._lifeline], limit)
        if not ready:
            return self._lose("hang", f"no answer within {limit:g} s")
        try:
            # Workers that were forked keep the other end open, so there may be no end of file when the process ends.
            message = self._connection.recv_bytes() if self._connection in ready else b""
        except (EOFError, OSError):
            message = b""
        if not message:
            last = self._log.read_text(errors="replace").splitlines()[-1:]
            return self._lose("died", ": ".join(["its process ended", *last])[:500])
        answer: dict[str, Any] = json.loads(message)
        for status in ("wrong", "failed"):
            if status in answer:
                return self._lose(status, answer[status])
        return answer

    def _lose(self, status: str, error: str) -> dict[str, Any]:
        self.result.status, self.result.error = status, error
        self.end()
        return {}

    def leave(self) -> None:
        """Let the process close its system and end. Does not block; harmless when called again."""
        self._connection.close()

    def end(self, grace: float = CLOSE_LIMIT) -> None:
        """End the process, within a number of seconds, and all that it has started. Harmless when called again."""
        if self._lifeline < 0:
            return
        self.leave()
        limit = 0.0 if self.result.status == "hang" else grace
        if not connection.wait([self._lifeline], limit):
            self.result.notes["close"] = f"not closed within {limit:g} s"
        left = relatives(self._process.pid)
        self._process.kill()
        self._process.wait()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        os.close(self._lifeline)
        self._lifeline = -1
        shutil.rmtree(self._folder, ignore_errors=True)


def turns(names: Sequence[str], number: int) -> list[str]:
    """Order the systems for a round: another one begins in each, and every second round goes backwards."""
    first = number % len(names) if names else 0
    order = [*names[first:], *names[:first]]
    return order[::-1] if number % 2 else order


def run_row(
    row: Row, scale: Scale, rounds: int, *, systems: Sequence[str] = (), module: str = "local.rows"
) -> dict[str, Result]:
    """Run all rounds of a row.

    Args:
        row: which.
        scale: how much of it.
        rounds: how many.
        systems: only these take part, and the references; all if there are none.
        module: where the row is found by its name.

    Returns:
        What came of each entrant.
    """
    entrants = [entrant for entrant in row.entrants if not systems or entrant.system in (*systems, "")]
    missing = [entrant for entrant in entrants if entrant.system and OPENERS[entrant.system].missing()]
    results = {entrant.name: Result(entrant.title, "missing", "not installed") for entrant in missing}
    names = [entrant.name for entrant in entrants if entrant not in missing]

    def make(name: str) -> Player:
        return Player(row, name, scale, module)

    players = _fresh_rounds(names, rounds, make) if row.fresh else _warm_rounds(names, rounds, make)
    return results | players


def _warm_rounds(names: Sequence[str], rounds: int, make: Callable[[str], Player]) -> dict[str, Result]:
    with _ending() as started:
        players: dict[str, Player] = {}
        for name in names:
            players[name] = make(name)
            started.append(players[name])
        for player in started:
            player.await_ready()
        for number in range(rounds):
            for name in turns(names, number):
                if players[name].plays:
                    players[name].play()
    return {name: player.result for name, player in players.items()}


def _fresh_rounds(names: Sequence[str], rounds: int, make: Callable[[str], Player]) -> dict[str, Result]:
    results: dict[str, Result] = {}
    for number in range(rounds):
        for name in turns(names, number):
            if name in results and results[name].status != "ok":
                continue
            with _ending() as started:
                player = make(name)
                started.append(player)
                player.await_ready()
                if player.plays:
                    player.play()
            player.result.rounds[:0] = results[name].rounds if name in results else []
            results[name] = player.result
    return results


@contextlib.contextmanager
def _ending() -> Iterator[list[Player]]:
    started: list[Player] = []
    try:
        yield started
        for player in started:
            player.leave()
        for player in started:
            player.end()
    finally:
        for player in started:
            player.end(grace=0.0)

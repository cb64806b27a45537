"""What happens to tasks, as records, and how they are read.

A stream belongs to its reader, one thread at a time; what it reads from is described in ``polyexec.recording``.
"""

from __future__ import annotations

import enum
import queue
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from polyexec.recording import Recorder


class EventKind(enum.Enum):
    """What an event says about its task."""

    SUBMITTED = "submitted"
    """The executor has it."""
    READY = "ready"
    """All that it depends on is there; it waits for its turn. It is so again before a new attempt."""
    RUNNING = "running"
    """An attempt has been handed to a worker that has nothing to do before it."""
    RETRIED = "retried"
    """An attempt has ended, and there will be another."""
    DONE = "done"
    """It has ended with a value."""
    FAILED = "failed"
    """It has ended with an error."""
    CANCELLED = "cancelled"
    """It was cancelled, before or while it ran."""


ENDS = frozenset({EventKind.DONE, EventKind.FAILED, EventKind.CANCELLED})
"""The kinds of which each task has one, as its last event."""


@attrs.frozen
class Event:
    """Something that happened to a task, as the driver saw it (E1).

    Of one task the times never decrease: ``SUBMITTED``, ``READY``, ``RUNNING`` and one of ``DONE``, ``FAILED`` and
    ``CANCELLED``, with ``RETRIED``, ``READY`` and ``RUNNING`` between for each further attempt. A task that never ran
    has no ``RUNNING``; one that makes a value again which was lost (O7) is submitted once more, under the same id.

    Attributes:
        kind: what happened.
        time: when, in seconds since 1970 by this machine's clock.
        task_id: the task, unique in its executor.
        name: its name (S10).
        attempt: number of the attempt, 1 for the first; 0 before that.
        parent: id of the task that submitted it, None if the driver did.
        worker: host and process id, as ``"host:pid"``; empty before it runs, or if it is not known yet.
        node: id of the node (see ``NodeInfo``); empty before it runs.
        seconds: how long the body ran, as measured by the worker; 0 before it has ended, or if the worker could not
            tell, being dead for example.
        bytes_in: size of the serialised arguments, and of the values that it depends on once they are there.
        bytes_out: size of the serialised result, 0 before the end.
        error: what went wrong, in one line; empty otherwise.
    """

    kind: EventKind
    time: float
    task_id: int
    name: str
    attempt: int = 0
    parent: int | None = None
    worker: str = ""
    node: str = ""
    seconds: float = 0.0
    bytes_in: int = 0
    bytes_out: int = 0
    error: str = ""


class EventStream(Iterator[Event]):
    """The events of an executor, oldest first, then as they come (E1); made by ``Executor.events``.

    Events of different tasks come in the order in which the driver learned of them, which is nearly that of their
    times. A stream may be closed from any thread, and is otherwise for one thread at a time; there may be any number.
    """

    def __init__(self, recorder: Recorder, timeout: float | None) -> None:
        self._recorder = recorder
        self._timeout = timeout
        self._position = 0
        self._fresh: deque[Event] = deque()
        self._dropped = 0
        self._closed = False

    @property
    def dropped(self) -> int:
        """Number of records that this reader has missed, because only the latest are kept."""
        return self._dropped

    def __iter__(self) -> EventStream:
        return self

    def __next__(self) -> Event:
        while not self._fresh:
            if self._closed or not (self._read() or self._fresh):
                raise StopIteration
        return self._fresh.popleft()

    def _read(self) -> bool:
        """Get some more; False if that is all."""
        try:
            portion = self._recorder.read(self._position, self._timeout, self._is_open)
        except queue.Empty:
            return False
        self._dropped += portion.first - self._position
        self._position = portion.first + len(portion.rows)
        for row in portion.rows:
            self._fresh.extend(self._recorder.expand(row))
        return not portion.is_last

    def _is_open(self) -> bool:
        return not self._closed

    def close(self) -> None:
        """End the stream, and the wait of whoever iterates."""
        self._closed = True
        self._recorder.wake()

    def __enter__(self) -> EventStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

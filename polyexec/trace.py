"""Writing what was recorded as a trace that Perfetto (ui.perfetto.dev) and Chrome show.

The format is that of Google's "Trace Event Format" document: a JSON object whose ``traceEvents`` have ``ph`` for what
they are, ``ts`` and ``dur`` in microseconds, and ``pid`` and ``tid`` for the track. Workers are shown as processes, and
what runs in one at the same time as threads of it.
"""

from __future__ import annotations

import itertools
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import attrs

from polyexec.errors import SpecificationError
from polyexec.events import ENDS, Event, EventKind, EventStream
from polyexec.executor import Executor, recorder_of
from polyexec.recording import all_recorders

_COLOURS = {
    EventKind.DONE: "good",
    EventKind.RETRIED: "bad",
    EventKind.FAILED: "terrible",
    EventKind.CANCELLED: "grey",
    EventKind.RUNNING: "thread_state_running",
}
"""Names of colours that Chrome knows; Perfetto chooses its own."""

_EXACT = 2e-6
"""Seconds within which two times are the same, since they are kept as seconds since 1970."""


def write(path: str | os.PathLike[str], source: Executor | Iterable[Event] | None = None) -> None:
    """Write a trace: a slice for each attempt of a task on the track of its worker, and one for the time it waited.

    Blocks. From any thread.

    Args:
        path: of the file, which is replaced; its name should end in ``.json``.
        source: an executor, open or closed, or events; by default all executors of this process that are, or were,
            recorded and still exist, among them the one that was closed last.

    Raises:
        SpecificationError: nothing is recorded, or the source is neither.
        OSError: the file cannot be written.
    """
    groups = [_Group(label, events) for label, events in _groups(source)]
    # Small numbers keep their fractions.
    origin = min((group.first for group in groups), default=0.0)
    numbers = itertools.count(1)
    with open(path, "w", encoding="utf-8") as file:
        file.write(f'{{"displayTimeUnit": "ms", "otherData": {{"began": {origin!r}}}, "traceEvents": [')
        separator = "\n"
        for group in groups:
            for item in group.items(origin, numbers):
                file.write(separator + json.dumps(item, separators=(",", ":")))
                separator = ",\n"
        file.write("\n]}\n")


def _groups(source: Executor | Iterable[Event] | None) -> Iterator[tuple[str, Iterable[Event]]]:
    if source is None:
        found = all_recorders()
        if not found:
            raise SpecificationError("nothing is recorded: connect with events=True, or set POLYEXEC_EVENTS=1")
        for recorder in found:
            yield recorder.label, EventStream(recorder, 0)
    elif isinstance(source, Executor):
        recorder = recorder_of(source)
        yield recorder.label, EventStream(recorder, 0)
    elif isinstance(source, Iterable):
        yield "tasks", source
    else:
        raise SpecificationError(f"trace.write takes an executor or events, not {source!r}")


@attrs.define(eq=False)
class _Run:
    """An attempt, or a task that never ran.

    Attributes:
        queued: when it began to wait.
        start: when it began to run, None if it never did.
        end: when it ended; when the last event happened if it has not.
        last: the event of its end, or that of its beginning.
        derived: its start follows from its end, which was noted late perhaps.
    """

    queued: float
    start: float | None
    end: float
    last: Event
    derived: bool = False
    lane: int = 0

    def shift(self, seconds: float) -> None:
        """Move it in time."""
        self.queued += seconds
        self.start = None if self.start is None else self.start + seconds
        self.end += seconds


class _Group:
    """The trace of one executor.

    Args:
        label: names it.
        events: in the order of its stream.
    """

    def __init__(self, label: str, events: Iterable[Event]) -> None:
        self._label = label
        self._runs = list(_runs(events))
        self.first = min((run.queued for run in self._runs), default=float("inf"))

    def items(self, origin: float, numbers: Iterator[int]) -> Iterator[dict[str, Any]]:
        """Give the items of the trace, with times since an origin."""
        for run in self._runs:
            run.shift(-origin)
        waiting = next(numbers)
        yield _named("process_name", waiting, 0, f"waiting ({self._label})")
        for number, run in enumerate(self._runs):
            yield from _waiting(waiting, number, run)
        workers: defaultdict[str, list[_Run]] = defaultdict(list)
        for run in self._runs:
            if run.start is not None:
                workers[run.last.worker].append(run)
        for worker, runs in sorted(workers.items()):
            yield from self._track(worker, runs, next(numbers))

    def _track(self, worker: str, runs: list[_Run], process: int) -> Iterator[dict[str, Any]]:
        yield _named("process_name", process, 0, f"worker {worker or '(unknown)'} ({self._label})")
        _move_back(runs)
        for lane in range(_assign_lanes(runs)):
            yield _named("thread_name", process, lane + 1, f"tasks {lane + 1}" if lane else "tasks")
        for run in runs:
            yield _slice(process, run)


def _runs(events: Iterable[Event]) -> Iterator[_Run]:
    """Join the events of each attempt; what has not ended comes last."""
    waiting: dict[int, Event] = {}
    running: dict[int, Event] = {}
    now = 0.0
    for event in events:
        now = max(now, event.time)
        if event.kind is EventKind.SUBMITTED:
            waiting[event.task_id] = event
        elif event.kind is EventKind.READY:
            # Of the first attempt the time counts from its submission.
            waiting.setdefault(event.task_id, event)
        elif event.kind is EventKind.RUNNING:
            running[event.task_id] = event
        else:
            yield _ended(waiting.pop(event.task_id, event), running.pop(event.task_id, None), event)
    for task_id, first in waiting.items():
        begun = running.get(task_id)
        yield _Run(first.time, None if begun is None else begun.time, now, begun or first)


def _ended(first: Event, begun: Event | None, last: Event) -> _Run:
    if begun is None:
        return _Run(first.time, None, last.time, last)
    start = max(begun.time, last.time - last.seconds) if last.seconds else begun.time
    derived = abs(begun.time + last.seconds - last.time) < _EXACT
    return _Run(first.time, start, last.time, last, derived)


def _move_back(runs: list[_Run]) -> None:
    """Let runs end before others of their worker begin, if their times were noted late: many are reported at once."""
    runs.sort(key=lambda run: run.end)
    limit = float("inf")
    for run in reversed(runs):
        assert run.start is not None
        if run.derived and run.end > limit:
            length = run.end - run.start
            run.start = max(run.queued, limit - length)
            run.end = run.start + length
        limit = min(limit, run.start)


def _assign_lanes(runs: list[_Run]) -> int:
    """Let runs that overlap have different lanes, and give the number of lanes."""
    runs.sort(key=lambda run: (run.start or 0.0, -run.end))
    ends: list[float] = []
    for run in runs:
        assert run.start is not None
        start = run.start
        run.lane = next((lane for lane, end in enumerate(ends) if end <= start), len(ends))
        ends[run.lane : run.lane + 1] = [run.end]
    return len(ends)


def _named(what: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": process, "tid": thread, "args": {"name": name}}


def _microseconds(seconds: float) -> float:
    return round(max(0.0, seconds) * 1e6, 3)


def _slice(process: int, run: _Run) -> dict[str, Any]:
    assert run.start is not None
    return {
        "ph": "X",
        "name": run.last.name,
        "cat": f"task,{run.last.kind.value}",
        "ts": _microseconds(run.start),
        "dur": round(_microseconds(run.end) - _microseconds(run.start), 3),
        "pid": process,
        "tid": run.lane + 1,
        "cname": _COLOURS[run.last.kind],
        "args": _arguments(run.last),
    }


def _waiting(process: int, number: int, run: _Run) -> Sequence[dict[str, Any]]:
    """Give the two ends of the time that an attempt waited."""
    end = run.end if run.start is None else min(run.start, run.end)
    common = {
        "name": run.last.name,
        "cat": "waiting" if run.start is not None else f"waiting,{run.last.kind.value}",
        "id": f"{process}.{number}",
        "pid": process,
        "tid": 1,
    }
    begin = {"ph": "b", "ts": _microseconds(run.queued), **common, "args": _arguments(run.last)}
    return begin, {"ph": "e", "ts": _microseconds(max(run.queued, end)), **common}


def _arguments(event: Event) -> dict[str, Any]:
    found = {
        "state": event.kind.value if event.kind in ENDS or event.kind is EventKind.RETRIED else "not ended",
        "task": event.task_id,
        "parent": event.parent,
        "attempt": event.attempt,
        "node": event.node,
        "bytes in": event.bytes_in,
        "bytes out": event.bytes_out,
        "error": event.error,
    }
    return {name: value for name, value in found.items() if value not in (None, "")}

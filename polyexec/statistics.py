"""Numbers about the tasks of an executor, by function."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import attrs

from polyexec.events import ENDS, Event, EventKind


@attrs.frozen
class Spread:
    """What many durations have in common, in seconds; all 0 if there are none.

    Attributes:
        mean: their mean.
        p50: half of them are at most so long.
        p99: ninety-nine of a hundred are at most so long.
    """

    mean: float = 0.0
    p50: float = 0.0
    p99: float = 0.0

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """Describe some durations."""
        if not values:
            return Spread()
        ordered = sorted(values)
        last = len(ordered) - 1
        return Spread(sum(ordered) / len(ordered), ordered[(last + 1) // 2], ordered[-(-last * 99 // 100)])


@attrs.frozen
class FunctionStats:
    """The tasks of one name.

    Attributes:
        name: the name (S10).
        count: tasks that were submitted.
        done: those that have ended with a value.
        failed: those that have ended with an error.
        cancelled: those that were cancelled.
        retried: attempts after which there was another.
        body: how long the attempts ran, as measured by their workers; those of which no worker could tell are left
            out.
        queueing: how long the first attempts had waited since their tasks were submitted, dependencies included.
        bytes_in: of all that have ended, what went to them.
        bytes_out: of all that have ended, what came from them.
    """

    name: str
    count: int
    done: int
    failed: int
    cancelled: int
    retried: int
    body: Spread
    queueing: Spread
    bytes_in: int
    bytes_out: int


@attrs.frozen
class Stats:
    """What ``Executor.stats`` gives; as text, a table.

    Attributes:
        functions: by name, in the order of the first task of each.
        dropped: records that are not kept any more, and are missing here.
    """

    functions: tuple[FunctionStats, ...]
    dropped: int = 0

    def __str__(self) -> str:
        rows = [_HEADINGS, *map(_cells, self.functions)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
        lines = [
            "  ".join(
                cell.ljust(width) if not column else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        if self.dropped:
            lines.append(f"({self.dropped} older records are not kept, and are missing here)")
        return "\n".join(lines)


_HEADINGS = (
    "function",
    "tasks",
    "done",
    "failed",
    "cancelled",
    "retried",
    "body mean",
    "p50",
    "p99",
    "queue mean",
    "p50",
    "p99",
    "in",
    "out",
)


def _cells(one: FunctionStats) -> tuple[str, ...]:
    counts = (one.count, one.done, one.failed, one.cancelled, one.retried)
    durations = (*attrs.astuple(one.body), *attrs.astuple(one.queueing))
    sizes = (one.bytes_in, one.bytes_out)
    return (one.name, *map(str, counts), *map(_duration, durations), *map(_size, sizes))


def _duration(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}" if seconds / scale < 1000 else f"{seconds / scale:.0f} {unit}"
    return f"{seconds / 1e-6:.3g} us" if seconds else "0"


def _size(count: int) -> str:
    size, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.4g} {unit}"


@attrs.define(eq=False)
class _Tally:
    count: int = 0
    retried: int = 0
    ends: dict[EventKind, int] = attrs.field(factory=lambda: dict.fromkeys(ENDS, 0))
    body: list[float] = attrs.field(factory=list)
    queueing: list[float] = attrs.field(factory=list)
    bytes_in: int = 0
    bytes_out: int = 0

    def stats(self, name: str) -> FunctionStats:
        return FunctionStats(
            name,
            self.count,
            self.ends[EventKind.DONE],
            self.ends[EventKind.FAILED],
            self.ends[EventKind.CANCELLED],
            self.retried,
            Spread.of(self.body),
            Spread.of(self.queueing),
            self.bytes_in,
            self.bytes_out,
        )


def summarize(events: Iterable[Event]) -> tuple[FunctionStats, ...]:
    """Count events by the names of their tasks."""
    tallies: defaultdict[str, _Tally] = defaultdict(_Tally)
    submitted: dict[int, float] = {}
    began: dict[int, float] = {}
    for event in events:
        tally = tallies[event.name]
        if event.kind is EventKind.SUBMITTED:
            submitted[event.task_id] = event.time
            tally.count += 1
        elif event.kind is EventKind.RUNNING:
            began[event.task_id] = event.time
        elif event.kind is not EventKind.READY:
            _end_attempt(tally, event, submitted, began.pop(event.task_id, None))
    return tuple(tally.stats(name) for name, tally in tallies.items())


def _end_attempt(tally: _Tally, event: Event, submitted: dict[int, float], began: float | None) -> None:
    if event.seconds:
        tally.body.append(event.seconds)
    first = submitted.get(event.task_id) if event.attempt <= 1 else None
    if first is not None and began is not None:
        start = max(began, event.time - event.seconds) if event.seconds else began
        tally.queueing.append(start - first)
    if event.kind is EventKind.RETRIED:
        tally.retried += 1
        return
    submitted.pop(event.task_id, None)
    tally.ends[event.kind] += 1
    tally.bytes_in += event.bytes_in
    tally.bytes_out += event.bytes_out

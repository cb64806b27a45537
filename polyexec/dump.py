"""What ``Executor.dump`` gives: where everybody is, and what waits for what.

Names, numbers and places only: nothing here shows the value of an argument, of a result, or of an option that may be
secret.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from polyexec.stacks import ThreadStack

__all__ = [
    "ActorDump",
    "Dump",
    "NodeDump",
    "ReservationDump",
    "StreamDump",
    "TaskDump",
    "ThreadStack",
    "WorkerDump",
]


@attrs.frozen(kw_only=True)
class TaskDump:
    """A task that has not ended, or a call of an actor's method.

    Attributes:
        id: as in events; the same for all attempts.
        name: of the task.
        state: ``"waiting"`` for what it depends on, ``"ready"`` but without room, ``"running"``, ``"blocked"`` in a
            wait of its own, ``"paused"`` as a stream whose reader has enough, ``"stopping"`` after a cancel or its
            time limit, ``"resting"`` before a new attempt, or ``"serving"`` as an actor.
        attempt: number of the attempt that runs or has run, 0 before the first.
        seconds: for how long it has been so, None if nobody knows.
        waits_for: in words, what must happen before it goes on.
        node: id of the node on which it runs, None if it does not.
        pid: process id of its worker, None if it does not run or that is not known.
        parent: id of the task that has submitted it, None if the driver has.
    """

    id: int
    name: str
    state: str
    attempt: int = 0
    seconds: float | None = None
    waits_for: tuple[str, ...] = ()
    node: str | None = None
    pid: int | None = None
    parent: int | None = None


@attrs.frozen(kw_only=True)
class ActorDump:
    """An actor.

    Attributes:
        id: of the task that is the actor.
        name: of its class.
        state: ``"starting"``, ``"serving"`` or ``"leaving"``.
        running: the calls that may have begun, in words.
        queued: number of calls behind them.
        node: id of its node, None if it has none yet.
    """

    id: int
    name: str
    state: str
    running: tuple[str, ...] = ()
    queued: int = 0
    node: str | None = None


@attrs.frozen(kw_only=True)
class StreamDump:
    """A stream whose end is not known, or that has unread items.

    Attributes:
        id: of the task that gives the items.
        name: of the task.
        unread: number of items that nobody has taken.
        buffer: the most that may wait.
        paused: the generator waits until some are taken.
        reader: who takes them, in words.
    """

    id: int
    name: str
    unread: int
    buffer: int
    paused: bool
    reader: str


@attrs.frozen(kw_only=True)
class ReservationDump:
    """A reservation that is held, or that waits for its bundles.

    Attributes:
        id: of the reservation.
        bundles: each with what it has and where, in words.
        owner: who has made it, in words.
        held: it has its bundles.
    """

    id: int
    bundles: tuple[str, ...]
    owner: str
    held: bool


@attrs.frozen(kw_only=True)
class NodeDump:
    """What a node has, and who holds it.

    Attributes:
        id: of the node.
        host: name of the machine.
        alive: it is there.
        left: amounts that are left of what there is, in words.
        holders: who holds what, in words.
    """

    id: str
    host: str
    alive: bool
    left: tuple[str, ...]
    holders: tuple[str, ...]


@attrs.frozen(kw_only=True)
class WorkerDump:
    """A worker process, as far as it could be seen.

    Attributes:
        node: id of its node.
        pid: process id, None if it has none yet.
        runs: what it runs, in words; empty if nothing.
        status: in words, why there are no stacks, or what else is the matter with it; empty if nothing is.
        threads: where its threads are, most often with the main one first.
    """

    node: str
    pid: int | None = None
    runs: tuple[str, ...] = ()
    status: str = ""
    threads: tuple[ThreadStack, ...] = ()


@attrs.frozen(kw_only=True)
class Dump:
    """Where everybody is, and what waits for what. ``print`` it.

    Attributes:
        executor_id: of the executor.
        backend: what runs the tasks, as ``Executor.info`` says it.
        status: ``"open"``, ``"closing"``, ``"closed"`` or ``"failed"``.
        host: name of the machine where this was asked.
        pid: of the process where this was asked.
        taken_at: when, as ``time.time`` gives it.
        unknown: in words, what could not be found out in time.
        counts: number of tasks by state; all of them, also those that ``tasks`` leaves out.
        tasks: those that have not ended, the first ``LIMIT`` of each state.
        actors: those that have not ended.
        streams: those that have not ended.
        reservations: those that are held or wait.
        nodes: what there is, and who holds it.
        threads: of the process where this was asked, with what they wait for.
        workers: the processes that run the tasks; only in the driver.
    """

    executor_id: str
    backend: str
    status: str
    host: str
    pid: int
    taken_at: float
    unknown: tuple[str, ...] = ()
    counts: Mapping[str, int] = attrs.field(factory=dict)
    tasks: tuple[TaskDump, ...] = ()
    actors: tuple[ActorDump, ...] = ()
    streams: tuple[StreamDump, ...] = ()
    reservations: tuple[ReservationDump, ...] = ()
    nodes: tuple[NodeDump, ...] = ()
    threads: tuple[ThreadStack, ...] = ()
    workers: tuple[WorkerDump, ...] = ()

    def __str__(self) -> str:
        from polyexec.dump_text import text_of

        return text_of(self)


_LONGEST_NODE = 24
LIMIT = 100
"""Tasks of one state that a dump describes; all are counted."""


def number(task_id: int) -> str:
    """Give the short name of a task or a value, as dumps write it."""
    item = task_id & ((1 << 20) - 1)
    return f"#{task_id >> 20}" + (f"[{item}]" if item else "")


def node_name(node_id: str) -> str:
    """Give the short name of a node: engines give some of them ids that no line has room for."""
    return node_id if len(node_id) <= _LONGEST_NODE else f"{node_id[:8]}..."


def label(task_id: int, name: str) -> str:
    """Give the name of a task as dumps write it."""
    return f"{name} {number(task_id)}"

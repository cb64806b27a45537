"""The scheduler's records, and what it tells the runtime to do."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import attrs

from polyexec.ledger import Grant, Need
from polyexec.placement import Placement
from polyexec.spi import Death
from polyexec.stored import Stored, Tag
from polyexec.timers import Timer

if TYPE_CHECKING:
    from polyexec.reservations import Gang


class State(enum.Enum):
    """Where a task is on its way."""

    WAITING = "waiting"
    READY = "ready"
    RUNNING = "running"
    RESTING = "resting"
    DONE = "done"


class Stop(enum.IntEnum):
    """Why a running call is being stopped; a later reason does not replace an earlier one, force does."""

    NO = 0
    CANCEL = 1
    TIMEOUT = 2


@attrs.define(eq=False)
class Task:
    """One task, from submission until it is settled.

    Attributes:
        id: id of its first value; values have consecutive ids.
        name: for errors.
        need: what it holds while it runs, in units.
        dependencies: ids of the values that it needs.
        parent: the task that submitted it, None if the driver did.
        values: number of its values.
        priority: a higher one starts first.
        retries: how often it may run again.
        retry_lost: it may run again after its worker died.
        retry_timeout: it may run again after a time-out.
        consult: ask the caller's hook before a new attempt.
        timeout: seconds that one attempt may run.
        patient: it may wait for a node that does not exist yet.
        function: identifies its function, for estimates of duration.
        is_seat: it has no body, and holds a cpu for plain calls.
        placement: where it must run, None if it may anywhere.
        gang: it has no body, and stands for a reservation that waits for its bundles.
        gives: ids of what others wait for, besides its values, that comes from it, when it ends at the latest.
        width: how many calls of methods its body runs at the same time, if it is an actor; else 0.
        actor: the actor of which it calls a method.
        caller: identifies who calls it.
        place: its place among the calls of its actor.
        since: when it came to the state in which it is, or began to wait, or to go on.
    """

    id: int
    name: str
    need: Need
    dependencies: Sequence[int] = ()
    parent: int | None = None
    values: int = 1
    priority: float = 0
    retries: int = 0
    retry_lost: bool = True
    retry_timeout: bool = False
    consult: bool = False
    timeout: float | None = None
    patient: bool = False
    function: object = None
    is_seat: bool = False
    placement: Placement | None = None
    gang: Gang | None = None
    width: int = 0
    actor: int | None = None
    caller: object = None
    place: int = 0
    state: State = State.WAITING
    missing: int = 0
    attempts: int = 0
    refusals: int = 0
    call: int | None = None
    since: float = 0.0
    children: set[int] = attrs.field(factory=set)
    gives: set[int] = attrs.field(factory=set)


@attrs.define(eq=False)
class Running:
    """One call that has been handed to the backend and has not ended.

    Attributes:
        id: the call.
        task: its task.
        grant: what it holds; while it is blocked without cpus and slot; while it is queued nothing.
        queued: handed over before there was room.
        blocked: it waits, and has lent what others may use meanwhile.
        waits: its unanswered waits.
        stop: why it is being stopped.
        forced: it is being killed.
        promised: somebody was told that it will be cancelled.
        barren: what its body submits from now on is cancelled, as what it had submitted before was.
        answers: who wants to know whether stopping it worked.
        halts: attempts to stop it that the backend has not answered.
        limit: ends it when its time is over.
        host: the call in whose body it runs, None if it has one of its own.
        keeps: it lends nothing while it waits, because what it holds is lent, or not, by calls that run in its body.
    """

    id: int
    task: Task
    grant: Grant
    queued: bool = False
    blocked: bool = False
    waits: set[int] = attrs.field(factory=set)
    stop: Stop = Stop.NO
    forced: bool = False
    promised: bool = False
    barren: bool = False
    answers: list[object] = attrs.field(factory=list)
    halts: int = 0
    limit: Timer | None = None
    host: int | None = None
    keeps: bool = False

    @property
    def lacking(self) -> Mapping[str, int]:
        """What it must get back before it goes on."""
        if self.keeps:
            return {}
        return {name: amount for name, amount in self.task.need.items() if name not in self.grant.need}


@attrs.define(eq=False)
class Wait:
    """A running call waits until some values are there.

    Attributes:
        id: the runtime's name for it.
        call: the call.
        missing: ids of values that are not there yet.
        needed: how many of them must come.
        main: it is the thread of the body that waits.
        limit: ends the wait when its time is over.
        host: the call in whose body it keeps the thread, None for others.
    """

    id: int
    call: int
    missing: set[int]
    needed: int
    main: bool
    limit: Timer | None = None
    host: int | None = None


class Wake(enum.Enum):
    """Why a wait ends."""

    READY = "ready"
    TIMEOUT = "timeout"
    INTERRUPTED = "interrupted"
    DEADLOCK = "deadlock"


@attrs.frozen
class Ended:
    """A call's own outcome settles its task."""

    call: int


@attrs.frozen
class DependencyFailed:
    """A value that the task needs is an error."""

    value: int


@attrs.frozen
class Cancelled:
    """The task was cancelled before or while it ran; the reason is for its error."""

    reason: str = ""


@attrs.frozen
class TimedOut:
    """The task was ended by its timeout."""

    timeout: float


@attrs.frozen
class Died:
    """The worker of the task died."""

    death: Death


@attrs.frozen
class Failed:
    """The backend as a whole failed, or the retry hook of the task; the error is encoded."""

    error: Stored


@attrs.frozen
class Granted:
    """A reservation has its bundles."""


@attrs.frozen
class Displaced:
    """The reservation in which the task was to run is closed."""


@attrs.frozen
class NodeGone:
    """The node on which the task had to run is gone."""

    node: str


@attrs.frozen
class ActorGone:
    """The actor whose method was called has died, or was ended, before the call had ended."""

    death: Death | None
    cause: str = ""


Ending: TypeAlias = (
    Ended | DependencyFailed | Cancelled | TimedOut | Died | Failed | Granted | Displaced | NodeGone | ActorGone
)


@attrs.frozen
class Start:
    """Hand a call to the backend."""

    call: int
    task: int
    attempt: int
    grant: Grant
    queued: bool
    is_seat: bool


@attrs.frozen
class Halt:
    """Ask the backend to stop a call."""

    call: int
    force: bool


@attrs.frozen
class Settle:
    """Make an ending known to all who hold the task's values."""

    task: int
    ending: Ending
    tag: Tag
    attempts: int


@attrs.frozen
class Answer:
    """Tell somebody whether a cancel worked."""

    token: object
    value: bool


@attrs.frozen
class EndWait:
    """Reply to a wait."""

    wait: int
    wake: Wake


@attrs.frozen
class Lend:
    """Tell the backend that a call is blocked."""

    call: int


@attrs.frozen
class Resume:
    """Tell the backend that a blocked call goes on."""

    call: int


@attrs.frozen
class Consult:
    """Ask the caller's hook whether, and how, a task runs again."""

    task: int
    ending: Ending


@attrs.frozen
class Drop:
    """Forget a call that will never be reported again."""

    call: int


@attrs.frozen
class Invoke:
    """Hand a call to the instance of its actor."""

    call: int
    task: int
    host: int
    node: str


@attrs.frozen
class Dismiss:
    """Let an instance end: when it has done what it was given, or now."""

    host: int
    now: bool


Action: TypeAlias = Start | Halt | Settle | Answer | EndWait | Lend | Resume | Consult | Drop | Invoke | Dismiss

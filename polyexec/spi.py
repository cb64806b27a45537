"""What the author of a backend imports.

A backend runs calls in workers. It decides nothing: which call starts when, on which node and with which resources,
what is retried, cancelled or refused, all that is the core's, so that it is the same everywhere. A backend derives
from ``Backend``, reports to the ``Host`` that it is given, and on its workers calls ``polyexec.envelope.run``.

A backend may do its own input and output in the core's thread (``poller``), and may take plain calls many at a time
(``seats``); both save changes of threads, and neither changes what a call means.

Threads: the core calls ``submit``, ``cancel``, ``reply``, ``free``, ``blocked`` and ``resumed`` from one thread of
its own, one at a time, and they must not block. ``put`` and ``get`` may be called from any thread, at the same time,
and may block. All methods of ``Host`` may be called from any thread, and return at once.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import attrs

from polyexec.options import Resources
from polyexec.plain import PlainCall
from polyexec.redaction import names_only
from polyexec.stacks import ThreadStack
from polyexec.stored import Buffer, Head, Message, Outcome, Stored, Tag

__all__ = [
    "Backend",
    "Buffer",
    "Call",
    "Capabilities",
    "Death",
    "Deviation",
    "EngineInfo",
    "Head",
    "Host",
    "Lease",
    "Message",
    "Node",
    "Outcome",
    "PlainCall",
    "Poller",
    "Protection",
    "SeatListener",
    "Seats",
    "Stored",
    "Tag",
    "ThreadStack",
    "Value",
    "Verdict",
    "WorkerState",
]


@attrs.frozen
class Deviation:
    """A clause of the contract that a backend does not keep, declared.

    Attributes:
        clause: the clause, for example ``"C3"``.
        reason: why the engine cannot keep it, even with the core's help.
        instead: what happens instead, in one sentence; the conformance suite checks it.
    """

    clause: str
    reason: str
    instead: str


@attrs.frozen
class Capabilities:
    """What a backend does, as data. The core and the conformance suite read these, never a backend's name.

    Attributes:
        inline: a call runs in the thread that submitted it, before ``submit`` returns.
        processes: tasks run in processes of their own, which may die without harm to others.
        shares_arguments: tasks get the very argument objects of the caller.
        assigns_gpus: the engine itself sets ``CUDA_VISIBLE_DEVICES``.
        queues_calls: calls may be handed over before a worker is free, and start in order.
        remote: workers may be on other machines.
        shares_memory: workers of a node map a stored value's memory instead of copying it.
        loses_values: what the engine keeps may be lost with a node; ``Host.missing`` and ``Backend.get`` say so, and
            the core lets the tasks run again that have made it, where it may.
        places_calls: it calls ``Host.placed`` for each call, but for those that a worker finds behind another.
    """

    inline: bool = False
    processes: bool = True
    shares_arguments: bool = False
    assigns_gpus: bool = False
    queues_calls: bool = False
    remote: bool = False
    shares_memory: bool = False
    loses_values: bool = False
    places_calls: bool = False


@attrs.frozen
class EngineInfo:
    """What a backend tells about the engine that it has opened.

    Attributes:
        engine: the engine's name and version, for example ``"ray 2.60.0"``.
        address: where it is; empty for engines inside this process.
        dashboard: address of the engine's own dashboard, None if there is none.
    """

    engine: str
    address: str = ""
    dashboard: str | None = None


@attrs.frozen
class Protection:
    """How an engine keeps others out, for ``Executor.security``.

    Attributes:
        authentication: what tells those who belong to the engine from others, in words; empty if nothing does, None if
            that is not known.
        is_encrypted: whatever leaves a machine is encrypted.
        paths: files and folders of this machine that the backend, or the engine for it, has made, or from which keys
            and tokens come.
    """

    authentication: str | None = None
    is_encrypted: bool = False
    paths: tuple[str, ...] = ()


@attrs.frozen
class Node:
    """A machine, or a part of one, on which calls run.

    Attributes:
        id: the engine's name for it.
        host: name of the machine.
        total: what it has.
        slots: number of calls that may run there at the same time, those that hold no cpu among them; None if the
            resources alone are the limit.
        alive: False once it is lost.
        labels: names and values that tasks may ask for.
        gpu_ids: what ``CUDA_VISIBLE_DEVICES`` calls its accelerators, by index; those without a name are called by
            their index. ``LocalClusterConfig.gpu_ids`` gives those of this machine.
    """

    id: str
    host: str
    total: Resources
    slots: int | None = None
    alive: bool = True
    labels: Mapping[str, str] = attrs.field(factory=dict)
    gpu_ids: tuple[str, ...] = ()


@attrs.frozen
class Lease:
    """What a call holds, and where.

    Attributes:
        node: id of the node on which it must run.
        held: the amounts.
        gpu_ids: the accelerators that it may use on that node, as ``CUDA_VISIBLE_DEVICES`` calls them.
    """

    node: str
    held: Resources
    gpu_ids: tuple[str, ...] = ()


@attrs.frozen(eq=False)
class Value:
    """A serialised value that a call or a reply needs, here or in the engine's keeping; one of the two is set."""

    stored: Stored | None = None
    handle: object | None = None


@attrs.frozen(eq=False)
class Call:
    """One attempt to run one task.

    Attributes:
        id: unique in this executor; a new attempt has a new id.
        task_id: the same for all attempts of a task.
        name: the task's name, to be shown in the engine's own tools.
        head: bytes for ``polyexec.envelope.run``: what changes from attempt to attempt.
        body: function and arguments, serialised once per task.
        values: what the arguments refer to, in the order in which ``polyexec.envelope.run`` wants it.
        lease: what it holds and where it runs; amounts that change while a call is queued are those at its start.
        env: environment variables that must be set before the process that runs it imports anything; the envelope
            sets them in any case.
        shared: function, args and kwargs as the caller gave them, if the backend shares arguments; else None.
        lane: where the submitting thread waits for work, if the backend runs calls inline; see ``polyexec.lanes``.
        queued: the call was handed over before its resources were free; the engine starts it when a worker is free.
        body_handle: what the engine keeps the body by, if it came that way (see ``Message``); ``body`` is empty then.
        resident: it lives until it is told to end, and does not count among a node's slots; a backend that runs calls
            inline gives it a thread of its own.
    """

    id: int
    task_id: int
    name: str
    head: bytes = attrs.field(repr=False)
    body: Stored
    values: Sequence[Value]
    lease: Lease
    env: Mapping[str, str] = attrs.field(factory=dict, repr=names_only)
    shared: tuple[Any, ...] | None = attrs.field(default=None, repr=False)
    lane: int | None = None
    queued: bool = False
    body_handle: object | None = None
    resident: bool = False


@attrs.frozen
class Death:
    """How a worker died.

    Attributes:
        host: name of the machine.
        pid: its process id, None if unknown.
        signal: number of the signal that ended it, None if none or unknown.
        exit_code: its exit status, None if a signal ended it or if unknown.
        cause: the likely cause in words, empty if nothing is known.
        stack: what the process was doing when it crashed, in the form of a traceback; empty if nothing is known.
        started: whether the body of the call had started; when in doubt, True. A call that had not started is
            simply handed out again.
    """

    host: str
    pid: int | None = None
    signal: int | None = None
    exit_code: int | None = None
    cause: str = ""
    started: bool = True
    stack: str = ""


@attrs.frozen
class WorkerState:
    """What a backend sees of a worker, for ``Executor.dump``.

    Attributes:
        node: id of its node.
        pid: its process id, None if it has none yet.
        calls: ids of the calls, and of the seats, that it has.
        thread: identity of the thread that runs them, if tasks run in threads of the driver; whoever asks finds its
            stack itself.
        status: in words, what is the matter with it, or why there are no stacks; empty if nothing is.
        threads: where its threads are; ``polyexec.stacks.ask`` finds that out for processes on the machine where it
            is called.
    """

    node: str
    pid: int | None = None
    calls: tuple[int, ...] = ()
    thread: int | None = None
    status: str = ""
    threads: tuple[ThreadStack, ...] = ()


class Verdict(enum.Enum):
    """What became of an attempt to stop a call."""

    REVOKED = "revoked"
    """It had not started, and never will. Nothing more is reported about it."""
    DELIVERED = "delivered"
    """An exception is raised in its body, or its worker is being killed. Its end is reported as usual."""
    LATE = "late"
    """Its body had ended already. Its end is reported as usual."""


class Poller(Protocol):
    """How the core's thread waits for a backend that does its input and output in that thread."""

    def poll(self, timeout: float | None) -> None:
        """Wait until something has come, and deal with it; at most so many seconds. May return early."""

    def wake(self) -> None:
        """End a wait, the present one or the next. Called from any thread and inside any other code."""

    def close_poller(self) -> None:
        """Give back what waiting and waking took; the last call, in the core's thread."""


class SeatListener(Protocol):
    """Whom seats report to. For the core's own thread: for code that the poller runs, or that the core has called."""

    def seated(self, seat: int, pid: int = 0) -> None:
        """Say that a seat has a worker, and which process that is, if it is known."""

    def finished(self, seat: int, call_id: int, outcome: bytes | Outcome) -> None:
        """Say that a plain call has ended on its seat; an outcome without buffers may be just its data."""

    def kept(self, seat: int, running: int) -> None:
        """Say that a seat is recalled: of its calls that were not reported one runs, if any, and no other will there.

        Calls that are handed over later will not start either. ``running`` may be another id, or one that was
        reported; then none runs.
        """

    def vacated(self, seat: int, running: int | None, death: Death) -> None:
        """Say that the worker of a seat has died, and which of its calls was running; the others had not started."""


class Seats(Protocol):
    """Workers that take plain calls ahead of their turn, and run them one after the other in the order given.

    A seat is a worker with a lease of one cpu. Its id is that of a call without a body, which the core starts to hold
    the lease; seats and calls never have the same id. All methods are called in the core's thread and must not block.
    """

    def report_to(self, listener: SeatListener) -> None:
        """Learn whom to report to; before anything else."""

    def open(self, seat: int) -> None:
        """Find or start a worker; ``SeatListener.seated`` or, if none would start, ``Host.finished`` answers."""

    def hand(self, seat: int, calls: Sequence[PlainCall]) -> None:
        """Give an open seat more calls; ``SeatListener.finished`` reports their ends."""

    def recall(self, seat: int) -> None:
        """Take back what has not started, and let nothing more start; ``SeatListener.kept`` answers.

        A call that asks the executor for something has the same effect, before its request is reported.
        """

    def close(self, seat: int) -> None:
        """Free the worker of a seat on which nothing runs."""

    def promote(self, seat: int, call_id: int) -> None:
        """Turn the call that runs on a recalled seat into one like those of ``Backend.submit``; the seat is gone."""


class Host(Protocol):
    """What a backend may tell and ask the core. Thread-safe; every method returns at once.

    Attributes:
        executor_id: unique text for the executor; a backend may use it in names of its own.
        setup: bytes for ``polyexec.envelope``, the same for all workers of the executor.
    """

    executor_id: str
    setup: bytes

    def started(self, call_id: int) -> None:
        """Say that the body of a call is about to start."""

    def placed(self, call_id: int, pid: int) -> None:
        """Say that a process has a call, and nothing to do before it; for those who watch, if there are any."""

    def finished(self, call_id: int, outcome: Outcome) -> None:
        """Say that a call has ended with an outcome, and that its worker is free."""

    def lost(self, call_id: int, death: Death) -> None:
        """Say that the worker of a call has died before the call ended."""

    def missing(self, call_id: int, handles: Sequence[object], reason: str) -> None:
        """Say that a call did not run and its worker is free, because values that it needs are lost.

        Args:
            call_id: the call; it is handed over again as soon as the values are there again.
            handles: those of its values, or of its body, that are lost.
            reason: what became of them.
        """

    def stopped(self, call_id: int, verdict: Verdict) -> None:
        """Answer a ``cancel``."""

    def request(self, request_id: object, call_id: int, message: Stored) -> None:
        """Pass on what a running call asks of the executor; ``Backend.reply`` brings the answer.

        Args:
            request_id: for ``Backend.reply``.
            call_id: who asks.
            message: as ``Uplink.request`` got it, or a ``Message``.
        """

    def told(self, call_id: int, message: Stored) -> None:
        """Pass on what a call tells the executor; nothing is answered.

        In the order in which it was told, and before the end of the call is reported.

        Args:
            call_id: who tells; it may have ended, or be a plain call.
            message: as ``Uplink.tell`` got it.
        """

    def nodes_changed(self) -> None:
        """Say that ``nodes`` gives something else now."""

    def broken(self, error: BaseException) -> None:
        """Say that the engine is lost or cannot start workers; all pending calls fail with this error."""


class Backend(ABC):
    """An engine under the executor.

    Attributes:
        Config: attrs class whose fields are the keys of a specification; every field has a default and a converter
            that raises ``ValueError`` for a bad value. ``polyexec.config`` has converters and a base class.
        capabilities: what the backend does.
        deviations: the clauses that it does not keep.
        seats: set by ``open`` if the backend takes plain calls; it has a poller then.
        poller: set by ``__init__`` or ``open`` if the backend does its input and output in the core's thread.
    """

    Config: ClassVar[type[Any]]
    capabilities: ClassVar[Capabilities] = Capabilities()
    deviations: ClassVar[tuple[Deviation, ...]] = ()
    seats: Seats | None = None
    poller: Poller | None = None

    def __init__(self, config: Any) -> None:
        self.config = config

    def begin(self) -> Callable[[], None] | None:
        """Start early what takes long: ``connect`` calls this as soon as it can, and has much to do before ``open``.

        Must not block. May raise what ``open`` may; ``open`` must work without it.

        Returns:
            What takes it back, called if ``connect`` fails later, in ``open`` perhaps; None if there is nothing.
        """
        return None

    @abstractmethod
    def open(self, host: Host) -> EngineInfo:
        """Start the engine, or connect to it. Blocks; must raise ``BackendBroken`` or ``BackendLost`` if it cannot."""

    @abstractmethod
    def close(self, *, kill: bool) -> None:
        """Stop what ``open`` started and leave nothing. Blocks; no call runs any more unless ``kill`` is set."""

    @abstractmethod
    def nodes(self) -> Sequence[Node]:
        """Give the nodes as they are now. Must not block."""

    @abstractmethod
    def submit(self, call: Call) -> None:
        """Run a call on the node of its lease. Its end must be reported once: finished, lost or revoked."""

    @abstractmethod
    def cancel(self, call_id: int, *, force: bool) -> None:
        """Stop a call; must be answered by ``Host.stopped``.

        Without ``force`` the body gets an ``Interrupted``. With ``force`` the worker is killed, whatever it does, and
        no other call is harmed. A call that has not started is revoked in either case.
        """

    @abstractmethod
    def reply(self, request_id: object, message: bytes, values: Sequence[Value]) -> None:
        """Answer a request: let ``Uplink.request`` return the message and the values."""

    def protection(self) -> Protection:
        """Say how the engine keeps others out. From any thread; must not block for long."""
        return Protection()

    def put(self, stored: Stored) -> object | None:
        """Give a value to the engine to keep, so that it moves at most once to each node.

        Its buffers are the caller's own memory, which may change as soon as this returns.

        Returns:
            A handle for ``get``, ``free`` and ``Value``, or None if the core shall keep the value.
        """
        return None

    def get(self, handle: object) -> Stored:
        """Bring a value that the engine keeps. Raises ``ObjectLost`` or ``BackendLost``."""
        raise LookupError(handle)

    def free(self, handle: object) -> None:
        """Let the engine forget a value.

        Called once for what the core has taken as a value. A handle that came too late to become one, with the
        outcome of a call that was cancelled for example, is only dropped.
        """
        return None

    def blocked(self, call_id: int) -> None:
        """Learn that a running call waits for others, and holds neither cpu nor slot meanwhile."""
        return None

    def resumed(self, call_id: int) -> None:
        """Learn that such a call goes on. Precedes the ``reply``."""
        return None

    def inspect(self, timeout: float) -> Sequence[WorkerState]:
        """Look at the workers, for ``Executor.dump``.

        Called from a thread of its own, also when the core's thread, or the engine, does not answer, and after
        ``close``: it must wait for neither, and take no lock that they may hold. What it changes meanwhile it must
        read so that a change harms nothing.

        Args:
            timeout: seconds that it may take; what comes later is not seen.

        Returns:
            What could be found out.
        """
        return ()


class Uplink(Protocol):
    """How a running call reaches the executor; a backend implements it on its workers."""

    def request(self, message: Stored) -> tuple[bytes, Sequence[Stored]]:
        """Send a message, wait for its reply, and give the reply's message and values. Thread-safe.

        Raises:
            PolyexecError: the message, or the values of the reply, found no room on their way, or are lost.
        """

    def tell(self, message: Stored) -> None:
        """Send a message that nobody answers. Thread-safe; does not wait for the driver.

        What a call tells before its body has ended reaches the driver before its end does, and before what another
        thread than that of the body requests later, such as the ends of an actor's calls. Unlike a request this does
        not change what becomes of a plain call. Whatever is told when the driver is gone is lost without an error.

        Raises:
            PolyexecError: the message found no room on its way.
        """


class Interrupts(Protocol):
    """How a running body is interrupted; ``polyexec.interrupts`` has implementations."""

    def begin(self, call_id: int) -> None:
        """Note that the body of a call runs in this thread from now on; may raise ``Interrupted`` at once."""

    def end(self, call_id: int) -> bool:
        """Note that it has ended, and say whether it was interrupted; after this nothing is raised in this thread."""

    def deliver(self, call_id: int) -> Verdict:
        """Interrupt a call, from any thread but its own; for bodies that run calls of their own, as actors do."""

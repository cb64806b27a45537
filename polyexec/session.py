"""What an executor and its futures stand on: a session, in the driver or in a running task.

The driver's session is the runtime itself; a task's session asks the driver for everything. Both give the same
answers, so that ``Executor`` and ``Future`` are the same classes on both sides.
"""

from __future__ import annotations

import contextvars
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from polyexec.errors import SpecificationError
from polyexec.options import Resources, TaskOptions
from polyexec.plain import PlainCall
from polyexec.stored import Stored, Tag
from polyexec.wire import GangSpec

if TYPE_CHECKING:
    from polyexec.dump import Dump
    from polyexec.recording import Recorder
    from polyexec.security import SecurityReport


@attrs.frozen
class Info:
    """What runs the tasks, and who chose it (S15).

    Attributes:
        backend: name of the backend.
        engine: the engine's name and version.
        address: where the engine is; empty inside this process.
        chosen_by: ``"argument"``, ``"POLYEXEC_BACKEND"`` or ``"default"``.
        specification: what was asked for, without passwords and tokens, as are the addresses.
        workers: number of cpus for tasks at the start.
        dashboard: address of the engine's own dashboard, None if there is none.
        start_seconds: how long ``connect`` took.
    """

    backend: str
    engine: str
    address: str
    chosen_by: str
    specification: str
    workers: int
    dashboard: str | None
    start_seconds: float

    def __str__(self) -> str:
        where = f" at {self.address}" if self.address else ""
        return f"backend {self.backend!r} ({self.engine}{where}), chosen by {self.chosen_by}"


NO_INFO = Info("", "", "", "", "", 0, None, 0.0)
"""Stands in until the engine is open."""


@attrs.frozen
class NodeInfo:
    """A node as ``Executor.resources`` shows it."""

    id: str
    host: str
    alive: bool
    total: Resources
    available: Resources
    labels: Mapping[str, str]


@attrs.frozen
class ClusterResources:
    """What there is and what is left, in all and by node (R4)."""

    total: Resources
    available: Resources
    nodes: tuple[NodeInfo, ...]


_adding = threading.RLock()
"""Held while an entry gets its first waiter or callback; a finaliser may do so while this very thread does."""


class Entry:
    """One value that exists, or will: what a session knows about it, shared by all its Futures here.

    ``loose`` entries are known to their one Future and to the call that makes them alone; whoever passes such a Future
    on exposes the entry first. ``plain`` is the call while it is on its short way, and ``watched`` says that the
    scheduler must learn of the value. ``held`` of its references are those of tasks that may have to run again.

    ``tag`` is set once, after ``stored`` or ``handle`` and before anybody who waits is told; None means not yet. Who
    waits first adds a waiter, then looks at ``tag``; so either the waiter is told, or it sees the tag.
    """

    __slots__ = (
        "__weakref__",
        "attempts",
        "callbacks",
        "count",
        "handle",
        "held",
        "id",
        "item",
        "loose",
        "name",
        "note",
        "plain",
        "promised",
        "retrieved",
        "running",
        "size",
        "stored",
        "tag",
        "task_id",
        "waiters",
        "watched",
    )

    def __init__(self, entry_id: int, name: str, item: int | None = None) -> None:
        self.id = entry_id
        self.name = name
        self.item = item
        self.task_id = entry_id - (item or 0)
        self.tag: Tag | None = None
        self.stored: Stored | None = None
        self.handle: object | None = None
        self.size: int
        self.note = ""
        self.plain: PlainCall | None = None
        self.loose = False
        self.watched = False
        self.promised = False
        self.running = False
        self.retrieved = False
        self.attempts = 0
        self.count = 0
        self.held = 0
        self.waiters: list[Callable[[Entry], None]] | None = None
        self.callbacks: list[Callable[[], None]] | None = None

    @property
    def nbytes(self) -> int:
        """Size of the value, 0 if it is not there or not known; for the loop."""
        stored = self.stored
        # The size is set with the handle, and by nobody else.
        return self.size if stored is None and self.handle is not None else 0 if stored is None else stored.nbytes

    def add_waiter(self, notify: Callable[[Entry], None]) -> None:
        """Let the loop notify somebody when the tag is set; whoever adds one looks at the tag afterwards."""
        with _adding:
            if self.waiters is None:
                self.waiters = []
            self.waiters.append(notify)

    def add_callback(self, callback: Callable[[], None]) -> None:
        """Let the loop have a callback run when the tag is set; whoever adds one looks at the tag afterwards."""
        with _adding:
            if self.callbacks is None:
                self.callbacks = []
            self.callbacks.append(callback)

    def notify(self) -> None:
        """Tell those who wait; for the loop, after it has set the tag."""
        waiters = self.waiters
        if waiters:
            for notify in tuple(waiters):
                notify(self)
            waiters.clear()


class ItemSource(ABC):
    """Where the items of a stream come from. All methods are thread-safe.

    Attributes:
        is_closed: the reader has closed it.
    """

    is_closed: bool = False

    @abstractmethod
    def poll(self) -> Entry | None:
        """Take the next item if it is here. Does not block."""

    @abstractmethod
    def take(self) -> Entry | None:
        """Wait for the next item and take it; None if there are no more."""

    @abstractmethod
    def is_over(self) -> bool:
        """Say whether no more items will come here; some may be here."""

    @abstractmethod
    def subscribe(self, callback: Callable[[], None]) -> None:
        """Call back, in any thread, when ``poll`` or ``is_over`` may say something else than now."""

    @abstractmethod
    def close(self) -> None:
        """Drop what is here, and stop the generator. Does not wait for its end."""

    @abstractmethod
    def raise_if_cut(self) -> None:
        """Raise if the items ended because the executor was closed."""


class Session(ABC):
    """The few things from which the public classes are built. All methods are thread-safe.

    Attributes:
        executor_id: the same in the driver and in all tasks.
    """

    executor_id: str

    @property
    def status(self) -> str:
        """How the executor is, in a word: open, closing, closed or failed."""
        return "open"

    @property
    @abstractmethod
    def info(self) -> Info:
        """What the executor shows."""

    @abstractmethod
    def submit(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], options: TaskOptions
    ) -> list[Entry]:
        """Take a task, and give the entries of its values."""

    @abstractmethod
    def open_stream(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], options: TaskOptions
    ) -> tuple[Entry, ItemSource]:
        """Take a task that gives items, and give the entry of its end and where its items come from."""

    @abstractmethod
    def make_actor(
        self, cls: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], options: TaskOptions
    ) -> Entry:
        """Start an actor, and give the entry that stands for it."""

    @abstractmethod
    def call_actor(
        self, actor: Entry, method: str, args: Sequence[Any], kwargs: Mapping[str, Any], options: TaskOptions
    ) -> list[Entry]:
        """Call a method, and give the entries of its values."""

    @abstractmethod
    def kill(self, actor: Entry) -> bool:
        """End an actor now, and tell whether it had not ended."""

    @abstractmethod
    def put(self, value: Any) -> Entry:
        """Store a value."""

    @abstractmethod
    def promise(self, name: str) -> Entry | None:
        """Make an entry that a task will fulfil; None where tasks run inline, because nobody could wait for it."""

    @abstractmethod
    def fulfil(self, entry: Entry, value: Any) -> None:
        """Give a promised entry its value, unless nobody refers to it any more."""

    @abstractmethod
    def wait(self, entries: Sequence[Entry], count: int, timeout: float | None) -> None:
        """Block until so many distinct entries have their tag set, or until the time is over."""

    @abstractmethod
    def fetch(self, entry: Entry) -> Stored:
        """Give the bytes of an entry whose tag is set. May block."""

    @abstractmethod
    def refresh(self, entry: Entry) -> None:
        """Bring ``tag``, ``running`` and ``attempts`` up to date."""

    @abstractmethod
    def cancel(self, entry: Entry, *, force: bool, recursive: bool, running: bool = True) -> bool:
        """Stop the task that makes an entry, and tell whether that worked. Blocks for about a second at most."""

    @abstractmethod
    def completed(self, entries: Sequence[Entry], timeout: float | None) -> Iterator[Entry]:
        """Give distinct entries as their tags are set; raise ``TimeoutError`` when the time is over."""

    @abstractmethod
    def subscribe(self, entry: Entry, callback: Callable[[], None]) -> None:
        """Run user code once the tag is set, in some thread; in this one, now, if it is set already."""

    @abstractmethod
    def resources(self) -> ClusterResources:
        """Give what there is and what is left."""

    @abstractmethod
    def reserve(self, spec: GangSpec) -> Entry:
        """Ask for a reservation; the entry is its id and is settled once it has all its bundles."""

    @abstractmethod
    def unreserve(self, reservation: int) -> None:
        """Give back what a reservation holds, or end its waiting."""

    @abstractmethod
    def reserved(self, reservation: int) -> tuple[str | None, ...] | None:
        """Give the node of each bundle of a reservation, None if it is closed."""

    @abstractmethod
    def pin(self, entry_id: int, name: str, item: int | None) -> Entry:
        """Give the entry of a value for one more Future."""

    def is_akin(self, other: Session) -> bool:
        """Say whether both are of the driver, or of one body and the calls that run in it."""
        return self is other

    def expose(self, entry: Entry) -> None:
        """Make an entry known by its id, because its Future is passed on."""
        return

    @abstractmethod
    def adopt(self, entry: Entry) -> Entry:
        """Give this session's own entry for one of another session of the same executor."""

    @abstractmethod
    def release(self, entry: Entry) -> None:
        """Learn that a Future is gone. Never blocks, takes no lock: it may run inside any other code."""

    def recorder(self, *, begin: bool) -> Recorder | None:
        """Give what records the executor's tasks, None if nothing does; recording begins if ``begin`` is set."""
        raise SpecificationError("only the driver records events: call events() and stats() outside of tasks")

    def security(self) -> SecurityReport:
        """Tell who can reach the executor."""
        raise SpecificationError("only the driver knows who can reach it: call security() outside of tasks")

    @abstractmethod
    def dump(self, timeout: float) -> Dump:
        """Say where everybody is. Blocks for about ``timeout`` seconds at most, whatever is stuck."""

    @abstractmethod
    def close(self, *, cancel_pending: bool) -> None:
        """End the session."""


current_session: contextvars.ContextVar[Session | None] = contextvars.ContextVar("polyexec_session", default=None)
"""The session of the task that runs in this context."""

process_session: list[Session] = []
"""The sessions of tasks that have a process for themselves, so that their own threads find it too."""

session_makers: list[Callable[[], Session]] = []
"""The same for tasks whose session is made only when somebody asks for it."""

drivers: weakref.WeakValueDictionary[str, Session] = weakref.WeakValueDictionary()
"""The drivers' sessions of this process by executor id."""


def task_session() -> Session | None:
    """Give the session of the task that runs here, None outside of tasks."""
    session = current_session.get()
    if session is not None:
        return session
    if process_session:
        return process_session[-1]
    return session_makers[-1]() if session_makers else None


def session_here(session: Session) -> Session:
    """Give the task's own session in a task of the same executor that shares the driver's memory, else the given."""
    own = task_session()
    return own if own is not None and own.executor_id == session.executor_id else session


def session_for(executor_id: str) -> Session:
    """Find the session through which a Future of an executor is usable here.

    Raises:
        SpecificationError: it belongs to an executor that does not exist here.
    """
    session = task_session()
    if session is not None and session.executor_id == executor_id:
        return session
    driver = drivers.get(executor_id)
    if driver is None:
        raise SpecificationError("this Future belongs to another executor, which cannot be reached from here")
    return driver

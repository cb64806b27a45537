"""Recording what happens to tasks.

Owner: the loop. It alone adds rows and keeps what it must know of tasks that have not ended; readers get their
portions from it by ``read``, and expand rows to events in their own threads. ``hosts`` is written by the loop and read
by all, one atomic operation at a time. When the executor has been closed nothing changes any more, and readers help
themselves. A row is a tuple of simple values, which the garbage collector need not look at; see ``Row``.
"""

from __future__ import annotations

import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs

from polyexec import blocking
from polyexec.endings import failure_of
from polyexec.errors import ForkedExecutor
from polyexec.events import Event, EventKind
from polyexec.mailbox import Mailbox
from polyexec.plain import PlainCall
from polyexec.records import Died, Ended, Ending, Failed, Task
from polyexec.stored import Head, Outcome, Stored, Tag

if TYPE_CHECKING:
    from polyexec.loop import Loop
    from polyexec.tasks import TaskData

LIMIT = 500_000
"""Rows that are kept: four or more for an ordinary task, one for a plain call, of about 250 bytes each."""

DELAY = 0.02
"""Seconds for which rows are gathered for readers who wait."""

LOOK = 0.05
"""Seconds between two looks at plain calls; one that is seen twice is recorded as running."""

_CHUNK = 4096

Row: TypeAlias = tuple[Any, ...]
"""Either the values of one event, its kind as a number first and the process id as its worker; or all of a plain call
that has ended with a value, its id first: the name, the times of submission and end, the seconds that it ran, process
id, node, and bytes in and out."""

_KINDS = tuple(EventKind)
_SUBMITTED, _READY, _RUNNING, _RETRIED, _DONE, _FAILED, _CANCELLED = range(len(_KINDS))
_ENDS = {Tag.VALUE: _DONE, Tag.ERROR: _FAILED, Tag.BROKEN: _FAILED, Tag.CANCELLED: _CANCELLED}
_EVENT_LENGTH = len(attrs.fields(Event))


@attrs.frozen
class Portion:
    """Some rows.

    Attributes:
        first: number of the first of them, counted from the beginning.
        rows: the rows, none if there are none yet.
        is_last: there will be no others.
    """

    first: int
    rows: Sequence[Row]
    is_last: bool


@attrs.define(eq=False)
class _Story:
    """What is known of a task that has not ended.

    Attributes:
        data_bytes: size of its arguments alone.
        handed: an attempt has been handed to the backend, and has not ended.
        began: when it is known to have begun, 0.0 if that is not known.
        ready: when it became ready.
        stop: when and how the latest attempt has ended, if there may be another.
    """

    name: str
    parent: int | None
    data_bytes: int
    bytes_in: int
    attempt: int = 0
    node: str = ""
    pid: int = 0
    handed: bool = False
    began: float = 0.0
    ready: float = 0.0
    stop: tuple[float, Ending] | None = None


class Recorder:
    """Keeps the latest rows of one executor.

    Args:
        loop: of the executor; None for one that nobody else writes to.
        label: names the executor.
        pid: of the process in which all tasks run, 0 if they have processes of their own.
        data: what the runtime keeps of ordinary tasks.
        limit: rows to keep.

    Attributes:
        due: when ``tidy`` has something to do, by the monotonic clock.
        append: adds a row.
        stories: tasks that have not ended, and that more than one row tells of, by id.
        hosts: names of machines by node.
    """

    def __init__(
        self, loop: Loop | None, label: str, *, pid: int, data: Mapping[int, TaskData], limit: int = LIMIT
    ) -> None:
        self.label = label
        self.hosts: dict[str, str] = {}
        self.stories: dict[int, _Story] = {}
        self._loop = loop
        self._pid = pid
        self._own_pid = os.getpid()
        self._data = data
        self._limit = limit
        self._clock = time.monotonic
        # The wall clock may be set while the program runs; the order of times must not suffer from it.
        self._epoch = time.time() - time.monotonic()
        self.began = time.time()
        self._fresh: list[Row] = []
        self._chunks: deque[tuple[int, Sequence[Row]]] = deque()
        self._first_fresh = 0
        self._waiting: list[tuple[int, Callable[[Portion], None]]] = []
        self._ended = False
        self.due = 0.0
        self.append = self._fresh.append
        recorders.add(self)

    # For readers, in any thread

    @property
    def is_here(self) -> bool:
        """Whether it belongs to this process, and not to one that this was forked from."""
        return self._own_pid == os.getpid()

    def read(self, position: int, timeout: float | None, is_open: Callable[[], bool]) -> Portion:
        """Give rows from a position on. Blocks until there are some; raises ``queue.Empty`` when the time is over.

        Args:
            position: number of the first.
            timeout: seconds to wait, None for ever.
            is_open: says whether the reader still wants to wait; ``wake`` lets it be asked again.

        Returns:
            Some of them, later ones if those are not kept any more; without rows if ``wake`` was called.
        """
        loop = self._loop
        if loop is None:
            return self._portion(position)
        if not self.is_here:
            raise ForkedExecutor("these events are of an executor that was made before os.fork, in the parent process")
        now = Mailbox[Portion](loop)
        loop.post(self._answer, position, now.put, None)
        portion = now.take()
        if portion.rows or portion.is_last:
            return portion
        # The loop need not hurry for those who watch.
        if timeout == 0:
            raise Empty
        later: SimpleQueue[Portion] = SimpleQueue()
        loop.post(self._answer, position, later.put, is_open)
        return blocking.take(later, timeout)

    def wake(self) -> None:
        """Let all who wait look around."""
        loop = self._loop
        if loop is not None:
            loop.post(self._answer_all)

    def expand(self, row: Row) -> Iterator[Event]:
        """Give the events of a row, in order."""
        if len(row) == _EVENT_LENGTH:
            kind, moment, task_id, name, attempt, parent, pid, node, *rest = row
            yield Event(
                _KINDS[kind], self._epoch + moment, task_id, name, attempt, parent, self._worker(node, pid), node, *rest
            )
            return
        task_id, name, submitted, ended, seconds, pid, node, bytes_in, bytes_out = row
        worker, epoch = self._worker(node, pid), self._epoch
        begun = epoch + max(submitted, ended - seconds)
        yield Event(EventKind.SUBMITTED, epoch + submitted, task_id, name, bytes_in=bytes_in)
        yield Event(EventKind.READY, epoch + submitted, task_id, name, bytes_in=bytes_in)
        yield Event(EventKind.RUNNING, begun, task_id, name, 1, None, worker, node, bytes_in=bytes_in)
        yield Event(EventKind.DONE, epoch + ended, task_id, name, 1, None, worker, node, seconds, bytes_in, bytes_out)

    def _worker(self, node: str, pid: int) -> str:
        return f"{self.hosts.get(node, node)}:{pid}" if pid else ""

    # In the loop: readers

    def _portion(self, position: int) -> Portion:
        for first, rows in self._chunks:
            if position < first + len(rows):
                skipped = max(0, position - first)
                return Portion(first + skipped, rows[skipped:], False)
        skipped = position - self._first_fresh
        return Portion(position, self._fresh[skipped:], self._ended or self._loop is None)

    def _answer(self, position: int, answer: Callable[[Portion], None], may_wait: Callable[[], bool] | None) -> None:
        portion = self._portion(position)
        if may_wait is not None and not portion.rows and not portion.is_last and may_wait():
            self._waiting.append((position, answer))
        else:
            answer(portion)

    def _answer_all(self) -> None:
        waiting, self._waiting = self._waiting, []
        for position, answer in waiting:
            answer(self._portion(position))

    @property
    def delay(self) -> float:
        """The seconds within which ``tidy`` should be called again."""
        return DELAY if self._waiting else LOOK

    def tidy(self) -> None:
        """Let readers have what is new, and old rows go; to be called when it is ``due``."""
        self.due = self._clock() + DELAY
        if len(self._fresh) >= _CHUNK:
            self._chunks.append((self._first_fresh, tuple(self._fresh)))
            self._first_fresh += len(self._fresh)
            self._fresh.clear()
            while len(self._chunks) > 1 and self._first_fresh - self._chunks[1][0] >= self._limit:
                self._chunks.popleft()
        end = self._first_fresh + len(self._fresh)
        if any(position < end for position, _ in self._waiting):
            self._answer_all()

    def end(self) -> None:
        """Note that nothing will happen any more."""
        self._ended = True
        self._answer_all()
        self._loop = None
        _ended_last[:] = [self]

    # In the loop: what happens to tasks

    def submitted(self, task: Task, data_bytes: int, moment: float | None = None) -> None:
        """Note that the executor has a task, at a time of the monotonic clock or now."""
        story = self.stories[task.id] = _Story(task.name, task.parent, data_bytes, data_bytes)
        self._note(_SUBMITTED, task.id, story, self._clock() if moment is None else moment)

    def ready(self, task: Task) -> None:
        """Note that a task waits for its turn."""
        story = self.stories.get(task.id)
        if story is not None:
            story.ready, story.handed, story.began = self._clock(), False, 0.0
            story.attempt = task.attempts
            self._note(_READY, task.id, story, story.ready)

    def handed(
        self, task_id: int, attempt: int, node: str, value_bytes: int, *, runs: bool, actor: int | None = None
    ) -> None:
        """Note that an attempt was handed over, to an actor perhaps, and whether it runs as far as anybody tells."""
        story = self.stories.get(task_id)
        if story is not None:
            story.attempt, story.node, story.pid, story.handed = attempt, node, self._pid, True
            story.bytes_in = story.data_bytes + value_bytes
            if actor in self.stories:
                story.pid = self.stories[actor].pid
            if runs:
                self._run(task_id, story, self._clock())

    def placed(self, task_id: int, pid: int) -> None:
        """Note that a process has the call of a task."""
        story = self.stories.get(task_id)
        if story is not None and story.handed and not story.began:
            story.pid = pid
            self._run(task_id, story, self._clock())

    def _run(self, task_id: int, story: _Story, moment: float) -> None:
        story.began = moment
        self._note(_RUNNING, task_id, story, moment)

    def stopped(self, task: Task, ending: Ending) -> None:
        """Note that an attempt has ended and that there may be another."""
        story = self.stories.get(task.id)
        if story is not None:
            story.stop = self._clock(), ending

    def retried(self, task: Task) -> None:
        """Note that there will be another attempt."""
        story = self.stories.get(task.id)
        if story is not None and story.stop is not None:
            moment, ending = story.stop
            self._end_attempt(_RETRIED, task.id, story, moment, ending, self._outcome(task.id), None)

    def _outcome(self, task_id: int) -> Outcome | None:
        data = self._data.get(task_id)
        return None if data is None else data.last

    def settled(
        self, task_id: int, attempts: int, tag: Tag, ending: Ending, result: Outcome | None, error: Stored | None = None
    ) -> None:
        """Note how a task has ended.

        Args:
            task_id: the task.
            attempts: how often its body has started.
            tag: what it ended with.
            ending: how.
            result: the latest outcome of an attempt.
            error: what the driver gave it instead.
        """
        story = self.stories.pop(task_id, None)
        if story is not None:
            story.handed = story.handed and attempts >= story.attempt
            story.attempt = attempts
            self._end_attempt(_ENDS[tag], task_id, story, self._clock(), ending, result, error)

    def _end_attempt(
        self,
        kind: int,
        task_id: int,
        story: _Story,
        moment: float,
        ending: Ending,
        result: Outcome | None,
        error: Stored | None,
    ) -> None:
        head = _head_of(ending, result)
        if isinstance(ending, Died) and ending.death.pid:
            story.pid = ending.death.pid
        elif head is not None and not story.pid and (self._pid or head.pid != self._own_pid):
            # An error of this process's own says nothing of a worker.
            story.pid = head.pid
        if story.handed and not story.began:
            begun = moment if head is None else moment - head.duration
            self._run(task_id, story, max(story.ready, begun))
        size = 0 if head is None or result is None else head.size if result.stored is None else result.stored.nbytes
        seconds = 0.0 if head is None else head.duration
        text = "" if kind in (_DONE, _CANCELLED) else _text_of(story.name, ending, head, error)
        self._note(kind, task_id, story, moment, seconds, size, text)
        story.handed, story.began, story.stop, story.pid, story.node = False, 0.0, None, 0, ""

    def _note(
        self,
        kind: int,
        task_id: int,
        story: _Story,
        moment: float,
        seconds: float = 0.0,
        bytes_out: int = 0,
        error: str = "",
    ) -> None:
        self.append(
            (
                kind,
                moment,
                task_id,
                story.name,
                story.attempt,
                story.parent,
                story.pid,
                story.node,
                seconds,
                story.bytes_in,
                bytes_out,
                error,
            )
        )

    # In the loop: plain calls

    def begun(self, call: PlainCall, node: str, pid: int, moment: float) -> None:
        """Note that a plain call runs, which will tell more than one row can; harmless when it is known already."""
        story = self._introduce(call)
        if not story.began:
            story.attempt, story.node, story.pid, story.handed = 1, node, pid, True
            self._run(call.id, story, max(moment, call.submitted))

    def given_up(self, call: PlainCall, error: Stored) -> None:
        """Note that a plain call, which may have begun, will not be heard of again."""
        self.settled(call.id, self._introduce(call).attempt, Tag.ERROR, Failed(error), None, error)

    def _introduce(self, call: PlainCall) -> _Story:
        story = self.stories.get(call.id)
        if story is None:
            size = len(call.data)
            story = self.stories[call.id] = _Story(call.function.name, None, size, size, ready=call.submitted)
            self._note(_SUBMITTED, call.id, story, call.submitted)
            self._note(_READY, call.id, story, call.submitted)
        return story


def _head_of(ending: Ending, result: Outcome | None) -> Head | None:
    return Head.decode(result.head)[0] if isinstance(ending, Ended) and result is not None else None


def _text_of(name: str, ending: Ending, head: Head | None, error: Stored | None) -> str:
    if head is not None:
        return head.summary
    if error is not None:
        return Head.decode(error.data)[0].summary
    failure = failure_of(name, ending)
    return f"{type(failure).__qualname__}: {failure}"


recorders: weakref.WeakSet[Recorder] = weakref.WeakSet()
"""All of this process whose executors, or readers, still exist."""

_ended_last: list[Recorder] = []
"""That of the executor that was closed last, for those who write its trace afterwards."""


def all_recorders() -> list[Recorder]:
    """Give all recorders that still exist, in the order of their beginning. From any thread."""
    return sorted((one for one in recorders if one.is_here), key=lambda recorder: recorder.began)

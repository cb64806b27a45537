"""What the runtime keeps of a task that the scheduler need not know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from polyexec.ledger import need_of
from polyexec.records import Task
from polyexec.session import Entry
from polyexec.stored import Outcome, Stored
from polyexec.wire import TaskSpec

if TYPE_CHECKING:
    from polyexec.inbox import Inbox


@attrs.define(eq=False)
class TaskData:
    """What the loop keeps of a task until it is settled.

    Attributes:
        spec: what was asked for.
        body: function and arguments.
        shared: the same, as the caller gave them, if the backend shares arguments.
        entries: its values.
        lane: where its submitter serves, None if it does not.
        last: the latest outcome of an attempt.
        body_handle: what the engine keeps the body by, if it does; ``body`` is empty then.
        inbox: where the driver reads its items, if it is a stream of the driver's.
    """

    spec: TaskSpec
    body: Stored
    shared: tuple[Any, ...] | None
    entries: list[Entry]
    lane: int | None = None
    last: Outcome | None = None
    body_handle: object | None = None
    inbox: Inbox | None = None


def revise_task(task: Task, spec: TaskSpec) -> None:
    """Let the scheduler know a task whose options have changed while it rests."""
    task.name, task.need, task.priority, task.timeout = spec.name, need_of(spec.request), spec.priority, spec.timeout
    task.retries, task.retry_timeout = spec.retries, spec.retry_timeout
    task.consult, task.patient, task.placement = spec.retry is not None, spec.patient, spec.placement

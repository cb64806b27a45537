"""What the random world remembers of tasks and calls."""

from __future__ import annotations

import attrs

from polyexec.records import Ending, Task, Wait, Wake
from polyexec.scheduler import Scheduler
from polyexec.waits import Waits

from . import oracle


class CheckedWaits(Waits):
    """Checks each wait that is ended as a deadlock, when that is decided (N2)."""

    scheduler: Scheduler

    def end(self, wait: Wait, wake: Wake) -> None:
        if wake is Wake.DEADLOCK:
            assert not oracle.can_be_answered(self.scheduler, wait), f"wait {wait.id} was no deadlock"
        super().end(wait, wake)


@attrs.define(eq=False)
class Body:
    """A call, as the backend sees it.

    Attributes:
        fate: how it must end since an attempt to stop it was answered.
    """

    call: int
    task: int
    queued: bool
    begun: bool = False
    lent: bool = False
    waits: dict[int, Wait] = attrs.field(factory=dict)
    fate: str = ""

    @property
    def free(self) -> bool:
        """Its own thread runs."""
        return self.begun and not self.fate and not any(wait.main for wait in self.waits.values())


@attrs.define(eq=False)
class Story:
    """What the world knows of a task.

    Attributes:
        begun: how often its body has begun.
        counted: attempts that count, because nobody can be sure that the body had not begun.
        answers: what those were told who have cancelled it.
        unasked: it may have been cancelled together with another.
    """

    task: Task
    begun: int = 0
    counted: int = 0
    ending: Ending | None = None
    answers: list[bool] = attrs.field(factory=list)
    unasked: bool = False

"""What the matrix is made of: rows, their cases, and what a case needs of a backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import attrs

from polyexec.testing.target import SHARED_KEYS, Target

if TYPE_CHECKING:
    from polyexec.testing.faults.trial import Trial


@attrs.frozen
class Need:
    """What a backend must have for a case to make sense.

    Attributes:
        met: tells whether it has it.
        reason: why the case is skipped if not.
    """

    met: Callable[[Target], bool]
    reason: str


PROCESSES = Need(
    lambda target: target.capabilities.processes, "Tasks run in the driver's own process: no worker can be killed."
)
COPIES = Need(lambda target: not target.capabilities.shares_arguments, "Arguments are shared, not serialised.")
QUEUE = Need(lambda target: not target.capabilities.inline, "Each task ends before `submit` returns.")

NEVER, IN_PROCESS, ALWAYS = "never", "in process", "always"


@attrs.frozen
class Case:
    """One way to do the fault of a row.

    Attributes:
        name: a few words, unique in its row.
        do: does the fault in a process of its own and checks what comes of it; gives the clause whose declared
            deviation it has seen instead of the promise, else None.
        needs: what the backend must have.
        own: it opens executors or starts drivers itself; else it gets one that is open, with two workers.
        keys: for the specification of the executor that it gets.
        dies: whether the process that uses the executor ends with the fault: ``NEVER``, ``ALWAYS``, or
            ``IN_PROCESS``, where tasks run in that process.
        ending: the exit status that it has then, negative for a signal.
        limit: seconds after which the case has hung; generous, never a measure.
    """

    name: str
    do: Callable[[Trial], str | None]
    needs: tuple[Need, ...] = ()
    own: bool = False
    keys: Mapping[str, Any] = attrs.field(factory=lambda: dict(SHARED_KEYS))
    dies: str = NEVER
    ending: int = 0
    limit: float = 90.0

    def unmet(self, target: Target) -> str:
        """Give the reason for which a backend cannot run the case, empty if it can."""
        return next((need.reason for need in self.needs if not need.met(target)), "")

    def ends_driver(self, target: Target) -> bool:
        """Tell whether the driver ends with the fault on a backend."""
        return self.dies == ALWAYS or (self.dies == IN_PROCESS and not target.capabilities.processes)


@attrs.frozen
class Row:
    """One kind of fault.

    Attributes:
        id: for example ``"F01"``.
        title: what is done.
        expected: what the contract promises, in a few words.
        clauses: the clauses that promise it.
        cases: the ways to do it.
        budget: seconds from the fault to its error or recovery that the row aims at; a goal, not a limit.
    """

    id: str
    title: str
    expected: str
    clauses: tuple[str, ...]
    cases: tuple[Case, ...]
    budget: float

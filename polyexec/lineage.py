"""What values were made from, so that those that are lost with a node can be made again (O7). A part of the runtime.

Owner: the loop thread; everything here runs in it. A value is missing while it has neither content nor handle: it is
being made again, or it is kept by nobody but tasks that may have to run again, and can itself be made again. Such
tasks hold what they need otherwise; ``Entry.held`` counts how many do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs

from polyexec import outcome
from polyexec.errors import ObjectLost
from polyexec.session import Entry
from polyexec.stored import Outcome, Stored, Tag
from polyexec.tasks import TaskData
from polyexec.wire import Role

if TYPE_CHECKING:
    from polyexec.runtime import Runtime

_ADVICE = "with retries= left its task would have run again"


@attrs.define(eq=False)
class _Origin:
    """A task that has ended and may run again; ``left`` of its values are referred to."""

    data: TaskData
    attempts: int
    left: int


def is_missing(entry: Entry) -> bool:
    """Say whether a value that was there has to be made again before somebody can use it."""
    return entry.tag is Tag.VALUE and entry.stored is None and entry.handle is None


class Lineage:
    """Remembers tasks whose values may be lost, and lets them run again.

    Args:
        runtime: what it is a part of.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._origins: dict[int, _Origin] = {}

    def keep(self, data: TaskData, attempts: int) -> bool:
        """Remember a task that has been settled with a value, if that may be lost and the task may run again.

        Args:
            data: the task; what it refers to stays referred to.
            attempts: how often its body has started.

        Returns:
            False if it is not remembered, and shall be let go.
        """
        runtime, last, spec = self._runtime, data.last, data.spec
        if not runtime.may_lose_values() or last is None or last.handle is None or attempts > spec.retries:
            return False
        if spec.role is not Role.TASK:
            # What it has done besides cannot be done again.
            return False
        living = [entry for entry in data.entries if entry.id in runtime.objects.entries]
        if not living:
            return False
        data.last = None
        origin = _Origin(data, attempts, len(living))
        self._origins.update((entry.id, origin) for entry in living)
        self._hold(data, 1)
        return True

    def _hold(self, data: TaskData, change: int) -> None:
        entries = self._runtime.objects.entries
        for value in data.spec.dependencies:
            entries[value].held += change
            self.thin(entries[value])

    def forget(self, entry_id: int) -> None:
        """Learn that nobody refers to a value any more."""
        origin = self._origins.pop(entry_id, None)
        if origin is not None:
            origin.left -= 1
            if not origin.left:
                # Later, because this may be one of a long chain.
                self._runtime.post(self._release, origin.data)

    def _release(self, data: TaskData) -> None:
        self._hold(data, -1)
        self._runtime.release(data)

    def thin(self, entry: Entry) -> None:
        """Learn that fewer refer to a value; its content can go if only tasks do that may never run again."""
        if 0 < entry.held == entry.count and entry.id in self._origins and not is_missing(entry):
            # Later, because what is inside it may be one of a long chain.
            self._runtime.post(self._empty, entry)

    def _empty(self, entry: Entry) -> None:
        origin = self._origins.get(entry.id)
        if origin is None or entry.held != entry.count:
            return
        # Several values of one task have one content.
        if all(one.held == one.count for one in origin.data.entries if one.id in self._origins):
            self._runtime.objects.empty([one for one in origin.data.entries if one.id in self._origins])

    def lose(self, entry: Entry, handle: object, reason: str) -> None:
        """Learn that a value is lost: it is made again, or becomes an error.

        Args:
            entry: the value.
            handle: what it was looked for by; if that has changed, it was made again meanwhile.
            reason: what became of it.
        """
        if entry.tag is Tag.VALUE and entry.handle is handle and handle is not None:
            self._restore(entry, reason)

    def miss(self, call_id: int, handles: Sequence[object], reason: str) -> None:
        """Learn that a call did not run, because values that it needs are lost; see ``Host.missing``."""
        runtime = self._runtime
        data = runtime.data_of(call_id)
        if data is None:
            return
        if any(data.body_handle is handle for handle in handles):
            lost = ObjectLost(data.spec.name, f"what it was called with, from another task, is gone: {reason}")
            runtime.take_outcome(call_id, Outcome.of(outcome.encode_error(lost)))
            return
        needed = [runtime.objects.entries[value] for value in dict.fromkeys(data.spec.dependencies)]
        gone = [entry for entry in needed if any(entry.handle is handle for handle in handles)]
        waits_for = [entry.id for entry in needed if entry in gone or is_missing(entry)]
        runtime.scheduler.missing(call_id, waits_for)
        for entry in gone:
            self.lose(entry, entry.handle, reason)

    def _restore(self, entry: Entry, reason: str) -> None:
        """Let the task of a value run again, after those of the values that are missing for that."""
        origins: list[_Origin] = []
        wanted = [entry]
        while wanted:
            found = self._take(wanted.pop(), reason)
            if found is not None:
                origins.append(found)
                needed = (self._runtime.objects.entries[value] for value in found.data.spec.dependencies)
                wanted += [one for one in needed if is_missing(one) and one.id in self._origins]
        for origin in origins:
            self._runtime.run_again(origin.data, origin.attempts)

    def _take(self, entry: Entry, reason: str) -> _Origin | None:
        """Take the origin of a value, for its task runs again; None if that is so already, or cannot be."""
        origin = self._origins.get(entry.id)
        failure = self._runtime.failure
        if origin is None or failure is not None:
            if not is_missing(entry) or origin is not None:
                self._give_up(entry, failure, reason)
            return None
        for one in origin.data.entries:
            self._origins.pop(one.id, None)
            self._runtime.scheduler.forget(one.id)
        self._hold(origin.data, -1)
        self._runtime.objects.reopen(origin.data.entries)
        return origin

    def _give_up(self, entry: Entry, failure: Stored | None, reason: str) -> None:
        lost = failure or outcome.encode_error(ObjectLost(entry.name, f"{reason}; {_ADVICE}"))
        self._runtime.objects.reopen([entry])
        self._runtime.settle_all([entry], lost)
        self._runtime.scheduler.arrive(entry.id, Tag.ERROR)

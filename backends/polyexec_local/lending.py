"""The store's values on their way to workers and back.

Belongs to the core's thread, but for what says otherwise. ``_dropped`` is a queue to which any thread may append,
inside any other code; ``_stirred`` only says that the store may have something to tidy, and may be set by any thread.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import attrs

from polyexec.errors import ObjectLost, PolyexecError, ResourceExhausted
from polyexec.spi import Stored
from polyexec_local.borrower import Loan
from polyexec_local.channel import Encoded, encode
from polyexec_local.memory import Layout
from polyexec_local.segments import Segment
from polyexec_local.store import Account, Handle, Store


class Kept:
    """A value in the store, as the core and what is on its way hold it: freed with its last reference, at the latest.

    Args:
        handle: the store's.
        dropped: where the handle is noted then.
    """

    __slots__ = ("_dropped", "handle")

    def __init__(self, handle: Handle, dropped: deque[Handle]) -> None:
        self.handle = handle
        self._dropped = dropped

    def __del__(self) -> None:
        self._dropped.append(self.handle)


@attrs.frozen(eq=False)
class Parcel:
    """A message to a worker, whose values are here or in the store.

    Attributes:
        kind: see ``Frame``.
        fields: see ``Frame``.
        values: in order.
        memory: bytes that the call may take, 0 if it has not asked for any.
        resident: the call lives on, beside those for which workers are kept.
    """

    kind: str
    fields: tuple[Any, ...]
    values: Sequence[Stored | Kept]
    memory: int = 0
    resident: bool = False


Send = Callable[[Sequence[Segment], Encoded], None]
Fail = Callable[[PolyexecError], None]


class Lender:
    """Lends the store's values, and takes them over.

    Args:
        store: the values.
        post: lets a function run soon in the core's thread; from any thread.
    """

    def __init__(self, store: Store, post: Callable[..., None]) -> None:
        self._store = store
        self._post = post
        self._dropped: deque[Handle] = deque()
        self._stirred = False
        self._due: float | None = None

    # For any thread

    def put(self, stored: Stored) -> Kept:
        """Keep a copy of a value. Waits for the disk if there is no room; see ``Store.put``."""
        kept = self._kept(self._store.put(stored))
        self._stirred = True
        return kept

    def get(self, kept: Kept) -> Stored:
        """Give a value, without a copy. Waits if it must come from disk; see ``Store.get``."""
        return self._store.get(kept.handle)

    def _kept(self, handle: Handle) -> Kept:
        return Kept(handle, self._dropped)

    # In the core's thread

    def try_put(self, stored: Stored) -> Kept | None:
        """Keep a copy of a value if there is room for it at once; see ``Store.try_put``."""
        handle = self._store.try_put(stored)
        return None if handle is None else self._kept(handle)

    def free(self, kept: Kept) -> None:
        """Forget a value."""
        self._store.free(kept.handle)
        self._stirred = True

    def deliver(self, account: Account, parcel: Parcel, send: Send, fail: Fail) -> None:
        """Lend what a message needs, and send it, now or later.

        Args:
            account: of the worker.
            parcel: the message.
            send: gets the segments of which the worker must learn first, and the message.
            fail: gets the error, if one of the values cannot be lent, or finds no room on its way.
        """
        handles = [value.handle for value in parcel.values if isinstance(value, Kept)]
        loans = self._store.lend(handles, account) if handles else []
        if loans is not None:
            self._send(account, parcel, send, fail, loans)
            return
        try:
            self._store.lend_later(
                handles, account, lambda found: self._post(self._send, account, parcel, send, fail, found)
            )
        except RuntimeError as error:
            fail(_no_thread(error))

    def _send(
        self, account: Account, parcel: Parcel, send: Send, fail: Fail, loans: Sequence[Loan] | Exception
    ) -> None:
        self._stirred = True
        if isinstance(loans, Exception):
            fail(_reported(loans))
            return
        if account.closed:
            return
        lent = iter(loans)
        values = [next(lent) if isinstance(value, Kept) else value for value in parcel.values]
        try:
            encoded = encode(parcel.kind, parcel.fields, values)
        except OSError as error:
            self._store.give_back(account, [loan.number for loan in loans])
            fail(ResourceExhausted("shared-memory", str(error)))
            return
        send(self._store.introduce(account, loans), encoded)

    def reserve(self, account: Account, layout: Layout, number: int, send: Send, fail: Fail) -> None:
        """Lend room for a value that a worker will write, and tell it, now or later.

        Args:
            account: of the worker.
            layout: of the value.
            number: by which the worker knows what it has asked for.
            send: see ``deliver``.
            fail: see ``deliver``.
        """
        loan = self._store.reserve(layout, account)
        if loan is not None:
            self._send_room(account, number, send, fail, [loan])
            return
        try:
            self._store.reserve_later(
                layout, account, lambda found: self._post(self._send_room, account, number, send, fail, found)
            )
        except RuntimeError as error:
            fail(_no_thread(error))

    def _send_room(
        self, account: Account, number: int, send: Send, fail: Fail, loans: Sequence[Loan] | Exception
    ) -> None:
        self._stirred = True
        if isinstance(loans, Exception):
            fail(_reported(loans))
        elif not account.closed:
            send(self._store.introduce(account, loans), encode("room", (number,), loans))

    def adopt(self, account: Account, number: int) -> Kept | None:
        """Take over the value that a worker has written; None if it was not lent any room under that number."""
        try:
            return self._kept(self._store.adopt(account, number))
        except KeyError:
            return None

    def give_back(self, account: Account, numbers: Sequence[int]) -> None:
        """Learn what a worker does not look at any more."""
        self._store.give_back(account, numbers)
        self._stirred = True

    def forget(self, account: Account) -> None:
        """Learn that a worker is dead, and all that it had started."""
        self._store.forget(account)
        self._stirred = True

    def tidy(self) -> float | None:
        """Free what was dropped, and give memory back to the system that is not used any more.

        Returns:
            When to call again at the latest, by ``time.monotonic``; None if nothing is due.
        """
        while self._dropped:
            self._stirred = True
            self._store.free(self._dropped.popleft())
        if self._stirred or (self._due is not None and self._due <= time.monotonic()):
            self._stirred = False
            self._due = self._store.trim()
        return self._due


def lost() -> ObjectLost:
    """Give the error for a value that a worker says it has written, into room that it did not have."""
    return ObjectLost("a task", "what its worker has written was given up before")


def _reported(error: Exception) -> PolyexecError:
    if isinstance(error, PolyexecError):
        return error
    return ResourceExhausted("memory", f"{type(error).__name__}: {error}")


def _no_thread(error: RuntimeError) -> ResourceExhausted:
    return ResourceExhausted("memory", f"no thread can be started that waits for the disk: {error}")

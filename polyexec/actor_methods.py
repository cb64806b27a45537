"""One call of a method, run as the envelope runs a task."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterable
from typing import Any

import attrs

from polyexec import outcome
from polyexec.envelope import Body, interruptible
from polyexec.errors import Interrupted
from polyexec.remote import RemoteSession
from polyexec.spi import Interrupts
from polyexec.stored import Stored
from polyexec.wire import PROBE


def members(cls: Callable[..., Any]) -> Iterable[tuple[str, Any]]:
    """Give the names of a class and what they stand for there, without running its own code."""
    for name in dir(cls):
        yield name, inspect.getattr_static(cls, name, None)


def is_async(cls: Callable[..., Any]) -> bool:
    """Say whether a class has methods that are coroutines."""
    found = (value for _, value in members(cls) if callable(value) or isinstance(value, classmethod))
    return any(inspect.iscoroutinefunction(inspect.unwrap(value)) for value in found)


def _nothing() -> None:
    return


@attrs.define(eq=False)
class MethodBody(Body):
    """A call of a method.

    Attributes:
        instance: whose method.
        loaded: the method and its arguments, once they are known.
    """

    instance: Any = attrs.field(kw_only=True)
    loaded: tuple[Any, tuple[Any, ...], dict[str, Any]] | None = attrs.field(default=None, kw_only=True)

    def load(self) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        """Find the method, and decode its arguments."""
        if self.loaded is not None:
            return self.loaded
        name, args, kwargs = super().load()
        return _nothing if name == PROBE else getattr(self.instance, name), args, kwargs

    def interruptible(self, session: RemoteSession, interrupts: Interrupts) -> Stored:
        """Run the method in this thread, where it may be interrupted, and encode how it ended."""

        def body() -> Stored:
            self.announce(session)
            return self.encoded()

        found = interruptible(interrupts, self.attempt.call_id, body)
        return outcome.cancelled(self.attempt.name) if found is None else found

    def is_coroutine(self) -> bool:
        """Say whether the method must be awaited; if it cannot be found, running it tells why."""
        try:
            self.loaded = self.load()
        except Exception:
            return False
        return inspect.iscoroutinefunction(inspect.unwrap(self.loaded[0]))

    async def awaited(self, session: RemoteSession, is_stopped: Callable[[], bool]) -> Stored:
        """Run the method, a coroutine, in an event loop, and encode how it ended."""
        import asyncio

        try:
            self.announce(session)
            function, args, kwargs = self.load()
            self.began = time.perf_counter()
            return self.encode(await function(*args, **kwargs))
        except (asyncio.CancelledError, Interrupted) as error:
            return outcome.cancelled(self.attempt.name) if is_stopped() else self.failed(error)
        except BaseException as error:
            return self.failed(error)

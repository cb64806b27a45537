"""What runs every task on every backend: a call goes in as bytes and comes out as bytes, whatever happens in it.

The body is guarded from its first step, the loading of its arguments, to its last, the encoding of its result; an
interrupt may arrive anywhere between, at most once. State of the process: ``_prepared`` maps the setup of an executor
to its result; the first thread that comes prepares, others wait for its event.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence, Sized
from typing import Any, TypeVar

import attrs

from polyexec import outcome, output, payload, shipped, stacks
from polyexec.errors import (
    BackendBroken,
    Interrupted,
    RemoteError,
    ResourceExhausted,
    SerializationError,
    SpecificationError,
    TaskExited,
)
from polyexec.packages import Package
from polyexec.remote import RemoteSession
from polyexec.session import current_session, process_session
from polyexec.spi import Interrupts, Uplink
from polyexec.stored import Flag, Outcome, Stored, Tag
from polyexec.stream_source import closing, iterated
from polyexec.surroundings import surroundings
from polyexec.wire import Attempt, Setup, Slot, stamp

T = TypeVar("T")

__all__ = ["exhausted", "prepare", "refusal", "run", "stamp"]


@attrs.define(eq=False)
class _Prepared:
    ready: threading.Event = attrs.field(factory=threading.Event)
    setup: Setup | None = None
    refusal: Stored | None = None


_prepared: dict[bytes, _Prepared] = {}


def prepare(setup: bytes) -> Stored | None:
    """Make this process ready for an executor's calls: check versions, set paths, run the initializer; once.

    Args:
        setup: ``Host.setup``.

    Returns:
        None, or the outcome to report for a call that this process cannot run.
    """
    return _prepare(setup).refusal


def release(setup: bytes) -> None:
    """Let go of what an executor has sent to this process, which lives on without it; it may come back.

    Args:
        setup: ``Host.setup``.
    """
    found = _prepared.get(setup)
    if found is not None and found.setup is not None:
        shipped.release(found.setup.executor_id)


def refusal(message: str) -> Outcome:
    """Make the outcome to report for a call whose worker would not start.

    Args:
        message: what happened.

    Returns:
        The outcome; the call is handed out again, a bounded number of times (F14).
    """
    return Outcome.of(outcome.encode_error(BackendBroken(message), tag=Tag.BROKEN))


def exhausted(reason: str) -> Outcome:
    """Make the outcome of a call whose result found no room.

    Args:
        reason: what the system said.

    Returns:
        The outcome: ``ResourceExhausted``.
    """
    return Outcome.of(outcome.encode_error(ResourceExhausted("shared-memory", reason)))


def _prepare(setup: bytes) -> _Prepared:
    mine = _Prepared()
    found = _prepared.setdefault(setup, mine)
    if found is mine:
        try:
            mine.setup = Setup.decode(setup, socket.gethostname())
            _apply(mine.setup)
        except BackendBroken as error:
            mine.refusal = outcome.encode_error(error, tag=Tag.BROKEN)
        except BaseException as error:
            mine.refusal = outcome.encode_error(_broken(error), tag=Tag.BROKEN)
        finally:
            mine.ready.set()
    found.ready.wait()
    return found


def prepared_setup(setup: bytes) -> Setup:
    """Give the setup of a process that is ready for an executor's calls."""
    found = _prepare(setup).setup
    assert found is not None
    return found


def _broken(error: BaseException) -> BackendBroken:
    where = f"process {os.getpid()} on {socket.gethostname()}"
    broken = BackendBroken(
        f"a worker cannot start, its initializer failed in {where}: {type(error).__name__}: {outcome.text_of(error)}"
    )
    broken.__cause__ = error
    return broken


def _apply(setup: Setup) -> None:
    if _is_own_process(setup):
        stacks.offer()
        known = set(sys.path)
        sys.path[:] += [path for path in setup.sys_path if path not in known]
        with contextlib.suppress(OSError):
            os.chdir(setup.working_directory)
        if setup.log_to_driver:
            output.install(setup.executor_id)
    if setup.initializer is not None:
        pickle.loads(setup.initializer)()


def _is_own_process(setup: Setup) -> bool:
    return setup.driver != f"{socket.gethostname()}:{os.getpid()}"


def interruptible(interrupts: Interrupts, call_id: int, body: Callable[[], T]) -> T | Stored | None:
    """Run the body of a call; nothing is raised in this thread before or after.

    A process that the body has forked ends when it comes out of the body: the call is its parent's.

    Args:
        interrupts: how it is interrupted.
        call_id: the call.
        body: runs it, and gives its outcome.

    Returns:
        The outcome, None if the call was interrupted.
    """
    result: T | Stored | None = None
    process = os.getpid()
    try:
        try:
            interrupts.begin(call_id)
            result = body()
        except Interrupted:
            result = None
        except BaseException as error:
            # A fault of the envelope's own.
            result = outcome.encode_error(error)
        finally:
            if os.getpid() != process:
                # At once: what this process would wait for are threads that only its parent has.
                os._exit(0)
        interrupted = interrupts.end(call_id)
    except Interrupted:
        # It arrived between the lines above, at the latest before the first line of ``end``; there is no second.
        interrupted = interrupts.end(call_id)
    if interrupted:
        return None
    return result or outcome.encode_error(RemoteError("polyexec.errors.Interrupted", "raised by the task itself"))


def exited(task: str, error: SystemExit) -> TaskExited:
    """Give the error of a task that has called ``sys.exit``."""
    code = error.code if isinstance(error.code, (int, str, type(None))) else repr(error.code)
    if isinstance(code, str):
        code = outcome.capped(code, outcome.MESSAGE_LIMIT)
    return TaskExited(task, code).with_traceback(error.__traceback__)


def run(
    head: bytes,
    body: Stored,
    values: Sequence[Stored],
    uplink: Uplink,
    interrupts: Interrupts,
    *,
    setup: bytes,
    shared: tuple[Any, ...] | None = None,
) -> Stored:
    """Run a call in this thread. Blocks until its body has ended; never raises.

    Args:
        head: ``Call.head``.
        body: ``Call.body``; if its buffers are writable the task may write into them.
        values: what ``Call.values`` stand for, in the same order.
        uplink: how the body reaches the executor.
        interrupts: how the body is interrupted.
        setup: ``Host.setup``.
        shared: ``Call.shared``.

    Returns:
        The outcome, for ``Host.finished``.
    """
    prepared = _prepare(setup)
    if prepared.refusal is not None or prepared.setup is None:
        assert prepared.refusal is not None
        return prepared.refusal
    attempt = Attempt.decode(head)
    try:
        task = _TaskBody(attempt, body, values, shared, setup=prepared.setup, uplink=uplink, interrupts=interrupts)
        return task.outcome()
    except BaseException as error:
        # A fault of the envelope's own, or a variable that the system refuses.
        return outcome.encode_error(error)


@attrs.define(eq=False)
class Body:
    """What a call runs.

    Attributes:
        attempt: what the envelope must know.
        body: function and arguments.
        values: what ``Slot`` stands for among the arguments.
        shared: function and arguments as the caller gave them, or None.
        began: when the function was called, on the performance counter.
    """

    attempt: Attempt
    body: Stored
    values: Sequence[Stored]
    shared: tuple[Any, ...] | None
    began: float = attrs.field(factory=time.perf_counter)

    def announce(self, session: RemoteSession) -> None:
        """Tell the driver that the body begins, if it wants to know."""
        if self.attempt.announce:
            session.announce()

    def encoded(self) -> Stored:
        """Run the function, and encode how it ended; raises ``Interrupted`` alone."""
        try:
            function, args, kwargs = self.load()
            self.began = time.perf_counter()
            return self.encode(function(*args, **kwargs))
        except Interrupted:
            raise
        except BaseException as error:
            return self.failed(error)

    def encode(self, value: Any) -> Stored:
        """Encode what the function has returned."""
        if self.attempt.num_returns > 1:
            value = self._several(value)
        return outcome.encode_value(self.attempt.name, value, duration=time.perf_counter() - self.began)

    def failed(self, error: BaseException) -> Stored:
        """Encode what the function has raised."""
        shown = exited(self.attempt.name, error) if isinstance(error, SystemExit) else error
        flags = Flag.RETRYABLE if self._may_retry(shown) else Flag.NONE
        return outcome.encode_error(shown, flags=flags, duration=time.perf_counter() - self.began)

    def load(self) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        """Decode function and arguments."""
        try:
            function, args, kwargs = self.shared or payload.load(self.body.data, payload.writable(self.body.buffers))
        except (Interrupted, KeyboardInterrupt):
            raise
        except BaseException as error:
            reason = f"{type(error).__name__}: {outcome.text_of(error)}"
            raise SerializationError("argument-load", self.attempt.name, "the arguments", reason) from error
        return (
            function,
            tuple(self._filled(argument, f"argument {index}") for index, argument in enumerate(args)),
            {key: self._filled(argument, f"argument {key!r}") for key, argument in kwargs.items()},
        )

    def _filled(self, argument: Any, what: str) -> Any:
        if type(argument) is not Slot:
            return argument
        stored, item = self.values[argument.index], self.attempt.items[argument.index]
        try:
            value = outcome.decode(stored, self.attempt.name, stage="argument-load")
        except SerializationError as error:
            raise SerializationError(error.stage, error.task, what, error.reason) from error.__cause__
        return value if item is None else value[item]

    def _several(self, value: Any) -> tuple[Any, ...]:
        count = self.attempt.num_returns
        items = iterated(value)
        if items is None:
            raise SpecificationError(self._wrong_count(f"a {type(value).__name__}, not an iterable"))
        with closing(items):
            # One more, so that an endless generator is noticed.
            values = tuple(itertools.islice(items, count + 1))
        if len(values) != count:
            known = len(value) if isinstance(value, Sized) else len(values)
            found = f"{known} values" if known < count or isinstance(value, Sized) else f"more than {count} values"
            raise SpecificationError(self._wrong_count(found))
        return values

    def _wrong_count(self, found: str) -> str:
        return f"task {self.attempt.name!r} was submitted with num_returns={self.attempt.num_returns} but gave {found}"

    def _may_retry(self, error: BaseException) -> bool:
        if self.attempt.retry_on is None:
            return False
        return isinstance(error, pickle.loads(self.attempt.retry_on))


@attrs.define(eq=False)
class _TaskBody(Body):
    setup: Setup = attrs.field(kw_only=True)
    uplink: Uplink = attrs.field(kw_only=True)
    interrupts: Interrupts = attrs.field(kw_only=True)

    def outcome(self) -> Stored:
        """Run the body, and encode how it ended."""
        session = RemoteSession(
            self.setup.executor_id,
            self.uplink,
            inline=self.setup.inline,
            interrupts=self.interrupts,
            name=self.attempt.name,
            task_id=self.attempt.task_id,
            packages=self.attempt.packages,
            in_place=self.setup.in_place,
        )
        token = current_session.set(session)
        own_process = self.setup.exclusive and _is_own_process(self.setup)
        if own_process:
            process_session.append(session)
        try:
            with (
                surroundings(self.attempt, exclusive=self.setup.exclusive, own_process=own_process),
                self._with_packages(),
            ):
                return self._interruptible(session)
        finally:
            session.finish_output()
            current_session.reset(token)
            if own_process:
                process_session.remove(session)

    def _with_packages(self) -> contextlib.AbstractContextManager[None]:
        packages, setup = self.attempt.packages, self.setup
        if packages is None:
            return contextlib.nullcontext()
        if setup.in_place:
            return shipped.used_in_place(packages, exclusive=setup.exclusive)
        return shipped.shipped(packages, setup.executor_id, self._archive, is_driver=not _is_own_process(setup))

    def _archive(self, package: Package) -> bytes:
        """Give the archive of what was sent along with the task."""
        assert self.attempt.packages is not None
        values = self.attempt.packages.values
        stored = self.values[len(self.values) - len(values) + values.index(package.value)]
        archive: bytes = outcome.decode(stored, self.attempt.name, stage="argument-load")
        return archive

    def _interruptible(self, session: RemoteSession) -> Stored:
        def body() -> Stored:
            self.announce(session)
            return self.encoded()

        found = interruptible(self.interrupts, self.attempt.call_id, body)
        return outcome.cancelled(self.attempt.name) if found is None else found

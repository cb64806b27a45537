"""The body of an actor: it makes the instance, and runs what the driver hands to it until it is told to end.

Threads and who owns what
    The receiver asks the driver for more, and the reporter tells it what has ended, which ``_ended`` brings to it.
    Methods run in the thread of the body; several at the same time in threads of their own, or, if the class has
    ``async`` methods, in an event loop in the thread of the body. ``_waiting`` has the calls that have not begun:
    whoever takes one out, by the atomic ``dict.pop``, runs it, or revokes it. ``_active`` has those that run.
    What the instance refers to is counted by the reporter alone; see ``RemoteSession.live_on``.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, ClassVar, TypeAlias

import attrs

from polyexec import outcome, shipped
from polyexec.actor_methods import MethodBody, is_async
from polyexec.errors import ObjectLost, ResourceExhausted, SerializationError
from polyexec.interrupts import ThreadInterrupts
from polyexec.remote import RemoteSession
from polyexec.session import current_session
from polyexec.spi import Interrupts, Verdict
from polyexec.stored import Head, Stored, Tag
from polyexec.wire import Attempt

_INLINE = 64 * 1024
"""Bytes up to which an outcome is a part of the message that reports it."""

_BATCH = 256

_Report: TypeAlias = tuple[int, Stored | Verdict]


@attrs.frozen(eq=False)
class ActorBody:
    """What is submitted as the function of an actor's task.

    Attributes:
        cls: the class.
        width: how many calls may run at the same time.
    """

    cls: Callable[..., Any]
    width: int

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Make an instance, and serve."""
        session = current_session.get()
        assert isinstance(session, RemoteSession)
        instance = self.cls(*args, **kwargs)
        del args, kwargs
        host_for(self.cls, self.width)(instance, session, self.width).serve()


def host_for(cls: Callable[..., Any], width: int) -> type[Host]:
    """Give what runs the methods of a class."""
    if is_async(cls):
        from polyexec.actor_loop import LoopHost

        return LoopHost
    return ThreadsHost if width > 1 else Host


@attrs.frozen(eq=False)
class Call:
    """A call that the driver has handed over."""

    id: int
    attempt: Attempt
    body: Stored
    values: Sequence[Stored]


class Host:
    """Runs methods one after the other, in the thread of the body.

    Args:
        instance: whose methods.
        session: of the body.
        width: how many calls may run at the same time.

    Attributes:
        loops: all calls run in one thread, so that one which waits without ``await`` keeps the others from going on.
    """

    loops: ClassVar[bool] = False

    def __init__(self, instance: Any, session: RemoteSession, width: int) -> None:
        session.live_on()
        self._instance = instance
        self._session = session
        self._width = width
        self._queue: SimpleQueue[Call | None] = SimpleQueue()
        self._waiting: dict[int, Call] = {}
        self._ended: SimpleQueue[_Report | None] = SimpleQueue()
        self._active: set[int] = set()
        self._interrupts = self._find_interrupts()
        self._layer: shipped.Layer | None = None

    def _find_interrupts(self) -> Interrupts:
        assert self._session.interrupts is not None
        return self._session.interrupts

    def serve(self) -> None:
        """Run until the driver says that this is the end, and report all that has ended by then."""
        reporter = threading.Thread(target=self._report, name="polyexec-actor-reporter", daemon=True)
        receiver = threading.Thread(target=self._receive, name="polyexec-actor-receiver", daemon=True)
        reporter.start()
        receiver.start()
        try:
            with shipped.set_aside() as self._layer:
                self._run_all()
        finally:
            self._ended.put(None)
        reporter.join()
        receiver.join()

    # The thread of the body, or threads of methods

    def _run_all(self) -> None:
        self._run_queue()

    def _run_queue(self) -> None:
        while (call := self._queue.get()) is not None:
            self._run(call)
            # Nothing of a call may live until the next one comes (O5).
            del call

    def _run(self, call: Call) -> None:
        if self._waiting.pop(call.id, None) is None:
            return
        session = self._speaking_for(call)
        token = current_session.set(session)
        self._active.add(call.id)
        try:
            with shipped.found_again(self._layer):
                result = self._method(call).interruptible(session, self._interrupts)
            session.finish_output()
        finally:
            self._active.discard(call.id)
            current_session.reset(token)
        self._ended.put((call.id, result))

    def _speaking_for(self, call: Call) -> RemoteSession:
        return self._session.speaking_for(call.id, call.attempt.name, call.attempt.task_id)

    def _method(self, call: Call) -> MethodBody:
        return MethodBody(call.attempt, call.body, call.values, None, instance=self._instance)

    # The receiver

    def _receive(self) -> None:
        # What the constructor has printed comes before whatever methods print.
        self._session.send_output()
        failure: bytes | None = None
        while True:
            try:
                items, values = self._session.ask("actor_next", failure, self.loops)
                failure = None
            except (ObjectLost, ResourceExhausted, SerializationError) as error:
                # What the driver has sent could not be brought.
                failure = outcome.encode_error(error).data
                continue
            except Exception:
                # The driver is gone, or does not know this instance any more.
                items, values = [("end", True)], ()
            if not self._hear(items, values):
                return
            # Nothing of a call may live until the next one comes (O5).
            del items, values

    def _hear(self, items: Sequence[Any], values: Sequence[Stored]) -> bool:
        for kind, *fields in items:
            if kind == "end":
                self._end(now=fields[0])
                return False
            self._HEAR[kind](self, *fields, values)
        return True

    def _hear_call(self, call_id: int, head: bytes, inline: Any, values: Sequence[Stored]) -> None:
        body, *rest = values if inline is None else [Stored(*part) for part in inline]
        call = self._waiting[call_id] = Call(call_id, Attempt.decode(head), body, rest)
        self._begin(call)

    def _hear_stop(self, call_id: int, values: Sequence[Stored]) -> None:
        if self._waiting.pop(call_id, None) is not None:
            self._ended.put((call_id, Verdict.REVOKED))
        else:
            self._stop(call_id)

    def _begin(self, call: Call) -> None:
        self._queue.put(call)

    def _stop(self, call_id: int) -> None:
        self._ended.put((call_id, self._interrupts.deliver(call_id)))

    def _end(self, *, now: bool) -> None:
        if now:
            self._waiting.clear()
            for call_id in tuple(self._active):
                self._stop(call_id)
        self._leave()

    def _leave(self) -> None:
        self._queue.put(None)

    _HEAR: ClassVar[dict[str, Callable[..., None]]] = {"call": _hear_call, "stop": _hear_stop}

    # The reporter

    def _report(self) -> None:
        end = False
        while not end:
            reports = [self._ended.get()]
            while len(reports) < _BATCH:
                try:
                    reports.append(self._ended.get_nowait())
                except queue.Empty:
                    break
            end = None in reports
            try:
                self._send([report for report in reports if report is not None])
            except Exception:
                # The driver is gone, or does not know this instance any more; the receiver hears the same.
                return
            del reports

    def _send(self, reports: Sequence[_Report]) -> None:
        verdicts = [(call, found.value) for call, found in reports if isinstance(found, Verdict)]
        outcomes = [(call, found) for call, found in reports if isinstance(found, Stored)]
        small = [(call, found.data, tuple(map(bytes, found.buffers))) for call, found in outcomes if _is_inline(found)]
        # What threads of the actor have printed.
        self._session.send_output()
        if small or verdicts:
            self._tell(small, verdicts)
        for call, found in outcomes:
            if not _is_inline(found):
                self._tell_large(call, found)

    def _tell(self, outcomes: Sequence[Any], verdicts: Sequence[Any], value: Stored | None = None) -> None:
        self._session.ask("actor_done", outcomes, verdicts, *self._session.changes(), value=value)

    def _tell_large(self, call: int, found: Stored) -> None:
        head = found.data[: Head.decode(found.data)[1]]
        try:
            self._tell([(call, head, None)], (), found)
        except (ObjectLost, ResourceExhausted, SerializationError) as error:
            failure = outcome.encode_error(error)
            self._tell([(call, failure.data, tuple(map(bytes, failure.buffers)))], ())


def _is_inline(found: Stored) -> bool:
    # The driver itself may have to look at an error.
    return found.nbytes <= _INLINE or Head.decode(found.data)[0].tag is not Tag.VALUE


class ThreadsHost(Host):
    """Runs methods in as many threads as may run at the same time."""

    def _find_interrupts(self) -> Interrupts:
        # Those of the body may be for its own thread alone.
        return ThreadInterrupts()

    def _run_all(self) -> None:
        threads = [
            threading.Thread(target=self._run_queue, name=f"polyexec-actor-{number}", daemon=True)
            for number in range(self._width)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _leave(self) -> None:
        for _ in range(self._width):
            self._queue.put(None)

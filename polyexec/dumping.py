"""Making a dump: what the loop knows, what the backend sees, and where the threads of this process are.

Nothing here takes a lock, and nobody is waited for longer than the caller allows: loop and backend are asked in threads
of their own, which end when they have been answered. Those are started without ``threading``, whose lock may be held by
a thread that is stuck.
"""

from __future__ import annotations

import _thread
import os
import socket
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Generic, TypeVar

import attrs

from polyexec import stacks, waiting_threads
from polyexec.dump import Dump, TaskDump, WorkerDump
from polyexec.session import Session, drivers
from polyexec.spi import Backend, WorkerState
from polyexec.stacks import ThreadStack
from polyexec.survey import Picture, picture_of

if TYPE_CHECKING:
    from polyexec.driver import DriverSession
    from polyexec.remote import RemoteSession
    from polyexec.runtime import Runtime

T = TypeVar("T")
_SHARE = 0.8
"""Part of the time that a backend gets to look at its workers."""

_LONGEST = 500
_NO_PICTURE = Picture({}, (), (), (), (), (), {}, {})
_MUTE = "the executor's own loop has not answered within {:g} s: nothing is known about tasks, only where threads are"


class _Answer(Generic[T]):
    """What somebody is asked for."""

    def __init__(self) -> None:
        self._box: SimpleQueue[T | BaseException] = SimpleQueue()

    def fill(self, function: Callable[[], T]) -> None:
        """Answer, in whatever thread this is."""
        try:
            self._box.put(function())
        except BaseException as error:
            self._box.put(error)

    def fill_apart(self, function: Callable[[], T]) -> int:
        """Let a thread of its own answer; give its identity."""
        return _thread.start_new_thread(self.fill, (function,))

    def take(self, end: float, otherwise: T, unknown: list[str], silence: str, failure: str) -> T:
        """Take the answer; note in words that there is none by then, or that whoever was asked has failed."""
        try:
            found = self._box.get(timeout=max(0.0, end - time.monotonic()))
        except Empty:
            unknown.append(silence)
            return otherwise
        if isinstance(found, BaseException):
            unknown.append(f"{failure}: {type(found).__name__}: {found}"[:_LONGEST])
            return otherwise
        return found


def all_as_text(timeout: float) -> str:
    """Write the dumps of all executors of this process, or the stacks of its threads if there are none."""
    # The list is made at once, whatever other threads do meanwhile.
    sessions = [session for session in (reference() for reference in drivers.valuerefs()) if session is not None]
    texts = [_text(session, timeout) for session in sessions if session.status != "closed"]
    return "\n\n".join(texts) or _text_without_executor()


def _text(session: Session, timeout: float) -> str:
    try:
        return str(session.dump(timeout))
    except Exception as error:
        return f"polyexec: executor {session.executor_id}: no dump: {error!r}"


def _text_without_executor() -> str:
    threads = tuple(thread for thread, _ in stacks.here())
    return str(_dump("", "no executor is open", "none", (), _NO_PICTURE, threads, ()))


def dump_of_driver(session: DriverSession, runtime: Runtime, backend: Backend, timeout: float) -> Dump:
    """Say where everybody is, in the driver."""
    end = time.monotonic() + timeout
    unknown: list[str] = []
    asked, seen = _Answer[Picture](), _Answer[Sequence[WorkerState]]()
    asker = seen.fill_apart(lambda: backend.inspect(_SHARE * timeout))
    if runtime.in_loop():
        # This is a finaliser in the middle of the loop's work, which cannot wait for itself.
        asked.fill(lambda: picture_of(runtime))
    else:
        runtime.post(asked.fill, lambda: picture_of(runtime))
    threads = stacks.here((asker,))
    picture = asked.take(end, _NO_PICTURE, unknown, _MUTE.format(timeout), "the loop could not tell what it knows")
    silence = f"the backend has not looked at its workers within {timeout:g} s"
    states = seen.take(end, (), unknown, silence, "the backend could not look at its workers")
    running = {state.thread: _names(state, picture) for state in states if state.thread is not None}
    return _dump(
        session.executor_id,
        str(session.info),
        session.status,
        unknown,
        attrs.evolve(picture, tasks=_placed(picture, states)),
        tuple(
            attrs.evolve(
                thread,
                waits_for=waiting_threads.what(frame, session),
                runs=", ".join(running.get(thread.ident, ())),
            )
            for thread, frame in threads
        ),
        tuple(
            WorkerDump(
                node=state.node,
                pid=state.pid,
                runs=_names(state, picture),
                status=state.status,
                threads=state.threads,
            )
            for state in states
            if state.thread is None
        ),
    )


def _placed(picture: Picture, states: Sequence[WorkerState]) -> tuple[TaskDump, ...]:
    """Say of each task in which process it is."""
    pids = {task: state.pid for state in states for call in state.calls for task in picture.calls.get(call, ())}
    return tuple(attrs.evolve(task, pid=pids[task.id]) if pids.get(task.id) else task for task in picture.tasks)


def _names(state: WorkerState, picture: Picture) -> tuple[str, ...]:
    return tuple(picture.names[task] for call in state.calls for task in picture.calls.get(call, ()))


def dump_of_task(session: RemoteSession, timeout: float) -> Dump:
    """Say where everybody is, in a task: its driver tells what it knows, and the threads are those of this process."""
    end = time.monotonic() + timeout
    unknown: list[str] = []
    asked = _Answer[tuple[str, str, Picture]]()
    asker = asked.fill_apart(lambda: session.ask("dump")[0])
    threads = tuple(thread for thread, _ in stacks.here((asker,)))
    nothing = "not known", "", _NO_PICTURE
    silence = f"the driver has not answered within {timeout:g} s: nothing is known about tasks"
    status, backend, picture = asked.take(end, nothing, unknown, silence, "the driver could not tell what it knows")
    return _dump(session.executor_id, backend, status, unknown, picture, threads, ())


def _dump(
    executor_id: str,
    backend: str,
    status: str,
    unknown: Sequence[str],
    picture: Picture,
    threads: tuple[ThreadStack, ...],
    workers: tuple[WorkerDump, ...],
) -> Dump:
    return Dump(
        executor_id=executor_id,
        backend=backend,
        status=status,
        host=socket.gethostname(),
        pid=os.getpid(),
        taken_at=time.time(),
        unknown=tuple(unknown),
        counts=picture.counts,
        tasks=picture.tasks,
        actors=picture.actors,
        streams=picture.streams,
        reservations=picture.reservations,
        nodes=picture.nodes,
        threads=threads,
        workers=workers,
    )

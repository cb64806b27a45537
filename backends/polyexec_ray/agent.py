"""The agent of a node: an async actor that watches the node's workers and carries what does not wait for their bodies.

A worker runs one body at a time in its main thread and can take no call meanwhile, so interrupts, nested requests
and news of deaths go through the agent. It holds no value longer than it takes to hand it on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Sequence
from typing import Any

import attrs

from polyexec import stacks
from polyexec.stacks import ProcessStacks
from polyexec_ray.death import Autopsy, Mark
from polyexec_ray.freight import load, unload
from polyexec_ray.processes import (
    descendants,
    end_group,
    exit_status,
    is_stopped,
    own_memory,
    split_status,
    zombie_status,
)

_EXIT_STATUS_DELAY = 0.5
_DEATH_DELAY = 1.0
_MEMORY_INTERVAL = 0.05
_MEMORY_SLACK = 64 * 1024**2
"""Bytes that a task may use beyond its ``memory=``, for the modules that it imports."""

_REMEMBERED = 256


@attrs.frozen
class Request:
    """What a running call asks of the executor.

    Attributes:
        number: the agent's own number for it.
        call_id: the call.
        cargo: the message.
        parked: a large value comes with it, which ``Agent.cargo`` gives.
    """

    number: int
    call_id: int
    cargo: Any
    parked: bool


@attrs.frozen
class Told:
    """What a call tells, without an answer.

    Attributes:
        call_id: the call.
        cargo: the message.
    """

    call_id: int
    cargo: Any


@attrs.frozen
class Gone:
    """News that a worker has died.

    Attributes:
        worker_id: which.
    """

    worker_id: int


@attrs.frozen
class Early:
    """What a worker gives while it is held up in one of several calls.

    Attributes:
        outcomes: the calls that have ended, and their outcomes.
        returned: the calls that it has not begun, and never will.
    """

    outcomes: Sequence[tuple[int, Any]]
    returned: Sequence[int]


News = Request | Told | Gone | Early


@attrs.frozen
class Stop:
    """What a worker is told to interrupt.

    Attributes:
        number: for the answer.
        call_id: the call.
    """

    number: int
    call_id: int


class _Watched:
    """A live worker of this node."""

    def __init__(self, pid: int, descriptor: int) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.mark = Mark.of_process(pid, descriptor)
        self.leads_group = os.getpgid(pid) == pid
        self.mail: asyncio.Queue[Stop] = asyncio.Queue()
        self.limit: int | None = None
        self.cause = ""
        self.early: dict[int, bytes] = {}
        self.ended = asyncio.Event()
        self.examination: asyncio.Task[None] | None = None

    def send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    async def pause(self) -> None:
        """Stop it, so that what its mark says stays true."""
        self.send(signal.SIGSTOP)
        while not is_stopped(self.pid):
            await asyncio.sleep(0.001)

    def kill(self) -> None:
        """Kill it and what it has started."""
        self.send(signal.SIGSTOP)
        children = list(descendants(self.pid))
        self.send(signal.SIGKILL)
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


class Agent:
    """The async actor; one for each executor and node."""

    def __init__(self) -> None:
        self._watched: dict[int, _Watched] = {}
        self._autopsies: dict[int, Autopsy] = {}
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._large: dict[int, Any] = {}
        self._stops: dict[int, tuple[int, asyncio.Future[str]]] = {}
        self._news: list[News] = []
        self._wake: asyncio.Event = asyncio.Event()
        self._given: asyncio.Event = asyncio.Event()
        self._next: asyncio.Event = asyncio.Event()
        self._numbers = 0
        self._guard: asyncio.Task[None] | None = None

    async def host(self) -> tuple[str, int]:
        """Give the machine's name and the agent's process id."""
        return socket.gethostname(), os.getpid()

    async def look(self, timeout: float) -> dict[int, ProcessStacks]:
        """Ask the workers of this node for their stacks; gives them by process id."""
        pids = [watched.pid for watched in self._watched.values()]
        return await asyncio.get_running_loop().run_in_executor(None, stacks.ask, pids, timeout)

    async def register(self, worker_id: int, pid: int, descriptor: int) -> None:
        """Watch a worker from now on."""
        watched = _Watched(pid, descriptor)
        self._watched[worker_id] = watched
        asyncio.get_running_loop().add_reader(watched.pidfd, self._died, worker_id)

    async def listen(self, worker_id: int, answers: Sequence[tuple[int, str]]) -> list[Stop]:
        """Take a worker's answers, and give it what it must interrupt, when there is something."""
        for number, verdict in answers:
            self._resolve_stop(number, verdict)
        mail = self._watched[worker_id].mail
        return [await mail.get(), *(mail.get_nowait() for _ in range(mail.qsize()))]

    async def interrupt(self, worker_id: int, call_id: int) -> str:
        """Interrupt a call, and give the name of the verdict when the worker has given it."""
        watched = self._watched.get(worker_id)
        if watched is None:
            return "LATE"
        number = self._number()
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._stops[number] = (worker_id, answer)
        watched.mail.put_nowait(Stop(number, call_id))
        return await answer

    async def kill(self, worker_id: int, call_id: int, cause: str) -> str:
        """Kill a worker and what it has started if it runs a call; else interrupt the call before it begins."""
        watched = self._watched.get(worker_id)
        if watched is None:
            return "LATE"
        await watched.pause()
        if watched.mark.running() == call_id:
            watched.cause = watched.cause or cause
            watched.kill()
            return "DELIVERED"
        watched.send(signal.SIGCONT)
        return await self.interrupt(worker_id, call_id)

    async def early(self, worker_id: int, outcomes: Sequence[tuple[int, Any]], returned: Sequence[int]) -> None:
        """Pass on what a worker gives before its turn."""
        if worker_id in self._watched:
            self._watched[worker_id].early = {call_id: cargo for call_id, cargo in outcomes if isinstance(cargo, bytes)}
        self._tell(Early(outcomes, returned))

    async def limit(self, worker_id: int, growth: int | None) -> None:
        """Kill a worker when its own memory grows by more than so many bytes; None to stop that."""
        watched = self._watched.get(worker_id)
        if watched is None:
            return
        watched.limit = None if growth is None else own_memory(watched.pid) + growth + _MEMORY_SLACK
        if growth is not None and (self._guard is None or self._guard.done()):
            self._guard = asyncio.ensure_future(self._watch_memory())

    async def autopsy(self, worker_id: int) -> Autopsy:
        """Tell how a worker died, as soon as that is known."""
        watched = self._watched.get(worker_id)
        if watched is not None:
            try:
                await asyncio.wait_for(watched.ended.wait(), _DEATH_DELAY)
            except TimeoutError:
                watched.kill()
                await watched.ended.wait()
        return self._autopsies.get(worker_id, Autopsy())

    async def request(self, call_id: int, cargo: Any, value: Any) -> Any:
        """Pass a request on to the driver, and give its reply.

        Args:
            call_id: who asks.
            cargo: the message.
            value: what comes with it, if that is large.
        """
        number = self._number()
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        if value is not None:
            self._large[number] = value
        self._tell(Request(number, call_id, cargo, value is not None))
        del value
        return await answer

    async def cargo(self, number: int) -> Any:
        """Give the value that came with a request: what Ray makes of it is the driver's, and outlives the worker."""
        return load(unload(self._large.pop(number)))

    async def reply(self, number: int, reply: Any) -> None:
        """Bring the driver's reply to a request."""
        answer = self._answers.pop(number, None)
        if answer is not None and not answer.done():
            answer.set_result(reply)

    async def tell(self, items: Sequence[tuple[int, Any]]) -> None:
        """Pass on what calls tell; ends when the driver has dealt with it."""
        for call_id, cargo in items:
            self._tell(Told(call_id, cargo))
        await self._next.wait()

    async def news(self) -> list[News]:
        """Give what there is to tell, when there is something; the driver has dealt with all that was given before."""
        self._given.set()
        await self._wake.wait()
        self._wake.clear()
        told, self._news = self._news, []
        self._given, self._next = self._next, asyncio.Event()
        return told

    def _tell(self, item: News) -> None:
        self._news.append(item)
        self._wake.set()

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers

    def _resolve_stop(self, number: int, verdict: str) -> None:
        _, answer = self._stops.pop(number, (0, None))
        if answer is not None and not answer.done():
            answer.set_result(verdict)

    def _died(self, worker_id: int) -> None:
        watched = self._watched[worker_id]
        asyncio.get_running_loop().remove_reader(watched.pidfd)
        watched.examination = asyncio.ensure_future(self._examine(worker_id, watched))

    async def _examine(self, worker_id: int, watched: _Watched) -> None:
        number, exit_code = split_status(await _wait_status(watched))
        mark = watched.mark
        outcomes = {**watched.early, **mark.outcomes()}
        found = Autopsy(watched.pid, number, exit_code, mark.begun(), outcomes, watched.cause)
        self._autopsies[worker_id] = found
        if watched.leads_group:
            end_group(watched.pid)
        watched.mark.close()
        os.close(watched.pidfd)
        self._forget(worker_id, watched)

    def _forget(self, worker_id: int, watched: _Watched) -> None:
        del self._watched[worker_id]
        watched.ended.set()
        for number in [number for number, (worker, _) in self._stops.items() if worker == worker_id]:
            self._resolve_stop(number, "LATE")
        while len(self._autopsies) > _REMEMBERED:
            del self._autopsies[next(iter(self._autopsies))]
        self._tell(Gone(worker_id))

    async def _watch_memory(self) -> None:
        while any(watched.limit is not None for watched in self._watched.values()):
            for watched in list(self._watched.values()):
                used = own_memory(watched.pid) if watched.limit is not None else 0
                if watched.limit is not None and used > watched.limit:
                    watched.cause = f"out of memory: it used {used} bytes, far more than its memory= allows"
                    watched.limit = None
                    watched.kill()
            await asyncio.sleep(_MEMORY_INTERVAL)


async def _wait_status(watched: _Watched) -> int | None:
    status = zombie_status(watched.pid)
    loop = asyncio.get_running_loop()
    end = loop.time() + _EXIT_STATUS_DELAY
    while status is None and loop.time() < end:
        status = exit_status(watched.pidfd)
        if status is None:
            await asyncio.sleep(0.002)
    return status

"""Methods of a class that has coroutines among them: all of them run in an event loop, in the thread of the body."""

from __future__ import annotations

import asyncio
from typing import Any

from polyexec import shipped
from polyexec.actor_host import Call, Host
from polyexec.remote import RemoteSession
from polyexec.session import current_session
from polyexec.spi import Verdict
from polyexec.stored import Stored


class LoopHost(Host):
    """Runs each method as a task of an event loop; those that are no coroutines run in it as a whole.

    ``_tasks`` and ``_stopped`` belong to the thread of the loop, which sets ``_busy`` to the call that is no coroutine
    and keeps all others waiting; the receiver looks at it.
    """

    loops = True

    def __init__(self, instance: Any, session: RemoteSession, width: int) -> None:
        super().__init__(instance, session, width)
        self._loop = asyncio.new_event_loop()
        self._room = asyncio.Semaphore(width)
        self._over = asyncio.Event()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._stopped: set[int] = set()
        self._busy = 0

    # The thread of the body

    def _run_all(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            asyncio.set_event_loop(None)
            self._loop.close()

    async def _serve(self) -> None:
        await self._over.wait()
        while self._tasks:
            await asyncio.wait(self._tasks.values())
        await self._loop.shutdown_asyncgens()
        await self._loop.shutdown_default_executor()

    def _spawn(self, call: Call) -> None:
        self._tasks[call.id] = self._loop.create_task(self._run_call(call), name=call.attempt.name)

    async def _run_call(self, call: Call) -> None:
        try:
            async with self._room:
                if self._waiting.pop(call.id, None) is None:
                    return
                session = self._speaking_for(call)
                current_session.set(session)
                self._active.add(call.id)
                result = await self._result(call, session)
                session.finish_output()
                self._ended.put((call.id, result))
        finally:
            self._active.discard(call.id)
            self._stopped.discard(call.id)
            del self._tasks[call.id]

    async def _result(self, call: Call, session: RemoteSession) -> Stored:
        method = self._method(call)
        with shipped.found_again(self._layer, interleaved=True):
            if method.is_coroutine():
                return await method.awaited(session, lambda: call.id in self._stopped)
        self._busy = call.id
        try:
            with shipped.found_again(self._layer):
                return method.interruptible(session, self._interrupts)
        finally:
            self._busy = 0

    def _cancel(self, call_id: int) -> None:
        task = self._tasks.get(call_id)
        if task is not None:
            self._stopped.add(call_id)
            task.cancel()
        self._ended.put((call_id, Verdict.LATE if task is None else Verdict.DELIVERED))

    # The receiver

    def _begin(self, call: Call) -> None:
        self._loop.call_soon_threadsafe(self._spawn, call)

    def _stop(self, call_id: int) -> None:
        if call_id == self._busy:
            super()._stop(call_id)
        else:
            self._loop.call_soon_threadsafe(self._cancel, call_id)

    def _leave(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)

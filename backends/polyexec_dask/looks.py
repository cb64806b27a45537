"""Looking at the worker processes from any thread, whether or not the event loop, or a worker, answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from queue import Empty, SimpleQueue

from polyexec import stacks
from polyexec.spi import WorkerState
from polyexec.stacks import ProcessStacks, ThreadStack
from polyexec_dask.remote import Answer, Remote

_SILENCE = ProcessStacks("it has not answered in time")


def look_at(remotes: Mapping[str, Remote], loop: asyncio.AbstractEventLoop, timeout: float) -> list[WorkerState]:
    """Look at workers: at those of this machine directly, while the others answer by themselves.

    Args:
        remotes: belongs to the event loop; it is copied at once.
        loop: the event loop, for asking the others.
        timeout: seconds that all may take.

    Returns:
        What was found out.
    """
    end = time.monotonic() + timeout
    found = list(remotes.values())
    far = [remote for remote in found if not remote.shares_memory]
    answers: SimpleQueue[tuple[str, Answer]] = SimpleQueue()
    for remote in far:
        loop.call_soon_threadsafe(remote.ask_for_stacks, answers.put)
    near = stacks.ask([remote.pid for remote in found if remote.shares_memory], timeout)
    seen = {remote.address: near[remote.pid] for remote in found if remote.shares_memory}
    seen |= _collected(answers, len(far), end)
    return [_state_of(remote, seen.get(remote.address, _SILENCE)) for remote in found]


def _collected(answers: SimpleQueue[tuple[str, Answer]], count: int, end: float) -> dict[str, ProcessStacks]:
    found: dict[str, ProcessStacks] = {}
    while len(found) < count:
        try:
            address, threads = answers.get(timeout=max(0.0, end - time.monotonic()))
        except Empty:
            break
        found[address] = ProcessStacks(
            "", tuple(ThreadStack(one, name, tuple(frames)) for one, name, frames in threads)
        )
    return found


def _state_of(remote: Remote, found: ProcessStacks) -> WorkerState:
    # The records belong to the event loop; the list of them is made at once.
    running = tuple(call for call, record in list(remote.records.items()) if record.started)
    status = "; ".join(filter(None, ("it is dead, or being killed" if remote.gone else "", found.status)))
    return WorkerState(remote.node, remote.pid, running, None, status, found.threads)

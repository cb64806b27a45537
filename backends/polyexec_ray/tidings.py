"""What the calls of a worker tell the driver, by way of the agent.

Ray's async actors do not begin their calls in order, so one call of the agent at a time takes all that has gathered.
The queue is all that threads share; a body may be interrupted anywhere, and touches nothing else.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from typing import Any

import ray

from polyexec.spi import Stored
from polyexec_ray.freight import load


class Teller:
    """The thread that tells.

    Args:
        agent: the agent of the worker's node.
    """

    def __init__(self, agent: Any) -> None:
        self._agent = agent
        self._items: queue.SimpleQueue[tuple[int, Any] | threading.Event] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="polyexec-teller", daemon=True).start()

    def tell(self, call_id: int, message: Stored) -> None:
        """Let the driver have a message, soon."""
        # The agent passes it on, and cannot pickle the buffers that Ray would give it.
        self._items.put((call_id, load(message, copy=True)))

    def settle(self) -> None:
        """Wait until the driver has dealt with all that was told, or will never. Not for bodies."""
        settled = threading.Event()
        self._items.put(settled)
        settled.wait()

    def _work(self) -> None:
        while True:
            batch = [self._items.get()]
            with contextlib.suppress(queue.Empty):
                while True:
                    batch.append(self._items.get_nowait())
            told = [item for item in batch if isinstance(item, tuple)]
            if told:
                # If the agent has ended so has the driver, or the workers of the node are about to.
                with contextlib.suppress(ray.exceptions.RayError):
                    ray.get(self._agent.tell.remote(told))
            for item in batch:
                if isinstance(item, threading.Event):
                    item.set()
            # Nothing of a call may live until the next one comes (O5).
            del batch, told, item

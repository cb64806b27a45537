"""What runs plain calls on a worker: ``polyexec.envelope`` for those who have hardly any envelope.

For the main thread of a process that is for tasks alone. What differs from ``envelope.run`` is only what is done once
instead of for each call: the surroundings of all plain calls are the same, and the session that a call may use is
made when it asks for one.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from typing import Any

from polyexec import outcome
from polyexec.envelope import exited, interruptible, prepared_setup
from polyexec.errors import Interrupted, SerializationError
from polyexec.plain import is_small_atom
from polyexec.remote import RemoteSession
from polyexec.session import Session, session_makers
from polyexec.spi import Interrupts, Uplink
from polyexec.stored import Stored, value_head
from polyexec.surroundings import default_surroundings


class PlainWorker:
    """Runs plain calls, one at a time, in the main thread.

    Args:
        setup: ``Host.setup``; the process has been prepared.
        uplink: makes the way to the executor for a call.
        interrupts: how a body is interrupted.
    """

    def __init__(self, setup: bytes, uplink: Callable[[int], Uplink], interrupts: Interrupts) -> None:
        self._executor_id = prepared_setup(setup).executor_id
        self._uplink = uplink
        self._interrupts = interrupts
        self._functions: dict[int, tuple[bytes, str]] = {}
        self._loaded: dict[int, Callable[..., Any]] = {}
        self._call_id = 0
        self._made: tuple[int, Session] | None = None
        session_makers.append(self._make_session)

    def learn(self, key: int, data: bytes, name: str) -> None:
        """Take a function that calls will refer to by its key. Any thread may call this."""
        self._functions[key] = data, name

    def forget(self) -> None:
        """Forget all functions; the driver sends those again that are needed."""
        self._functions.clear()
        self._loaded.clear()

    def run(self, call_id: int, key: int, data: bytes, name: str) -> bytes | Stored:
        """Run a call. Blocks until its body has ended; never raises.

        Args:
            call_id: the call.
            key: of its function; 0 if that is in the data.
            data: see ``PlainCall.data``.
            name: of the task, if the key is 0.

        Returns:
            The outcome; its data alone if it has no buffers.
        """
        default_surroundings()
        self._call_id = call_id
        found = interruptible(self._interrupts, call_id, lambda: self._encoded(key, data, name))
        self._made = None
        return outcome.cancelled(self._name(key, name)) if found is None else found

    def _encoded(self, key: int, data: bytes, name: str) -> bytes | Stored:
        began = time.perf_counter()
        try:
            function, args, kwargs = self._load(key, data, name)
            began = time.perf_counter()
            value = function(*args, **kwargs)
            seconds = time.perf_counter() - began
            if is_small_atom(value):
                return value_head(seconds) + pickle.dumps(value, 5)
            stored = outcome.encode_value(self._name(key, name), value, duration=seconds)
            return stored if stored.buffers else stored.data
        except Interrupted:
            raise
        except SystemExit as error:
            return self._failed(exited(self._name(key, name), error), began)
        except BaseException as error:
            return self._failed(error, began)

    @staticmethod
    def _failed(error: BaseException, began: float) -> Stored:
        return outcome.encode_error(error, duration=time.perf_counter() - began)

    def _load(self, key: int, data: bytes, name: str) -> Any:
        try:
            if not key:
                return pickle.loads(data)
            function = self._loaded.get(key)
            if function is None:
                function = self._loaded[key] = pickle.loads(self._functions[key][0])
            return function, *pickle.loads(data)
        except (Interrupted, KeyboardInterrupt):
            raise
        except BaseException as error:
            reason = f"{type(error).__name__}: {outcome.text_of(error)}"
            raise SerializationError("argument-load", self._name(key, name), "the arguments", reason) from error

    def _name(self, key: int, name: str) -> str:
        return self._functions[key][1] if key else name

    def _make_session(self) -> Session:
        call_id, made = self._call_id, self._made
        # A thread that has outlived its call may come between two calls, and must not speak for the next one.
        if made is None or made[0] != call_id:
            made = self._made = call_id, RemoteSession(self._executor_id, self._uplink(call_id), inline=False)
        return made[1]

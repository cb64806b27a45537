"""Ctrl-C anywhere in ``close``: whoever closes afterwards is not kept waiting, and nothing is left."""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable
from types import FrameType, FunctionType
from typing import Any

import pytest

import polyexec
from polyexec.closing import Closing
from polyexec.driver import DriverSession

from .gates import LIMIT
from .stub import StubConfig, connect_stub

CLOSING = {DriverSession.close.__code__, DriverSession.close_at_exit.__code__} | {
    function.__code__ for function in vars(Closing).values() if isinstance(function, FunctionType)
}


def interrupted(step: int, function: Callable[[], object]) -> bool:
    """Call a function, and raise KeyboardInterrupt before a step of those that close; False if there are less steps."""
    left = step

    def local(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        if event == "opcode":
            left -= 1
            if left == -1:
                raise KeyboardInterrupt
        return local

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code not in CLOSING:
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return local

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def close_elsewhere(ex: polyexec.Executor) -> bool:
    """Close in a thread of its own; say whether that comes to an end."""
    thread = threading.Thread(target=ex.close, daemon=True)
    thread.start()
    thread.join(LIMIT / 3)
    return not thread.is_alive()


@pytest.mark.parametrize("method", ["close", "close_at_exit"])
def test_an_interrupt_at_any_step_leaves_nobody_waiting(method: str) -> None:
    not_closed = 0
    for step in itertools.count():
        ex, backend = connect_stub(StubConfig())
        session = ex._session
        came = interrupted(step, getattr(session, method) if method == "close_at_exit" else ex.close)
        assert close_elsewhere(ex), f"interrupted before step {step}"
        ex.close()
        # An interrupt may come when the backend is about to be closed; it is not closed twice.
        assert len(backend.closed) <= 1, f"interrupted before step {step}"
        not_closed += not backend.closed
        with pytest.raises(polyexec.ExecutorClosed):
            ex.submit(abs, 1)
        assert not any(thread.name == "polyexec-loop" for thread in threading.enumerate())
        if not came:
            break
    assert step > 20
    assert not_closed < 10


def test_close_in_the_middle_of_close_returns() -> None:
    ex, backend = connect_stub(StubConfig())
    close, done = backend.close, threading.Event()

    def close_again(*, kill: bool) -> None:
        # As a signal handler, or a finaliser, may do in the thread that closes.
        ex.close()
        close(kill=kill)
        done.set()

    backend.close = close_again  # type: ignore[method-assign]
    assert close_elsewhere(ex)
    assert done.is_set()

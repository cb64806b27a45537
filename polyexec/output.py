"""What tasks print, on its way from their process to the driver (D2).

In a process that is for tasks, ``sys.stdout`` and ``sys.stderr`` are replaced once, by streams that cut what the code
of a task writes into lines; a thread takes the lines to the driver. What is written outside of tasks goes where it
went before.

State and who owns it
    A task may be interrupted anywhere in ``write``, so that its threads take no lock: each owns its unfinished lines,
    whole lines are added to ``Output._lines``, and ``_Sender`` is told by queues. Who sends has ``Output._sending``:
    the sender's thread, or the thread of the body when that has ended. ``_unwritten`` counts what was sent and may not
    have been written by the driver yet; it may miss something when threads meet, and a task waits a little later then.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import logging
import os
import socket
import sys
import threading
from collections import deque
from collections.abc import Iterable
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TextIO

from polyexec.errors import PolyexecError
from polyexec.lines import Line
from polyexec.session import task_session

if TYPE_CHECKING:
    from polyexec.remote import RemoteSession

NAMES = ("stdout", "stderr")

DELAY = 0.05
"""Seconds for which lines gather before they are sent."""

_BATCH = 64 * 1024
"""Characters that are sent at once."""

CREDIT = 4 << 20
"""Characters that a process may print before it waits until the driver has written what came before."""

_forwarding: set[str] = set()
"""The executors whose tasks' output goes to the driver."""

_unwritten = [0]


def install(executor_id: str) -> None:
    """Let what tasks of an executor print in this process go to its driver, from now on."""
    if not _forwarding:
        _sender.start()
    _forwarding.add(executor_id)
    for number, name in enumerate(NAMES):
        stream = getattr(sys, name)
        if not isinstance(stream, TaskStream):
            replaced = TaskStream(number, stream)
            setattr(sys, name, replaced)
            _replace_in_logging(stream, replaced)


def _replace_in_logging(old: TextIO | None, new: Any) -> None:
    """Let handlers of the root logger that were made before use the new stream."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is old:
            handler.setStream(new)


# What a task has forked writes to the descriptors that it has inherited.
os.register_at_fork(after_in_child=_forwarding.clear)


class _Sender:
    """The thread that takes lines to the driver; started once in a process, by ``install``."""

    def __init__(self) -> None:
        self._pending: SimpleQueue[Output] = SimpleQueue()
        self._urgent: SimpleQueue[None] = SimpleQueue()

    def start(self) -> None:
        threading.Thread(target=self._work, name="polyexec-output", daemon=True).start()

    def add(self, output: Output) -> None:
        """Note that an output has lines; from any thread, and inside any other code."""
        self._pending.put(output)

    def hurry(self) -> None:
        """Let the lines be sent that have gathered by now; from any thread, and inside any other code."""
        self._urgent.put(None)

    def _work(self) -> None:
        while True:
            outputs = {self._pending.get()}
            with contextlib.suppress(Empty):
                self._urgent.get(timeout=DELAY)
                while True:
                    self._urgent.get_nowait()
            with contextlib.suppress(Empty):
                while True:
                    outputs.add(self._pending.get_nowait())
            while outputs:
                # Nothing of a task may live here until the next one comes (O5).
                outputs.pop().send()


_sender = _Sender()


class Output:
    """What one task prints.

    Args:
        session: of the task.
    """

    def __init__(self, session: RemoteSession) -> None:
        self._session = session
        self._unfinished: dict[tuple[int, int], Line] = {}
        self._lines: deque[tuple[int, str]] = deque()
        self._size = 0
        self._announced = False
        self._sending = threading.Lock()

    def write(self, stream: int, text: str) -> None:
        """Add a text; waits if the driver is far behind. May be interrupted anywhere.

        Args:
            stream: index of its name in ``NAMES``.
            text: what is written.
        """
        key = stream, threading.get_ident()
        line = self._unfinished.get(key)
        if line is None:
            line = self._unfinished.setdefault(key, Line())
        lines = line.add(text)
        if lines:
            self._add(stream, "\n".join(lines))

    def _add(self, stream: int, text: str) -> None:
        self._lines.append((stream, text))
        if not self._announced:
            self._announced = True
            _sender.add(self)
        self._size += len(text)
        if self._size > _BATCH:
            self._size = 0
            _sender.hurry()
        _unwritten[0] += len(text)
        if _unwritten[0] > CREDIT:
            _unwritten[0] = 0
            # A task that has ended and left a thread behind is refused.
            with contextlib.suppress(PolyexecError):
                self._session.ask("written")

    def send(self) -> None:
        """Tell the driver all whole lines; not for bodies, which may be interrupted."""
        with self._sending:
            self._announced = False
            while self._lines:
                batch, size = [], 0
                while self._lines and size < _BATCH:
                    batch.append(self._lines.popleft())
                    size += len(batch[-1][1])
                # Whatever finds no room is lost; there is nobody whom it could be told.
                with contextlib.suppress(PolyexecError):
                    self._tell(batch)

    def _tell(self, lines: list[tuple[int, str]]) -> None:
        session = self._session
        session.tell("output", session.task_id, session.name, os.getpid(), socket.gethostname(), lines)

    def finish(self) -> None:
        """Tell the driver everything; when the body has ended."""
        for (stream, _), line in tuple(self._unfinished.items()):
            rest = line.end()
            if rest:
                self._lines.append((stream, rest))
        self.send()


def _current() -> Output | None:
    """Give the output of the task whose code runs here, if that goes to the driver."""
    session: Any = task_session()
    if session is None or session.executor_id not in _forwarding or session.name is None:
        return None
    output: Output = session.output()
    return output


class TaskStream(io.TextIOBase):
    """Stands for ``sys.stdout`` or ``sys.stderr``.

    Args:
        number: index of its name in ``NAMES``.
        original: where goes what no task has written; None for nowhere.
    """

    def __init__(self, number: int, original: TextIO | None) -> None:
        self._number = number
        self._original = original
        self.name = f"<{NAMES[number]}>"
        self.mode = "w"
        self.buffer = _Bytes(self, original)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """What bytes are taken for."""
        return getattr(self._original, "encoding", None) or "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        """What becomes of characters that cannot be encoded: nothing, they travel as they are."""
        return "surrogateescape"

    @property
    def line_buffering(self) -> bool:
        """Whether lines are passed on when they are complete."""
        return True

    def reconfigure(self, **options: Any) -> None:
        """Accept what ``io.TextIOWrapper`` does; nothing of it matters here."""

    def write(self, text: str) -> int:
        """Write a text."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        output = _current()
        if output is not None:
            output.write(self._number, text)
        elif self._original is not None:
            self._original.write(text)
        return len(text)

    def flush(self) -> None:
        """Do nothing for what tasks write: it is on its way within ``DELAY``, an unfinished line when it ends."""
        if self._original is not None and not self._original.closed:
            self._original.flush()

    def close(self) -> None:
        """Stay open: others use it too."""
        self.flush()

    def fileno(self) -> int:
        """Give the descriptor of the process's own stream, for what writes there by itself."""
        if self._original is None:
            raise io.UnsupportedOperation("fileno")
        return self._original.fileno()

    def isatty(self) -> bool:
        """Say that this is no terminal."""
        return False

    def writable(self) -> bool:
        """Say that it can be written to."""
        return True


class _Bytes(io.BufferedIOBase):
    """What ``sys.stdout.buffer`` is: bytes that are part of the text."""

    def __init__(self, stream: TaskStream, original: TextIO | None) -> None:
        self._stream = stream
        self._original = original
        self._decoders = threading.local()

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        if _current() is None:
            if self._original is not None:
                self._original.buffer.write(data)
            return size
        decoder = getattr(self._decoders, "decoder", None)
        if decoder is None:
            decoder = self._decoders.decoder = codecs.getincrementaldecoder(self._stream.encoding)("replace")
        self._stream.write(decoder.decode(bytes(data)))
        return size

    def writelines(self, lines: Iterable[Any]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self._stream.flush()

    def close(self) -> None:
        self.flush()

    def fileno(self) -> int:
        return self._stream.fileno()

    def writable(self) -> bool:
        return True

"""What tasks have printed, written to the streams of the driver (D2).

A user's stream may block, and what stands behind it may be the user's own code; so all of it is written by one thread,
which is started when something comes. ``owed`` counts for each task the messages that are not written yet, and is
changed under ``_counting``, which nobody holds for long. ``_written`` belongs to the thread; ``_stuck`` is what it was
when somebody waited in vain.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from queue import Empty, SimpleQueue
from typing import Any, TextIO

import attrs

from polyexec import blocking
from polyexec.stored import Buffer

NAMES = ("stdout", "stderr")

_PATIENCE = 2.0
"""Seconds that a result waits for what its task has printed, if the driver's stream takes nothing."""

_AT_ONCE = 256
"""Messages that are written together at most."""

_logger = logging.getLogger("polyexec")


@attrs.frozen(eq=False)
class _Printed:
    task_id: int
    name: str
    pid: int
    host: str
    lines: Sequence[tuple[int, str]]


class Display:
    """Writes lines to ``sys.stdout`` and ``sys.stderr`` as they are at that moment."""

    def __init__(self) -> None:
        self._items: SimpleQueue[_Printed | Callable[[], object] | None] = SimpleQueue()
        self._counting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._host = socket.gethostname()
        self.owed: Counter[int] = Counter()
        self._written = 0
        self._stuck = -1

    def show(
        self,
        call_id: int,
        buffers: Sequence[Buffer],
        task_id: int,
        name: str,
        pid: int,
        host: str,
        lines: Sequence[tuple[int, str]],
    ) -> None:
        """Write what a task has printed, soon. From any thread; returns at once.

        Args:
            call_id: who has printed it.
            buffers: none.
            task_id: of its task.
            name: of its task.
            pid: of its process.
            host: of its machine.
            lines: index of a stream, and one line or several.
        """
        with self._counting:
            self.owed[task_id] += 1
            self._items.put(_Printed(task_id, name, pid, host, lines))
            self._start()

    def when_written(self, job: Callable[[], object]) -> None:
        """Call a function, in the thread that writes, when all is written that came before."""
        with self._counting:
            self._items.put(job)
            self._start()

    def settle(self) -> None:
        """Wait until all is written that has come so far. Blocks, but not long if the streams take nothing."""
        if self._thread is threading.current_thread() or self._stuck == self._written:
            return
        written = threading.Event()
        self.when_written(written.set)
        if not blocking.wait(written, _PATIENCE):
            self._stuck = self._written

    def stop(self, patience: float | None) -> None:
        """Write what has come, and end the thread; wait for it.

        Args:
            patience: seconds to wait at most, None for as long as it takes.
        """
        if self._thread is not None:
            self._items.put(None)
            if self._thread is not threading.current_thread():
                self._thread.join(patience)

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="polyexec-display", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while True:
            batch = [self._items.get()]
            with contextlib.suppress(Empty):
                while len(batch) < _AT_ONCE:
                    batch.append(self._items.get_nowait())
            printed: list[_Printed] = []
            for item in batch:
                if isinstance(item, _Printed):
                    printed.append(item)
                    continue
                self._write(printed)
                if item is None:
                    return
                item()
            self._write(printed)
            # Nothing of a task may live until the next one comes (O5).
            del batch, item

    def _write(self, printed: list[_Printed]) -> None:
        for number, text in _joined(self._marked(printed)):
            stream = getattr(sys, NAMES[number])
            if stream is not None:
                _write(stream, text)
        with self._counting:
            self._written += len(printed)
            self.owed.subtract(item.task_id for item in printed)
            for item in printed:
                if not self.owed[item.task_id]:
                    del self.owed[item.task_id]
        printed.clear()

    def _marked(self, printed: Sequence[_Printed]) -> Iterator[tuple[int, str]]:
        for item in printed:
            elsewhere = "" if item.host == self._host else f", host={item.host}"
            mark = f"({item.name} pid={item.pid}{elsewhere}) " if item.name else f"(pid={item.pid}{elsewhere}) "
            for number, text in item.lines:
                yield number, mark + text.replace("\n", f"\n{mark}") + "\n"


def _joined(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Join what goes to one stream, as far as the order allows."""
    current, texts = 0, list[str]()
    for number, text in lines:
        if texts and number != current:
            yield current, "".join(texts)
            texts = []
        current = number
        texts.append(text)
    if texts:
        yield current, "".join(texts)


def _write(stream: TextIO, text: str) -> None:
    try:
        with _beside_bars(stream):
            try:
                stream.write(text)
            except UnicodeEncodeError:
                encoding = stream.encoding or "ascii"
                stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            stream.flush()
    except Exception:
        # Its reader is gone, or it is closed, or it is the user's own and raises; the tasks are not to blame.
        _logger.debug("what tasks have printed cannot be written", exc_info=True)


def _beside_bars(stream: TextIO) -> AbstractContextManager[Any]:
    """Take away tqdm's progress bars while something is written, if the program has any.

    Others, such as rich's, replace ``sys.stdout`` while they are shown, and see to it themselves.
    """
    tqdm = getattr(sys.modules.get("tqdm"), "tqdm", None)
    if tqdm is None or not getattr(tqdm, "_instances", None):
        return contextlib.nullcontext()
    beside: AbstractContextManager[Any] = tqdm.external_write_mode(file=stream)
    return beside

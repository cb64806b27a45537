"""Showing how far a map is: a bar of ``rich`` on a terminal, plain lines elsewhere.

All bars of a process are rows of one display, because a terminal has room for one. State: ``_rows`` is changed with
``_changing`` held; a bar itself belongs to the thread that iterates.
"""

from __future__ import annotations

import atexit
import operator
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from polyexec.errors import SpecificationError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_REDRAW = 0.05
_PAUSE = 1.0
_PAUSE_LIMIT = 30.0
"""Seconds between two lines at least; doubled after each, up to the limit."""


class Report(Protocol):
    """Who is told how far a map is."""

    def open(self) -> None:
        """Learn that it begins."""

    def told(self, count: int) -> None:
        """Learn how many results there are."""

    def close(self) -> None:
        """Learn that there will be no more; called once."""


def length_of(iterables: Sequence[Iterable[Any]]) -> int | None:
    """Give how many items iterables have together, up to the shortest.

    Args:
        iterables: not consumed.

    Returns:
        The number; None if one of them does not say, as generators and endless ones do not.
    """
    lengths = [operator.length_hint(iterable, -1) for iterable in iterables]
    return None if -1 in lengths else min(lengths, default=None)


def report_for(wish: Any, title: str, total: int | None, *, at_terminal: bool) -> Report | None:
    """Choose who is told how far a map is.

    Args:
        wish: True, a function that takes the number of results, or False or None for nobody.
        title: what is mapped.
        total: number of items, None if unknown.
        at_terminal: standard error may be a terminal of the user's, so that a bar can be drawn.

    Returns:
        The report, not shown yet; None for nobody.

    Raises:
        SpecificationError: the wish is something else.
    """
    if wish is None or wish is False:
        return None
    if callable(wish):
        return _Told(wish)
    if wish is not True:
        raise SpecificationError(f"map: progress= takes True, or a function of the number of results, not {wish!r}")
    if at_terminal and sys.stderr is not None and sys.stderr.isatty() and _has_rich():
        return _Bar(title, total)
    return _Lines(title, total)


def _has_rich() -> bool:
    try:
        import rich.progress  # noqa: F401
    except ImportError:
        return False
    return True


class _Told:
    def __init__(self, function: Callable[[int], object]) -> None:
        self._function = function

    def open(self) -> None:
        """Say nothing yet."""

    def told(self, count: int) -> None:
        self._function(count)

    def close(self) -> None:
        """Say nothing: the function has been told all."""


class _Lines:
    def __init__(self, title: str, total: int | None) -> None:
        self._title = title
        self._total = total
        self._count = 0
        self._began = self._last = 0.0
        self._pause = _PAUSE
        self._step = 0

    def open(self) -> None:
        self._began = self._last = time.monotonic()

    def told(self, count: int) -> None:
        self._count = count
        passed = time.monotonic() - self._last
        if passed >= self._pause or (passed >= _PAUSE and self._tenth() > self._step):
            self._pause = min(2 * self._pause, _PAUSE_LIMIT)
            self._write("")

    def close(self) -> None:
        self._write("" if self._total is None or self._count >= self._total else ", ended early")

    def _tenth(self) -> int:
        return 10 * self._count // self._total if self._total else 0

    def _write(self, remark: str) -> None:
        self._last, self._step = time.monotonic(), self._tenth()
        minutes, seconds = divmod(int(self._last - self._began), 60)
        share = "" if self._total is None else f"/{self._total} {100 * self._count // max(1, self._total)}%"
        if sys.stderr is not None:
            print(f"map {self._title}: {self._count}{share} {minutes:02}:{seconds:02}{remark}", file=sys.stderr)
            sys.stderr.flush()


_changing = threading.Lock()
_rows: list[Progress] = []
"""The display, once for each bar in it."""


class _Bar:
    def __init__(self, title: str, total: int | None) -> None:
        self._title = title
        self._total = total
        self._count = 0
        self._drawn = 0.0
        self._display: Progress
        self._row: TaskID

    def open(self) -> None:
        from rich.markup import escape

        with _changing:
            self._display = _rows[0] if _rows else _new_display()
            _rows.append(self._display)
            self._row = self._display.add_task(escape(f"map {self._title}"), total=self._total)

    def told(self, count: int) -> None:
        self._count = count
        # To update the display takes as long as a short item does.
        if time.monotonic() - self._drawn > _REDRAW:
            self._draw()

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        self._display.update(self._row, completed=self._count)

    def close(self) -> None:
        self._draw()
        self._display.stop_task(self._row)
        with _changing:
            if self._display in _rows:
                _rows.remove(self._display)
                if not _rows:
                    _end(self._display)


def _new_display() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn
    from rich.progress import TimeElapsedColumn as Elapsed
    from rich.progress import TimeRemainingColumn as Remaining

    columns = (BarColumn(), MofNCompleteColumn(), TaskProgressColumn(), Elapsed(), Remaining())
    display = Progress(TextColumn("{task.description}"), *columns, console=Console(stderr=True))
    display.start()
    # A map whose error ends the program is not closed any more, and the terminal's cursor would stay hidden.
    atexit.register(_end_at_exit)
    return display


def _end(display: Progress) -> None:
    atexit.unregister(_end_at_exit)
    display.stop()


def _end_at_exit() -> None:
    with _changing:
        displays = set(_rows)
        _rows.clear()
    for display in displays:
        display.stop()

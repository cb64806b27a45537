"""A pytest plugin that says why a test stands still, before ``pytest-timeout`` ends it.

Use it by ``pytest -p polyexec.testing.watchdog``, or by ``pytest_plugins = ["polyexec.testing.watchdog"]`` in the
``conftest.py`` of the root folder. Shortly before the time limit of a test is over it writes to standard error, beside
whatever pytest captures, a dump of each executor that is open in this process, and the stacks of other processes that
the test has started and that offer theirs. A test that ends in time after all is not harmed.

State: the thread alone knows what it watches; it is told by a queue.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Generator
from queue import Empty, SimpleQueue
from typing import Any

import pytest

from polyexec import dump_text, dumping, stacks
from polyexec.on_signal import write
from polyexec.testing import watch

_TIMEOUT = 5.0
"""Seconds that an executor gets to answer."""

_LEAD = 10.0
"""Seconds before the end of a test's time at most; a quarter of the time if that is less."""

_key = pytest.StashKey["Watchdog"]()


class Watchdog:
    """Writes a report unless it is told in time that a test has ended.

    Args:
        descriptor: where to write; closed at the end.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._orders: SimpleQueue[tuple[str, float | None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._watch, name="polyexec-watchdog", daemon=True)
        self._thread.start()

    def watch(self, name: str, limit: float) -> None:
        """Watch a test.

        Args:
            name: of the test.
            limit: seconds that it may take.
        """
        self._orders.put((name, limit))

    def rest(self) -> None:
        """Watch nothing."""
        self._orders.put(("", None))

    def end(self) -> None:
        """End the thread."""
        self._orders.put(None)
        self._thread.join(_TIMEOUT)
        os.close(self._descriptor)

    def _watch(self) -> None:
        name, limit = "", None
        while True:
            try:
                order = self._orders.get(timeout=None if limit is None else limit - min(_LEAD, limit / 4))
            except Empty:
                write(report(f"{name} has nearly used up its {limit:g} s"), self._descriptor)
                limit = None
                continue
            if order is None:
                return
            name, limit = order


def report(headline: str) -> str:
    """Write what is known of this process, its executors, and the processes that come from it."""
    line = "=" * dump_text.WIDTH
    texts = [line, f"polyexec watchdog: {headline}", "", dumping.all_as_text(_TIMEOUT)]
    shown = "\n".join(texts)
    others = [process for process in watch.family() if f"process {process.pid} " not in shown]
    found = stacks.ask((process.pid for process in others), _TIMEOUT)
    for process in sorted(others, key=lambda other: other.pid):
        answer = found[process.pid]
        what = f"; {answer.status}" if answer.status else ""
        texts += ["", f"process {process.pid}, child of {process.parent}: {process.command[:200]}{what}"]
        texts += dump_text.stacks_as_text(answer.threads)
    return "\n".join([*texts, line])


def pytest_configure(config: pytest.Config) -> None:
    """Start the thread; it writes where pytest itself does, since nothing is captured yet."""
    if not config.pluginmanager.has_plugin("timeout"):
        raise pytest.UsageError('polyexec.testing.watchdog needs pytest-timeout: pip install "polyexec[testing]"')
    config.stash[_key] = Watchdog(os.dup(2))


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the thread."""
    found = config.stash.get(_key, None)
    if found is not None:
        found.end()


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> Generator[None, Any, Any]:
    """Watch a test that has a time limit."""
    if settings.timeout and settings.timeout > 0:
        item.config.stash[_key].watch(item.nodeid, float(settings.timeout))
    return (yield)


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_timeout_cancel_timer(item: pytest.Item) -> Generator[None, Any, Any]:
    """Watch it no more."""
    item.config.stash[_key].rest()
    return (yield)

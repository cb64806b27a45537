"""Plain calls on real processes, where threads, signals and deaths meet them at the worst moment."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import polyexec
from polyexec.plain_calls import PlainCalls

LIMIT = 20.0
"""Seconds after which whatever has not come is taken to hang."""


@pytest.fixture
def ex() -> Iterator[polyexec.Executor]:
    executor = polyexec.connect("process?workers=2")
    yield executor
    # In a thread, because a test that has failed may have left it so that it never ends.
    closing = threading.Thread(target=executor.close, kwargs={"cancel_pending": True}, daemon=True)
    closing.start()
    closing.join(LIMIT)
    assert not closing.is_alive(), "close hangs"


def same(value: Any) -> Any:
    return value


def spin_and_ask(seconds: float) -> None:
    """Compute for a while, then ask the executor for something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    if seconds:
        polyexec.current().put(1)


def spin(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def in_time(function: Callable[[], Any]) -> Any:
    """Call something that might hang, in a thread."""
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(function()), daemon=True)
    thread.start()
    thread.join(LIMIT)
    assert answers, "no answer"
    return answers[0]


@pytest.mark.parametrize("seed", range(3))
def test_cancel_of_a_call_behind_one_that_asks_for_something(ex: polyexec.Executor, seed: int) -> None:
    """C8: the call is being taken back when the one before it becomes an ordinary task; whoever cancels is answered."""
    chance = random.Random(seed)
    for _ in range(100):
        for function in (spin_and_ask, spin, time.sleep):
            ex.submit(function, 0).result(LIMIT)
    for _ in range(20):
        ahead = ex.submit(spin_and_ask, 0.008), ex.submit(spin, 0.003)
        behind = ex.submit(time.sleep, 3 * LIMIT)
        spin(0.004 + chance.random() * 0.004)
        assert in_time(behind.cancel)
        # It may have started elsewhere, and then ends in a moment.
        with pytest.raises(polyexec.TaskCancelled):
            behind.result(LIMIT)
        for future in ahead:
            future.result(LIMIT)
        for _ in range(20):
            ex.submit(spin_and_ask, 0).result(LIMIT)
            ex.submit(spin, 0).result(LIMIT)


class _ClosesMeanwhile:
    """Closes an executor while it is being pickled."""

    def __init__(self, executor: polyexec.Executor) -> None:
        self.executor = executor

    def __reduce__(self) -> Any:
        in_time(lambda: self.executor.close() or True)  # type: ignore[func-returns-value]  # None would be no answer
        return int, ()


def test_submit_that_is_overtaken_by_close(ex: polyexec.Executor) -> None:
    """S8, S9: whoever was about to submit gets an error, or a Future that ends."""
    ex.submit(same, 1).result(LIMIT)
    try:
        future = ex.submit(same, _ClosesMeanwhile(ex))
    except polyexec.ExecutorClosed:
        return
    with pytest.raises(polyexec.ExecutorClosed):
        future.result(LIMIT)


def test_submit_from_the_depth_of_a_recursion(ex: polyexec.Executor) -> None:
    """S8, F3: a submit that finds no room on the stack fails alone; no other call is lost."""

    def dive(levels: int) -> None:
        if levels:
            dive(levels - 1)
        else:
            submit_for_a_while()

    def submit_for_a_while() -> None:
        end = time.monotonic() + 0.02
        while time.monotonic() < end:
            with contextlib.suppress(RecursionError):
                ex.submit(same, 0)

    def in_a_thread() -> bool:
        for left in 4 * tuple(range(8, 40)):
            others = [ex.submit(time.sleep, 0.0005) for _ in range(50)]
            with contextlib.suppress(RecursionError):
                dive(sys.getrecursionlimit() - left)
            for other in others:
                errors.append(other.exception(LIMIT))
        return True

    errors: list[BaseException | None] = []
    ex.submit(same, 1).result(LIMIT)
    # In a thread of its own, where no handler of a signal keeps it from being the loop.
    assert in_time(in_a_thread)
    assert not any(errors)


FORKING = """
import os, signal, threading, time
import polyexec
from polyexec.plain_calls import PlainCalls

# Jobs in the background of a shell start with SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)

def fork():
    pid = os.fork()
    if not pid:
        print(signal.getsignal(signal.SIGINT) is signal.default_int_handler, flush=True)
        os._exit(0)
    os.waitpid(pid, 0)

with polyexec.connect("process?workers=1") as ex:
    slow = ex.submit(time.sleep, 0.5)
    thread = threading.Timer(0.1, fork)
    thread.start()
    slow.result()
    thread.join()
"""


def test_ctrl_c_in_a_child_that_is_forked_while_the_main_thread_waits() -> None:
    """F15, W7: the child has the program's own handler of SIGINT."""
    done = subprocess.run([sys.executable, "-c", FORKING], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "True\n"


def shout(number: int) -> int:
    print("number", number)
    return number


def test_calls_that_print_stay_plain(
    ex: polyexec.Executor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ordinary: list[Any] = []
    monkeypatch.setattr(PlainCalls, "_promote", lambda plain, call: ordinary.append(call))
    futures = [ex.submit(shout, number) for number in range(500)]
    assert [future.result(LIMIT) for future in futures] == list(range(500))
    assert not ordinary
    numbers = [int(line.rpartition(" ")[2]) for line in capsys.readouterr().out.splitlines()]
    assert sorted(numbers) == list(range(500))


def shout_later(folder: Path) -> None:
    def wait() -> None:
        while not (folder / "gate").exists():
            time.sleep(0.001)
        print("of no task", flush=True)
        (folder / "done").touch()

    threading.Thread(target=wait, daemon=True).start()
    print("of a task")


def test_what_a_task_leaves_behind_prints_as_its_process_does(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with polyexec.connect("process?workers=1") as ex:
        ex.options(name="task").submit(shout_later, tmp_path).result(LIMIT)
        (tmp_path / "gate").touch()
        end = time.monotonic() + LIMIT
        while not (tmp_path / "done").exists() and time.monotonic() < end:
            time.sleep(0.001)
    marked, bare = capfd.readouterr().out.splitlines()
    assert marked.startswith("(task pid=")
    assert bare == "of no task"


def leave_a_thread(marker: str) -> int:
    """Start a thread that asks for something now and then, until a file exists; its task does not wait for it."""

    def ask() -> None:
        end = time.monotonic() + LIMIT
        while not os.path.exists(marker) and time.monotonic() < end:
            with contextlib.suppress(polyexec.ExecutorClosed):
                polyexec.current().put(1)

    threading.Thread(target=ask, daemon=True).start()
    return os.getpid()


def name_of_backend() -> str:
    return polyexec.current().info.backend


def test_a_thread_that_outlives_its_call_speaks_for_no_other(tmp_path: Path) -> None:
    """S8: calls that come later in the same process ask in their own names."""
    marker = tmp_path / "enough"
    with polyexec.connect("process?workers=1") as ex:
        ex.submit(leave_a_thread, str(marker)).result(LIMIT)
        assert {ex.submit(name_of_backend).result(LIMIT) for _ in range(300)} == {"process"}
        marker.touch()

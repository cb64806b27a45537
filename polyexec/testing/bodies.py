"""Functions and classes that the suite runs as tasks; workers import them from here."""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import polyexec
from polyexec.testing.tools import TASK_LIMIT, Gate, Marks


def give(*values: Any) -> Any:
    """Return the only argument, or all of them."""
    return values[0] if len(values) == 1 else values


def echo(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return all arguments."""
    return args, kwargs


def add(left: Any, right: Any) -> Any:
    """Add."""
    return left + right


def mark(marks: Marks, text: Any) -> Any:
    """Leave a mark."""
    marks.add(text)
    return text


def pass_gate(marks: Marks, gate: Gate, name: Any = "") -> Any:
    """Mark the start, wait for a gate, mark the end."""
    marks.add(f"start {name}")
    gate.wait()
    marks.add(f"end {name}")
    return name


def pid_at(marks: Marks, gate: Gate) -> int:
    """Wait for a gate in a worker, and give its process id."""
    marks.add(f"start {os.getpid()}")
    gate.wait()
    return os.getpid()


def append_to(items: Any, item: Any) -> Any:
    """Change the argument in place."""
    items.append(item)
    return items


def total_of(array: Any) -> float:
    """Sum an array."""
    return float(array.sum())


def fail(error: BaseException) -> None:
    """Raise."""
    raise error


def fail_after(marks: Marks, gate: Gate, error: BaseException) -> None:
    """Raise once a gate is open."""
    marks.add("start")
    gate.wait()
    raise error


def leave(code: Any) -> None:
    """Call ``sys.exit``."""
    sys.exit(code)


def die(marks: Marks, how: str) -> None:
    """End this process at once: by a signal's name, or ``exit N``."""
    marks.add(f"start {os.getpid()}")
    if how.startswith("exit"):
        os._exit(int(how.split()[1]))
    os.kill(os.getpid(), signal.Signals[how])
    time.sleep(TASK_LIMIT)


def die_first(marks: Marks, times: int) -> int:
    """Kill this process in the first ``times`` runs."""
    marks.add(f"start {os.getpid()}")
    if marks.count("start") <= times:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(TASK_LIMIT)
    return marks.count("start")


def die_if(marks: Marks, number: int, killer: int) -> int:
    """Kill this process if the number is the killer's."""
    marks.add(f"start {number}")
    if number == killer:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(TASK_LIMIT)
    return number


def fork_and_return(marks: Marks) -> str:
    """Fork; the child returns like its parent, as if it were the task."""
    marks.add(f"start {os.getpid()}")
    child = os.fork()
    if child == 0:
        return "the child's"
    os.waitpid(child, 0)
    return "the task's"


def beat(marks: Marks, last: Gate | None = None) -> None:
    """Leave marks for ever; when interrupted, wait for a gate in ``finally``."""
    marks.add(f"start {os.getpid()}")
    end = time.monotonic() + TASK_LIMIT
    try:
        while time.monotonic() < end:
            marks.add("beat")
            time.sleep(0.005)
    except Exception as error:
        marks.add(f"swallowed {type(error).__name__}")
    except BaseException as error:
        marks.add(f"saw {type(error).__name__}")
        raise
    finally:
        marks.add("finally")
        if last is not None:
            last.wait()
        marks.add("end")


def sleep_in_c(marks: Marks) -> None:
    """Block in a system call."""
    marks.add(f"start {os.getpid()}")
    time.sleep(TASK_LIMIT)


def compute_in_c(marks: Marks) -> bytes:
    """Compute in C for minutes."""
    marks.add(f"start {os.getpid()}")
    return hashlib.pbkdf2_hmac("sha256", b"password", b"salt", 200_000_000)


def read_pipe(marks: Marks, path: str) -> bytes:
    """Read a named pipe to its end, blocked in C until somebody has written."""
    try:
        marks.add(f"start {os.getpid()}")
        with open(path, "rb", buffering=0) as file:
            return file.read(100)
    finally:
        marks.add("finally")


def family_of_beats(marks: Marks, count: int, gate: Gate) -> Any:
    """Submit children that beat, and wait for them."""
    children = [polyexec.current().submit(beat, marks) for _ in range(count)]
    marks.add("parent")
    gate.wait()
    return [child.result() for child in children]


def grandparent_of_beats(marks: Marks, gate: Gate) -> Any:
    """Submit a child that submits children that beat."""
    return polyexec.current().submit(family_of_beats, marks, 1, gate).result()


def descend(levels: int) -> int:
    """Wait for a task that waits for a task, and so on."""
    if levels == 0:
        return 0
    return 1 + int(polyexec.current().submit(descend, levels - 1).result())


def spread_out(count: int) -> int:
    """Wait for many tasks."""
    executor = polyexec.current()
    return sum(future.result() for future in [executor.submit(add, index, 0) for index in range(count)])


def make_child(value: Any) -> Any:
    """Return a Future made here, inside a list, and the value that it will have."""
    return [polyexec.current().submit(give, value), value]


def ask(*futures: Any) -> list[Any]:
    """Wait for Futures that were passed inside containers."""
    return [item.result() for future in futures for item in (future if isinstance(future, list) else [future])]


def held_by_parent(marks: Marks, options: dict[str, Any]) -> str:
    """Wait for a child that needs what this task holds."""
    child = polyexec.current().options(**options).submit(mark, marks, "child ran")
    try:
        child.result()
    except polyexec.DeadlockError as error:
        return f"deadlock: {error}"
    return "no deadlock"


def variables(*names: str) -> list[str | None]:
    """Give environment variables."""
    return [os.environ.get(name) for name in names]


def visible_devices(marks: Marks, partners: int, name: Any) -> str:
    """Give the visible GPUs, while as many tasks as ``partners`` run at the same time."""
    marks.add(f"start {name}")
    marks.wait_for("start", partners)
    return os.environ.get("CUDA_VISIBLE_DEVICES", "")


def use(marks: Marks, amounts: dict[str, float]) -> None:
    """Mark what is held from begin to end."""
    text = " ".join(f"{name}={amount}" for name, amount in amounts.items())
    marks.add(f"begin {text}")
    time.sleep(0.002)
    marks.add(f"end {text}")


def chosen_backend() -> tuple[str, str, str]:
    """Give the backend as a task sees it."""
    info = polyexec.current().info
    return info.backend, info.engine, info.chosen_by


def thread_name() -> str:
    """Give the name of the thread that runs the task."""
    return threading.current_thread().name


def crash_in_c() -> None:
    """Read from address 0."""
    ctypes.string_at(0)


def overwrite(array: Any) -> str:
    """Try to write into an array."""
    try:
        array[0] = 1
    except ValueError as error:
        return f"refused: {error}"
    return "written"


def pick(number: int, gate: Gate, blocked: int) -> int:
    """Return the number; one number waits for a gate."""
    if number == blocked:
        gate.wait(15)
    return number


def fail_at(number: int, culprit: int, marks: Marks) -> int:
    """Return the number; one number fails."""
    marks.add(f"item {number}")
    if number == culprit:
        raise ValueError(f"item {number}")
    return number


def fail_or_beat(number: int, culprit: int, marks: Marks) -> int:
    """Return numbers below the culprit, fail at the culprit once a later one beats, beat above it."""
    if number == culprit:
        marks.wait_for("beat")
        raise ValueError(f"item {number}")
    if number > culprit:
        beat(marks)
    return number


def count_for_ever(marks: Marks) -> Iterator[int]:
    """Yield numbers without end; mark each before it is given, and how it ended."""
    how = "end"
    try:
        for number in itertools.count():
            marks.add(f"item {number}")
            yield number
    except BaseException as error:
        how = type(error).__name__
        raise
    finally:
        marks.add(f"finally {how}")


def divide_down(start: int, stop: int = 0) -> Iterator[float]:
    """Yield 6 divided by numbers down to the last; fails at 0."""
    for number in range(start, stop - 1, -1):
        yield 6 / number


def fail_before_item(marks: Marks, number: int) -> Iterator[int]:
    """Yield numbers up to one, before which the first run fails."""
    marks.add(f"run {number}")
    for item in range(number + 1):
        if item == number and marks.count(f"run {number}") == 1:
            raise ValueError(f"item {number}")
        yield item


def items_behind_gate(marks: Marks, gate: Gate, name: str) -> Iterator[str]:
    """Mark the start, wait for a gate, and yield the name."""
    yield pass_gate(marks, gate, name)

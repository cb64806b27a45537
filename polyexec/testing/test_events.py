"""Chapter E: what is told about tasks, and to whom."""

from __future__ import annotations

import json
import os
import socket
import threading
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import polyexec
from polyexec import Event, EventKind, Executor, trace
from polyexec.testing import bodies
from polyexec.testing.helpers import LIMIT, error_of, hold, require_processes
from polyexec.testing.marks import clause
from polyexec.testing.target import Target
from polyexec.testing.tools import Gate, Marks

SUBMITTED, READY, RUNNING = EventKind.SUBMITTED, EventKind.READY, EventKind.RUNNING
RETRIED, DONE, FAILED, CANCELLED = EventKind.RETRIED, EventKind.DONE, EventKind.FAILED, EventKind.CANCELLED


def where() -> str:
    """Say in which process this runs, as events do."""
    return f"{socket.gethostname()}:{os.getpid()}"


@pytest.fixture
def watched(ex: Executor) -> Executor:
    """The shared executor, recorded from now on."""
    ex.events().close()
    return ex


def story(ex: Executor, name: str) -> list[Event]:
    """Give the events of the only task of a name; they must be those of one task, in an order that makes sense."""
    found = [event for event in ex.events(timeout=0) if event.name == name]
    assert len({event.task_id for event in found}) == 1, found
    times = [event.time for event in found]
    assert times == sorted(times)
    return found


def kinds(events: list[Event]) -> list[EventKind]:
    """Give the kinds of events."""
    return [event.kind for event in events]


@clause("E1")
@pytest.mark.parametrize("way", ["plain", "ordinary"])
def test_the_story_of_a_task(watched: Executor, way: str) -> None:
    """E1 A task is submitted, ready, running, done; attempt, worker, node, seconds and bytes are told."""
    name, options = f"story {way}", {} if way == "plain" else {"timeout": LIMIT}
    named = watched.options(name=name, **options)

    def body(data: bytes) -> Any:
        return where(), data

    worker, data = named.submit(body, b"x" * 1000).result(LIMIT)
    events = story(watched, name)
    assert kinds(events) == [SUBMITTED, READY, RUNNING, DONE]
    assert [event.attempt for event in events] == [0, 0, 1, 1]
    end = events[-1]
    assert end.worker == worker
    assert end.node in {node.id for node in watched.resources().nodes}
    assert end.seconds > 0
    assert end.bytes_in >= len(data)
    assert end.bytes_out >= len(data)
    assert (end.parent, end.error) == (None, "")


@clause("E1")
def test_bytes_of_stored_values(watched: Executor) -> None:
    """E1 The bytes of values that are kept in a store are told: what a task depends on, and what it returns."""
    stored = watched.put(b"x" * 3_000_000)
    assert len(watched.options(name="doubles").submit(bodies.add, stored, stored).result(LIMIT)) == 6_000_000
    end = story(watched, "doubles")[-1]
    assert 6_000_000 <= end.bytes_in < 6_100_000
    assert 6_000_000 <= end.bytes_out < 6_100_000


@clause("E1")
def test_failures_are_told(watched: Executor) -> None:
    """E1 A failed task says why; one whose dependency has failed, or is cancelled, never runs."""
    failed = watched.options(name="culprit").submit(bodies.fail, LookupError("its own text"))
    dependent = watched.options(name="dependent").submit(bodies.give, failed)
    assert isinstance(error_of(dependent), LookupError)
    events = story(watched, "culprit")
    assert kinds(events) == [SUBMITTED, READY, RUNNING, FAILED]
    assert "its own text" in events[-1].error
    assert events[-1].worker
    events = story(watched, "dependent")
    assert kinds(events) == [SUBMITTED, FAILED]
    assert "its own text" in events[-1].error
    assert events[-1].attempt == 0


@clause("E1")
def test_attempts_are_told(watched: Executor, marks: Marks) -> None:
    """E1 Each attempt that is followed by another is told as retried, with its error and its worker."""

    def body() -> str:
        marks.add("start")
        if marks.count("start") < 3:
            raise ConnectionError(f"attempt {marks.count('start')}")
        return where()

    retried = watched.options(name="retries", retries=3, retry_on=ConnectionError)
    worker = retried.submit(body).result(LIMIT)
    events = story(watched, "retries")
    assert kinds(events) == [SUBMITTED, *[READY, RUNNING, RETRIED] * 2, READY, RUNNING, DONE]
    ends = [event for event in events if event.kind in (RETRIED, DONE)]
    assert [event.attempt for event in ends] == [1, 2, 3]
    assert [event.error.partition(": ")[2] for event in ends] == ["attempt 1", "attempt 2", ""]
    assert all(event.worker for event in ends)
    assert ends[-1].worker == worker


@clause("E1")
def test_time_limits_are_told(watched: Executor, marks: Marks) -> None:
    """E1 A task that is ended by its time limit has failed, on the worker that ran it."""
    limited = watched.options(name="limited", timeout=0.3).submit(bodies.beat, marks)
    assert isinstance(error_of(limited), polyexec.TaskTimeout)
    events = story(watched, "limited")
    assert kinds(events) == [SUBMITTED, READY, RUNNING, FAILED]
    assert "TaskTimeout" in events[-1].error


@clause("E1")
def test_cancelled_tasks_are_told(watched: Executor, gate: Gate, marks: Marks, inline: bool) -> None:
    """E1 A task that is cancelled before it starts is never told to run; one that runs is told to have run."""
    if inline:
        return
    running = watched.options(name="interrupted").submit(bodies.beat, marks)
    marks.wait_for("")
    held = hold(watched, marks, gate, int(watched.resources().available.cpus))
    waiting = watched.options(name="too early").submit(bodies.give, 1)
    assert watched.cancel(waiting)
    assert watched.cancel(running)
    gate.open()
    watched.wait([running, *held], timeout=LIMIT)
    assert [kind for kind in kinds(story(watched, "too early")) if kind is not READY] == [SUBMITTED, CANCELLED]
    assert kinds(story(watched, "interrupted")) == [SUBMITTED, READY, RUNNING, CANCELLED]


@clause("E1")
def test_a_dying_worker_is_told(watched: Executor, marks: Marks, target: Target) -> None:
    """E1 A task whose worker dies has failed, and the worker is named."""
    require_processes(target)
    victim = watched.options(name="told victim").submit(bodies.die, marks, "SIGKILL")
    assert isinstance(error_of(victim), polyexec.WorkerDied)
    events = story(watched, "told victim")
    assert kinds(events) == [SUBMITTED, READY, RUNNING, FAILED]
    assert events[-1].worker.rpartition(":")[2] == marks.values("start")[0]
    assert "WorkerDied" in events[-1].error


@clause("E1")
def test_parents_are_told(watched: Executor) -> None:
    """E1 Tasks that a task has submitted name it as their parent."""

    def body() -> Any:
        inner = polyexec.current().options(name="told child")
        return inner.submit(where).result(LIMIT)

    worker = watched.options(name="told parent").submit(body).result(LIMIT)
    parent, child = story(watched, "told parent"), story(watched, "told child")
    assert kinds(parent) == kinds(child) == [SUBMITTED, READY, RUNNING, DONE]
    assert {event.parent for event in child} == {parent[0].task_id}
    assert child[-1].worker == worker


@clause("E1")
@pytest.mark.parametrize("way", ["plain", "ordinary"])
def test_what_runs_is_told_while_it_runs(watched: Executor, gate: Gate, marks: Marks, target: Target, way: str) -> None:
    """E1 That a task runs, and where, is told while it does, to all who read; nobody has to wait for its end."""
    name, options = f"live {way}", {} if way == "plain" else {"timeout": 2 * LIMIT}
    told: list[Event] = []

    def read() -> None:
        told.append(next(event for event in watched.events(timeout=LIMIT) if _runs(event, name)))

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    running = watched.options(name=name, **options).submit(bodies.pid_at, marks, gate)
    read()
    assert running.done() == target.capabilities.inline
    gate.open()
    for reader in readers:
        reader.join(LIMIT)
    assert len(told) == 3
    if target.capabilities.places_calls or not target.capabilities.processes:
        assert {event.worker.rpartition(":")[2] for event in told} == {str(running.result(LIMIT))}


def _runs(event: Event, name: str) -> bool:
    return event.kind is RUNNING and event.name == name


@clause("E1")
def test_reserved_nodes_are_told(watched: Executor) -> None:
    """E1 A task that runs in a reservation tells the real node and worker; the reservation itself is no task."""
    with watched.reserve([{"cpus": 1}]) as group:
        worker = group[0].options(name="told in reserve").submit(where).result(LIMIT)
    end = story(watched, "told in reserve")[-1]
    assert end.worker == worker
    assert end.node in {node.id for node in watched.resources().nodes}
    assert "reserve" not in {event.name for event in watched.events(timeout=0)}


@clause("E1")
def test_numbers_by_function(watched: Executor) -> None:
    """E1 ``stats`` counts the tasks of each function, how long they ran and waited, and what they moved."""
    named = watched.options(name="counted")
    futures = [named.submit(bodies.add, number, 1) for number in range(20)]
    assert [future.result(LIMIT) for future in futures] == list(range(1, 21))
    assert isinstance(error_of(named.submit(bodies.add, 1, "text")), TypeError)
    stats = watched.stats()
    (found,) = [one for one in stats.functions if one.name == "counted"]
    assert (found.count, found.done, found.failed, found.cancelled, found.retried) == (21, 20, 1, 0, 0)
    assert 0 < found.body.p50 <= found.body.p99
    assert 0 <= found.queueing.p50 <= found.queueing.p99
    assert found.bytes_in > 0 < found.bytes_out
    (line,) = [line for line in str(stats).splitlines() if line.startswith("counted")]
    assert line.split()[:4] == ["counted", "21", "20", "1"]


@clause("E1")
def test_tasks_cannot_read(watched: Executor) -> None:
    """E1 Events are the driver's: a task that asks for them is told so."""

    def body(method: str) -> Any:
        return getattr(polyexec.current(), method)()

    for method in ("events", "stats"):
        error = error_of(watched.submit(body, method))
        assert isinstance(error, polyexec.SpecificationError)
        assert "driver" in str(error)


@clause("E1")
def test_a_trace_is_written(watched: Executor, tmp_path: Path) -> None:
    """E1 The trace has a slice for each attempt on the track of its worker, in the format of Chrome and Perfetto."""
    named = watched.options(name="traced")
    futures = [named.submit(where) for _ in range(30)]
    workers = Counter(future.result(LIMIT) for future in futures)
    trace.write(tmp_path / "trace.json", watched)
    with open(tmp_path / "trace.json", encoding="utf-8") as file:
        items = json.load(file)["traceEvents"]
    names = {item["pid"]: item["args"]["name"] for item in items if item["name"] == "process_name"}
    slices = [item for item in items if item["ph"] == "X"]
    found = Counter(names[item["pid"]].split()[1] for item in slices if item["name"] == "traced")
    assert found == workers
    _check_trace(items, slices)


def _check_trace(items: list[dict[str, Any]], slices: list[dict[str, Any]]) -> None:
    """Check that tracks are named, that slices of one do not overlap, and that what begins ends."""
    named = {(item["pid"], item["tid"]) for item in items if item["name"] == "thread_name"}
    ends: dict[tuple[int, int], float] = {}
    for item in sorted(slices, key=lambda item: item["ts"]):
        track = item["pid"], item["tid"]
        assert track in named
        assert item["dur"] >= 0
        assert item["ts"] >= ends.get(track, 0.0) - 0.01
        ends[track] = item["ts"] + item["dur"]
    begun = {item["id"]: item["ts"] for item in items if item["ph"] == "b"}
    ended = {item["id"]: item["ts"] for item in items if item["ph"] == "e"}
    assert begun.keys() == ended.keys()
    assert all(ended[number] >= begun[number] for number in begun)


@clause("E2")
def test_the_dashboard_is_there_or_not_named(ex: Executor) -> None:
    """E2 The dashboard's address answers; where the engine runs none, none is named."""
    assert ex.info.dashboard is None or _answers(ex.info.dashboard)
    assert ex.submit(lambda: polyexec.current().info.dashboard).result(LIMIT) == ex.info.dashboard


def _answers(address: str) -> bool:
    url = address if "://" in address else f"http://{address}"
    with urllib.request.urlopen(url, timeout=LIMIT) as response:
        return bool(response.status == 200)


@clause("E3")
def test_nothing_is_recorded_unless_asked_for(single: Executor) -> None:
    """E3 Nobody has asked for events, so nothing was recorded; those who ask for numbers are told what to do."""
    assert single.submit(bodies.add, 1, 1).result(LIMIT) == 2
    with pytest.raises(polyexec.SpecificationError, match="events=True"):
        single.stats()
    with pytest.raises(polyexec.SpecificationError, match="events=True"):
        trace.write(os.devnull, single)

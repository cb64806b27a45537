"""E1, E3: recording, and reading what was recorded."""

from __future__ import annotations

import itertools
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import polyexec
from polyexec import Event, EventKind, Executor, trace
from polyexec.events import EventStream
from polyexec.plain import PlainCall, PlainFunction
from polyexec.recording import Recorder
from polyexec.records import Task
from polyexec.session import Entry
from polyexec.statistics import Spread

from .gates import LIMIT
from .recorded import check_story

LOCAL = ["serial", "threads?workers=2", "process?workers=2"]


@pytest.fixture(params=LOCAL)
def recorded(request: pytest.FixtureRequest) -> Iterator[Executor]:
    with polyexec.connect(request.param, events=True) as executor:
        yield executor


def test_readers_are_told_of_the_end(recorded: Executor) -> None:
    """E1 Who waits for events goes on when the executor is closed; what was recorded can be read afterwards."""
    streams = [recorded.events() for _ in range(3)]
    told: list[list[Event]] = [[] for _ in streams]
    readers = [threading.Thread(target=lambda index=index: told[index].extend(streams[index])) for index in range(3)]
    for reader in readers:
        reader.start()
    assert recorded.submit(divmod, 7, 2).result(LIMIT) == (3, 1)
    recorded.close()
    for reader in readers:
        reader.join(LIMIT)
        assert not reader.is_alive()
    assert told[0] == told[1] == told[2] == list(recorded.events())
    assert [event.kind.value for event in told[0]] == ["submitted", "ready", "running", "done"]
    assert recorded.stats().functions[0].count == 1


def test_a_stream_can_be_closed(recorded: Executor) -> None:
    """E1 Closing a stream ends the wait of whoever reads it, and no other's."""
    with recorded.events() as stream:
        reader = threading.Thread(target=lambda: list(stream))
        reader.start()
    reader.join(LIMIT)
    assert not reader.is_alive()
    assert recorded.submit(abs, -1).result(LIMIT) == 1
    assert len(list(recorded.events(timeout=0))) == 4


def test_a_stream_goes_on_where_it_ended(recorded: Executor) -> None:
    """E1 With a timeout a stream can be asked again and again."""
    stream = recorded.events(timeout=0)
    assert list(stream) == []
    for number in range(3):
        assert recorded.submit(abs, -number).result(LIMIT) == number
        assert [event.kind.value for event in stream] == ["submitted", "ready", "running", "done"]
    assert stream.dropped == 0


def test_an_executor_that_was_not_recorded() -> None:
    """E3 Who asks too late is told what to do."""
    with polyexec.connect("serial") as executor:
        pass
    with pytest.raises(polyexec.ExecutorClosed, match="events=True"):
        executor.events()
    with pytest.raises(polyexec.SpecificationError, match="events=True"):
        executor.stats()


def test_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """E1 ``POLYEXEC_EVENTS`` turns recording on, the argument decides against it, and a bad value is refused."""
    monkeypatch.setenv("POLYEXEC_EVENTS", "1")
    with polyexec.connect("serial") as executor:
        assert executor.stats().functions == ()
    with polyexec.connect("serial", events=False) as executor, pytest.raises(polyexec.SpecificationError):
        executor.stats()
    monkeypatch.setenv("POLYEXEC_EVENTS", "perhaps")
    with pytest.raises(polyexec.SpecificationError, match="POLYEXEC_EVENTS"):
        polyexec.connect("serial")


def test_old_rows_go() -> None:
    """E1 Only the latest rows are kept; readers are told how many they have missed."""
    recorder = Recorder(None, "test", pid=1, data={}, limit=10_000)
    function = PlainFunction(1, b"", "name")
    for number in range(50_000):
        call = PlainCall(Entry(number << 20, "name"), function, b"", 1.0)
        recorder.append((call.id, "name", call.submitted, call.submitted + 1, 0.5, 1, "node", 1, 40))
        if not number % 100:
            recorder.tidy()
    stream = EventStream(recorder, 0)
    first = next(stream)
    assert 10_000 <= 50_000 - stream.dropped < 20_000
    assert first.task_id == stream.dropped << 20
    recorder.end()
    assert sum(1 for _ in stream) == 4 * (50_000 - stream.dropped) - 1


def test_a_task_that_is_handed_out_again() -> None:
    """E1 Each wait for a worker is told, and a beginning that nobody has told is made up before the end."""
    recorder = Recorder(None, "test", pid=0, data={})
    task = Task(1 << 20, "task", {})
    recorder.submitted(task, 10)
    recorder.ready(task)
    recorder.handed(task.id, 1, "node", 5, runs=False)
    recorder.ready(task)
    recorder.handed(task.id, 1, "node", 5, runs=False)
    recorder.placed(task.id, 77)
    recorder.placed(task.id, 78)
    recorder.end()
    found = list(EventStream(recorder, None))
    assert [event.kind.value for event in found] == ["submitted", "ready", "ready", "running"]
    assert (found[-1].worker, found[-1].bytes_in) == ("node:77", 15)


def test_spread() -> None:
    """E1 Percentiles are values that were measured."""
    assert Spread.of([]) == Spread()
    assert Spread.of([3.0]) == Spread(3.0, 3.0, 3.0)
    many = Spread.of([float(number) for number in range(101)])
    assert (many.mean, many.p50, many.p99) == (50.0, 50.0, 99.0)


def _event(kind: EventKind, time: float, task_id: int, **more: Any) -> Event:
    return Event(kind, time, task_id, f"task {task_id}", **more)


def _a_run(task_id: int, submitted: float, began: float, ended: float, end: EventKind = EventKind.DONE) -> list[Event]:
    kinds = (EventKind.SUBMITTED, EventKind.READY, EventKind.RUNNING)
    times = (submitted, submitted, began)
    seconds = ended - began
    first = [_event(kind, time, task_id, worker="host:1") for kind, time in zip(kinds, times, strict=True)]
    return [*first, _event(end, ended, task_id, worker="host:1", attempt=1, seconds=seconds)]


def _written(path: Path, events: list[Event]) -> list[dict[str, Any]]:
    trace.write(path, events)
    with open(path, encoding="utf-8") as file:
        found: list[dict[str, Any]] = json.load(file)["traceEvents"]
    return found


REQUIRED = {
    "M": {"name", "pid", "tid", "args"},
    "X": {"name", "cat", "ts", "dur", "pid", "tid"},
    "b": {"name", "cat", "ts", "id", "pid", "tid"},
    "e": {"name", "cat", "ts", "id", "pid", "tid"},
}
"""What the Trace Event Format document asks of each kind of item."""


def test_the_format_of_traces(tmp_path: Path) -> None:
    """E1 Items are as the Trace Event Format document has them."""
    events = [
        *_a_run(1, 100.0, 101.0, 102.0),
        *_a_run(2, 100.0, 102.0, 103.0, EventKind.FAILED),
        _event(EventKind.SUBMITTED, 100.0, 3),
        _event(EventKind.CANCELLED, 100.5, 3),
        *_a_run(4, 100.0, 103.0, 104.0)[:3],
    ]
    items = _written(tmp_path / "trace.json", events)
    for item in items:
        assert item.keys() >= REQUIRED[item["ph"]]
        assert isinstance(item["pid"], int)
        assert isinstance(item["tid"], int)
        assert all(isinstance(item.get(name, 0.0), (int, float)) for name in ("ts", "dur"))
    slices = {item["name"]: item for item in items if item["ph"] == "X"}
    assert {name: (item["ts"], item["dur"]) for name, item in slices.items()} == {
        "task 1": (1e6, 1e6),
        "task 2": (2e6, 1e6),
        "task 4": (3e6, 0.0),
    }
    assert [slices[name]["args"]["state"] for name in sorted(slices)] == ["done", "failed", "not ended"]
    waits = {item["name"]: item["ts"] for item in items if item["ph"] == "e"}
    assert waits == {"task 1": 1e6, "task 2": 2e6, "task 3": 0.5e6, "task 4": 3e6}


def test_tracks_of_traces(tmp_path: Path) -> None:
    """E1 What ran at the same time has lanes of its own; what was only noted late does not."""
    together = [_event(EventKind.RUNNING, 1.0, 1, worker="host:1"), _event(EventKind.RUNNING, 1.5, 2, worker="host:1")]
    submitted = [_event(EventKind.SUBMITTED, 0.5, number) for number in (1, 2)]
    ends = [_event(EventKind.DONE, 3.0 + number, number, worker="host:1") for number in (1, 2)]
    items = _written(tmp_path / "together.json", [*submitted, *together, *ends])
    assert sorted(item["tid"] for item in items if item["ph"] == "X") == [1, 2]
    late = [event for number in range(5) for event in _a_run(number, 0.0, 9.0 + number / 100, 10.0 + number / 100)]
    items = _written(tmp_path / "late.json", late)
    slices = sorted((item["ts"], item["ts"] + item["dur"], item["tid"]) for item in items if item["ph"] == "X")
    assert {lane for *_, lane in slices} == {1}
    assert all(before[1] <= after[0] + 1 for before, after in itertools.pairwise(slices))


def test_the_trace_of_all_executors(tmp_path: Path) -> None:
    """E1 By default a trace has all executors that were recorded, also the one that was closed last."""
    with polyexec.connect("serial", events=True) as executor:
        executor.options(name="of the closed").submit(abs, 1)
    label = executor.info.backend
    del executor
    with polyexec.connect("threads?workers=1", events=True) as executor:
        executor.options(name="of the open").submit(abs, 1).result(LIMIT)
        trace.write(os.fspath(tmp_path / "all.json"))
    items = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))["traceEvents"]
    assert {"of the closed", "of the open"} <= {item["name"] for item in items if item["ph"] == "X"}
    assert any(label in item["args"]["name"] for item in items if item["name"] == "process_name")


@pytest.mark.parametrize("specification", LOCAL)
def test_many_tasks_have_their_stories(specification: str) -> None:
    """E1 Of thousands of tasks of all kinds each has a story that makes sense."""
    with polyexec.connect(specification, events=True) as executor:
        plain = [executor.submit(abs, -number) for number in range(1000)]
        dependent = [executor.submit(abs, future) for future in plain[::20]]
        failing = [executor.submit(divmod, number, 0) for number in range(50)]
        timed = [executor.options(timeout=LIMIT).submit(abs, 1) for _ in range(20)]
        cancelled = [executor.cancel(future) for future in plain[-5:]]
        executor.wait([*plain, *dependent, *failing, *timed])
        stream = executor.events(timeout=0)
        stories: dict[int, list[Event]] = {}
        for event in stream:
            stories.setdefault(event.task_id, []).append(event)
    assert len(stories) == 1000 + 50 + 50 + 20
    for story in stories.values():
        check_story(story)
    ends = [story[-1].kind for story in stories.values()]
    assert ends.count(EventKind.FAILED) == 50
    assert ends.count(EventKind.CANCELLED) >= sum(cancelled)

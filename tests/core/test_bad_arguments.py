"""What is wrong in a call is said at once, in one line, by an error of the expected type that says what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import polyexec
from polyexec import Executor, SpecificationError

from .gates import Gate, pass_through

Call = Callable[[Any], object]


class Cell:
    """An actor with one method."""

    __slots__ = ("kept",)

    @property
    def shown(self) -> int:
        return 1

    def value(self) -> int:
        return 1


def letters() -> Iterator[str]:
    yield from "ab"


WRONG: dict[str, tuple[Call, str]] = {
    "actor of a number": (lambda ex: ex.actor(3), "actor takes a class"),
    "actor of a function": (lambda ex: ex.actor(len), "actor takes a class"),
    "options of a method": (lambda ex: ex.actor(Cell).value.options(cpus=1), "valid are name, num_returns, timeout"),
    "restarts of a task": (lambda ex: ex.options(restarts=1).submit(int), "retries="),
    "concurrency of a stream": (lambda ex: ex.options(concurrency=2).stream(letters), "are for actors"),
    "retries of an actor": (lambda ex: ex.options(retries=1).actor(Cell), "restarts="),
    "kill a number": (lambda ex: ex.kill(3), "handle of an actor, not 3"),
    "kill a task": (lambda ex: ex.kill(ex.put(1)), "cancel stops tasks"),
    "cancel an actor": (lambda ex: ex.cancel(ex.actor(Cell)), "ended by kill"),
    "cancel a stream": (lambda ex: ex.cancel(ex.stream(letters)), "a stream by its own cancel"),
    "wait for an actor": (lambda ex: ex.wait([ex.actor(Cell)]), "expected Futures"),
    "stream of a number": (lambda ex: ex.stream(3), "3 is not callable"),
    "stream of a generator": (lambda ex: ex.stream(letters()), "is not callable"),
    "stream of no iterable": (lambda ex: next(ex.stream(int)), "an iterable, but int is none"),
    "map of a number": (lambda ex: ex.map(3, [1]), "3 is not callable"),
    "map of nothing": (lambda ex: ex.map(int), "at least one iterable"),
    "reserve nothing": (lambda ex: ex.reserve([]), "at least one bundle"),
    "reserve a number": (lambda ex: ex.reserve(3), "a list of bundles"),
    "reserve one bundle": (lambda ex: ex.reserve({"cpus": 1}), "a list of bundles"),
    "reserve a wrong name": (lambda ex: ex.reserve([{"cpu": 1}]), "valid are cpus, gpus, memory, resources"),
    "reserve a wrong amount": (lambda ex: ex.reserve([{"cpus": "x"}]), "not an amount of cpus"),
    "reserve by a wrong strategy": (lambda ex: ex.reserve([{"cpus": 1}], strategy="PACK"), "one of pack, spread"),
    "reserve within a text": (lambda ex: ex.reserve([{"cpus": 1}], timeout="x"), "number of seconds"),
    "wait for a text": (lambda ex: ex.wait([], timeout="x"), "number of seconds"),
    "complete within a text": (lambda ex: ex.as_completed([], timeout="x"), "number of seconds"),
    "map within a text": (lambda ex: ex.map(int, [1], timeout="x"), "number of seconds"),
    "events within a text": (lambda ex: ex.events(timeout="x"), "number of seconds"),
    "stats of nothing": (lambda ex: ex.stats(), "events=True"),
    "a trace of a number": (lambda ex: polyexec.trace.write("unused.json", 3), "an executor or events, not 3"),  # type: ignore[arg-type]
}


def one_line(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text
    assert len(text) < 300
    return text


@pytest.mark.parametrize("what", WRONG)
def test_wrong_arguments_give_one_line(ex: Executor, what: str) -> None:
    call, says = WRONG[what]
    with pytest.raises(SpecificationError) as caught:
        call(ex)
    assert says in one_line(caught.value)


def test_a_result_within_a_text(ex: Executor, gate: Gate) -> None:
    with pytest.raises(SpecificationError, match="number of seconds"):
        ex.submit(pass_through, gate).result("x")  # type: ignore[arg-type]


def test_what_belongs_to_another_executor(ex: Executor) -> None:
    """Futures and handles say so, and name themselves."""
    with polyexec.connect("threads?workers=1") as other:
        handle, future, stream = other.actor(Cell), other.put(1), other.stream(letters)
        for call in (
            lambda: ex.kill(handle),
            lambda: ex.submit(print, handle),
            lambda: ex.actor(Cell).value(future),
            lambda: ex.stream(print, next(stream)),
        ):
            with pytest.raises(SpecificationError, match="belongs to another executor"):
                call()
        with pytest.raises(SpecificationError, match=r"ActorHandle .* of 'Cell'"):
            ex.kill(handle)


def test_what_is_asked_of_a_handle(ex: Executor) -> None:
    """A name that is none, and the habits of others, are attribute errors that say what to do."""
    handle = ex.actor(Cell)
    for name in ("nothing", "kept", "shown"):
        with pytest.raises(AttributeError, match=f"no method '{name}' that can be called; it has value"):
            getattr(handle, name)
    with pytest.raises(AttributeError, match=r"call it, value\(\.\.\.\), for a Future"):
        handle.value.remote()


def test_results_that_must_be_run_first(ex: Executor) -> None:
    """S4: who returns a generator or a coroutine is told how to run it."""

    async def wait() -> None: ...

    with pytest.raises(polyexec.SerializationError, match="stream runs a generator"):
        ex.submit(letters).result()

    def begin() -> Any:
        begun = wait()
        begun.close()
        return begun

    with pytest.raises(polyexec.SerializationError, match=r"asyncio\.run"):
        ex.submit(begin).result()


def test_bundles_are_numbered(ex: Executor) -> None:
    with ex.reserve([{"cpus": 1}]) as group:
        for wrong in ("a", slice(0, 1), None):
            with pytest.raises(TypeError, match=r"by its number, group\[0\]"):
                group[wrong]  # type: ignore[index]
        with pytest.raises(IndexError, match="none with the index 1"):
            group[1]


def test_a_stream_is_its_own_culprit(ex: Executor) -> None:
    """S4: the object that refuses is named, not something inside it that would refuse as well."""
    with pytest.raises(polyexec.SerializationError, match="pass the Futures that it gives") as caught:
        ex.submit(print, [ex.stream(letters)])
    assert caught.value.culprit == "argument 0[0] (Stream)"


@pytest.mark.parametrize("wrong", [3, "no", 0])
def test_connect_with_wrong_events(wrong: Any) -> None:
    with pytest.raises(SpecificationError, match="events= is True or False"):
        polyexec.connect("threads", events=wrong)


def test_the_variable_that_turns_events_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYEXEC_EVENTS", "abc")
    with pytest.raises(SpecificationError, match="POLYEXEC_EVENTS: 'abc' is not one of 1, true, yes, 0, false, no"):
        polyexec.connect("threads")

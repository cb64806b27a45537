from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from typing import Any

import pytest

import polyexec
from polyexec import envelope, outcome, payload
from polyexec.spi import Stored, Tag
from polyexec.stored import Flag, Head
from polyexec.wire import Attempt, Setup, Slot


class NoUplink:
    def request(self, message: Stored) -> tuple[bytes, Sequence[Stored]]:
        raise AssertionError("nothing is asked of the driver")

    def tell(self, message: Stored) -> None:
        raise AssertionError("nothing is told to the driver")


class Interrupts:
    """Interrupts at one place, as an exception that may arrive anywhere would."""

    def __init__(self, *places: str) -> None:
        self.places = list(places)
        self.ends = 0

    def _reach(self, place: str) -> None:
        if place in self.places:
            self.places.remove(place)
            raise polyexec.Interrupted

    def begin(self, call_id: int) -> None:
        self._reach("begin")

    def end(self, call_id: int) -> bool:
        self.ends += 1
        self._reach("end")
        return "late" not in self.places


def make_setup(**changes: Any) -> bytes:
    fields = {
        "executor_id": "test",
        "sys_path": (),
        "working_directory": "/",
        "initializer": None,
        "exclusive": False,
        "inline": False,
        "driver": f"{socket.gethostname()}:{os.getpid()}",
    }
    return Setup(**{**fields, **changes}).encode()


def run(
    function: Any, *args: Any, interrupts: Interrupts | None = None, values: Sequence[Stored] = (), **changes: Any
) -> Stored:
    fields: dict[str, Any] = {"call_id": 1, "task_id": 1, "number": 1, "name": "task", "threads": 1, "env": {}}
    fields |= {"gpu_ids": None, "items": (None,) * len(values), "num_returns": 1, "retry_on": None, "announce": False}
    attempt = Attempt(**{**fields, **changes})
    interrupts = interrupts or Interrupts("late")
    body = payload.dump((function, args, {}))
    return envelope.run(attempt.encode(), body, values, NoUplink(), interrupts, setup=make_setup())


def tag_of(stored: Stored) -> Tag:
    return Head.decode(stored.data)[0].tag


def test_a_value() -> None:
    assert outcome.decode(run(divmod, 7, 2), "task") == (3, 1)


@pytest.mark.parametrize("place", ["begin", "end"])
def test_an_interrupt_at_the_edge_of_the_guarded_part(place: str) -> None:
    """C2, F12: wherever it arrives the outcome is a cancellation, and nothing escapes into the worker."""
    interrupts = Interrupts(place)
    assert tag_of(run(divmod, 7, 2, interrupts=interrupts)) is Tag.CANCELLED
    assert interrupts.ends == (2 if place == "end" else 1)


def raise_interrupted() -> None:
    raise polyexec.Interrupted


def test_a_task_that_raises_the_interrupt_itself() -> None:
    """F4: that is no cancellation."""
    with pytest.raises(polyexec.RemoteError, match="Interrupted"):
        outcome.decode(run(raise_interrupted), "task")


def test_an_interrupt_counts_more_than_the_value() -> None:
    """C8: who was told True sees a cancelled Future."""
    assert tag_of(run(divmod, 7, 2, interrupts=Interrupts())) is Tag.CANCELLED


@pytest.mark.parametrize("code", [0, 3, None, "text", ("a", "tuple")])
def test_exit(code: Any) -> None:
    """F4: the code arrives if it is one that ``sys.exit`` is usually given, else its text."""
    with pytest.raises(polyexec.TaskExited) as caught:
        outcome.decode(run(sys.exit, code), "task")
    assert caught.value.code == (repr(code) if isinstance(code, tuple) else code)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, GeneratorExit, BaseException])
def test_other_base_exceptions(kind: type[BaseException]) -> None:
    """F4."""
    with pytest.raises(polyexec.RemoteError, match=kind.__name__):
        outcome.decode(run(_raise, kind), "task")


def _raise(kind: type[BaseException]) -> None:
    raise kind("text")


@pytest.mark.parametrize(("kind", "flags"), [(KeyError, Flag.RETRYABLE), (OSError, Flag.NONE)])
def test_the_outcome_says_whether_it_may_be_tried_again(kind: type[Exception], flags: Flag) -> None:
    """F5: ``retry_on`` is asked on the worker, where the type is known."""
    stored = run(_raise, kind, retry_on=payload.dump_bytes((LookupError,)))
    assert Head.decode(stored.data)[0].flags == flags


@pytest.mark.parametrize(("value", "found"), [((1, 2, 3), "3 values"), (5, "a int, not an iterable"), ("", "0 values")])
def test_a_wrong_number_of_values(value: Any, found: str) -> None:
    """S11."""
    with pytest.raises(polyexec.SpecificationError, match=found):
        outcome.decode(run(_same, value, num_returns=2), "task")


def _same(value: Any) -> Any:
    return value


def test_a_dependency_takes_its_place() -> None:
    """S5: the value, or the item of it that the Future stands for."""
    values = [outcome.encode_value("task", "text"), outcome.encode_value("task", (10, 20))]
    stored = run(_pair, Slot(0), Slot(1), values=values, items=(None, 1))
    assert outcome.decode(stored, "task") == ("text", 20)


def _pair(first: Any, second: Any) -> tuple[Any, Any]:
    return first, second


class BadlyLoading:
    def __reduce__(self) -> tuple[Any, ...]:
        return _explode, ()


def _explode() -> None:
    raise RuntimeError("does not load")


@pytest.mark.parametrize("as_value", [True, False])
def test_arguments_that_do_not_load(as_value: bool) -> None:
    """F12: the task fails, and says which argument."""
    values = [Stored(outcome.encode_value("put", BadlyLoading()).data)] if as_value else []
    stored = run(_same, Slot(0) if as_value else BadlyLoading(), values=values)
    with pytest.raises(polyexec.SerializationError, match="does not load") as caught:
        outcome.decode(stored, "task")
    assert caught.value.stage == "argument-load"
    assert caught.value.culprit == ("argument 0" if as_value else "the arguments")


def test_a_result_that_cannot_be_serialised() -> None:
    """F7."""
    with pytest.raises(polyexec.SerializationError, match=r"result\['x'\]\[1\] \(generator\)"):
        outcome.decode(run(_unpicklable), "task")


def _unpicklable() -> Any:
    return {"x": [0, (number for number in range(3))]}


def test_a_worker_of_another_version_is_refused() -> None:
    """D3: both versions are named."""
    setup = make_setup().replace(polyexec.__version__.encode(), b"9.9.9")
    stored = envelope.prepare(setup)
    assert stored is not None
    assert tag_of(stored) is Tag.BROKEN
    with pytest.raises(polyexec.BackendBroken, match=r"9\.9\.9"):
        outcome.decode(stored, "task")


def test_a_failing_initializer() -> None:
    """F14: with its cause."""
    setup = make_setup(initializer=payload.dump_bytes(_explode))
    stored = envelope.prepare(setup)
    assert stored is not None
    error = outcome.decode_error(stored)
    assert isinstance(error, polyexec.BackendBroken)
    assert isinstance(error.__cause__, RuntimeError)


def test_variables_are_set_for_the_task_alone() -> None:
    """D1, R5."""
    stored = run(_environment, env={"POLYEXEC_TEST": "here"}, gpu_ids=("1", "GPU-3"))
    assert outcome.decode(stored, "task") == ("here", "1,GPU-3")
    assert "POLYEXEC_TEST" not in os.environ


def _environment() -> tuple[str | None, str | None]:
    return os.environ.get("POLYEXEC_TEST"), os.environ.get("CUDA_VISIBLE_DEVICES")

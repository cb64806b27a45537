from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import attrs
import pytest

import polyexec
from polyexec import Executor, Resources, outcome
from polyexec.driver import DriverSession
from polyexec.errors import ObjectLost
from polyexec.runtime import Runtime
from polyexec.session import NO_INFO
from polyexec.spi import Call, Capabilities, Node, Stored

from .gates import LIMIT
from .stub import StubBackend, StubConfig


class LosingBackend(StubBackend):
    """Two nodes, one of which may lose what it keeps. A thread runs all calls; a value is the text of how it was made.

    ``starts`` counts how often each task has run.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(loses_values=True)

    def begin(self) -> None:
        self.starts: dict[str, int] = {}
        self.numbers = 0
        self.guard = threading.Lock()
        self.chance = random.Random(0)
        self.often = 0.0
        threading.Thread(target=self.work, daemon=True).start()

    def nodes(self) -> Sequence[Node]:
        return tuple(Node(name, name, Resources(2)) for name in ("near", "far"))

    def _keep(self, stored: Stored) -> object:
        with self.guard:
            self.numbers += 1
            self.kept[self.numbers] = stored
            return self.numbers

    def get(self, handle: object) -> Stored:
        with self.guard:
            if handle in self.kept:
                return self.kept[handle]
        raise ObjectLost("a task", "its node is gone")

    def free(self, handle: object) -> None:
        with self.guard:
            self.kept.pop(handle, None)

    def lose(self, share: float = 1.0) -> None:
        """Lose some of what is kept."""
        with self.guard:
            for handle in [handle for handle in self.kept if self.chance.random() < share]:
                del self.kept[handle]

    def work(self) -> None:
        while True:
            call = self.calls.get()
            if call.id < 0:
                return
            self.lose(self.often)
            self._run(call)

    def _run(self, call: Call) -> None:
        parts, lost = [], []
        for value in call.values:
            try:
                stored = value.stored if value.stored is not None else self.get(value.handle)
                parts.append(outcome.decode(stored, call.name))
            except ObjectLost:
                lost.append(value.handle)
        if lost:
            self.host.missing(call.id, lost, "its node is gone")
            return
        self.starts[call.name] = self.starts.get(call.name, 0) + 1
        self.finish(call, f"{call.name}({','.join(parts)})")

    def settle(self, ex: Executor, count: int) -> None:
        """Wait until as many values are kept; each question goes once through the loop."""
        end = time.monotonic() + LIMIT
        while len(self.kept) != count and time.monotonic() < end:
            ex.resources()
        assert len(self.kept) == count

    def end(self) -> None:
        self.calls.put(attrs.evolve(_NOTHING))


_NOTHING = Call(-1, -1, "", b"", Stored(b""), (), None)  # type: ignore[arg-type]


@pytest.fixture
def backend() -> LosingBackend:
    return LosingBackend(StubConfig(keeps=True))


@pytest.fixture
def ex(backend: LosingBackend) -> Iterator[Executor]:
    runtime = Runtime(backend, f"losing{id(backend)}")
    backend.open(runtime)
    backend.begin()
    executor = Executor(DriverSession(backend, runtime, attrs.evolve(NO_INFO, engine="stub", workers=2)))
    yield executor
    executor.close(cancel_pending=True)
    backend.end()


def submit(ex: Executor, name: str, *needed: Any, retries: int = 3) -> Any:
    """Submit a call that the backend runs in its own way."""
    return ex.options(name=name, retries=retries).submit(print, *needed)


def test_a_lost_value_is_made_again(ex: Executor, backend: LosingBackend) -> None:
    """O7: when somebody asks for it."""
    future = submit(ex, "a")
    ex.wait([future], timeout=LIMIT)
    backend.lose()
    assert future.result(LIMIT) == "a()"
    assert (backend.starts["a"], future.attempts) == (2, 2)


def test_a_call_waits_for_what_it_has_lost(ex: Executor, backend: LosingBackend) -> None:
    """O7: and runs once."""
    a, b = submit(ex, "a"), submit(ex, "b")
    ex.wait([a, b], timeout=LIMIT)
    backend.lose()
    both = [submit(ex, name, a, b) for name in ("c", "d")]
    assert [future.result(LIMIT) for future in both] == ["c(a(),b())", "d(a(),b())"]
    assert backend.starts == {"a": 2, "b": 2, "c": 1, "d": 1}
    assert [future.attempts for future in both] == [1, 1]


@pytest.mark.parametrize("length", [3, 3000])
def test_a_chain_is_made_again_from_its_beginning(ex: Executor, backend: LosingBackend, length: int) -> None:
    """O7: also what nobody but the chain has referred to, however long it is; and that takes no memory before."""
    future = submit(ex, "0")
    for number in range(1, length):
        future = submit(ex, str(number % 7), future)
    ex.wait([future], timeout=LIMIT)
    backend.settle(ex, 1)
    backend.lose()
    text = future.result(LIMIT)
    assert text.count("(") == length
    assert sum(backend.starts.values()) == 2 * length


@pytest.mark.parametrize(("retries", "times"), [(0, 1), (2, 3)])
def test_it_is_made_again_as_often_as_the_task_may_run(
    ex: Executor, backend: LosingBackend, retries: int, times: int
) -> None:
    """O7: then the error names the task."""
    future = submit(ex, "a", retries=retries)
    for number in range(times):
        assert submit(ex, f"reader {number}", future).result(LIMIT) == f"reader {number}(a())"
        backend.lose()
    for _ in range(2):
        with pytest.raises(ObjectLost, match="'a'") as caught:
            future.result(LIMIT)
        assert caught.value.task == "a"
    assert backend.starts["a"] == times


def test_who_needs_what_cannot_be_made_again_fails(ex: Executor, backend: LosingBackend) -> None:
    """O7, S6: so does what depends on it, by the name of the task that had made it."""
    a = submit(ex, "a", retries=0)
    ex.wait([a], timeout=LIMIT)
    backend.lose()
    b = submit(ex, "b", a)
    c = submit(ex, "c", b)
    for future in (b, c, a):
        error = future.exception(LIMIT)
        assert isinstance(error, ObjectLost)
        assert error.task == "a"
    assert backend.starts == {"a": 1}


def test_what_was_put_is_lost_for_good(ex: Executor, backend: LosingBackend) -> None:
    """O7: with what was made from it."""
    stored = ex.put("text")
    a = submit(ex, "a", stored)
    ex.wait([a], timeout=LIMIT)
    backend.lose()
    with pytest.raises(ObjectLost, match="'put'"):
        a.result(LIMIT)


def test_several_values_of_one_task(ex: Executor, backend: LosingBackend) -> None:
    """O7: are made again together, also if one of them has gone for good."""
    several: Any = ex.options(name="a", retries=1, num_returns=3).submit(print)
    ex.wait(several, timeout=LIMIT)
    kept = several[1:]
    del several
    ex.resources()
    backend.lose()
    assert [future.result(LIMIT) for future in kept] == ["(", ")"]
    assert backend.starts == {"a": 2}


def test_nothing_is_kept_when_the_futures_are_gone(ex: Executor, backend: LosingBackend) -> None:
    """O5: neither the values nor what they were made from."""
    future = submit(ex, "a", ex.put("text"))
    for number in range(50):
        future = submit(ex, str(number), future)
    future.result(LIMIT)
    del future
    backend.settle(ex, 0)
    session: Any = ex._session
    assert not session._runtime.objects.entries
    assert not session._runtime.lineage._origins


@pytest.mark.parametrize("seed", range(20))
def test_values_are_lost_at_random(ex: Executor, backend: LosingBackend, seed: int) -> None:
    """O7: whatever is lost whenever, each result is what it would have been."""
    backend.chance = random.Random(seed)
    backend.often = 0.01
    chance = random.Random(seed)
    texts: list[tuple[Any, str]] = []
    for number in range(60):
        needed = [chance.choice(texts) for _ in range(chance.randrange(4))] if texts else []
        future = submit(ex, str(number), *(one for one, _ in needed), retries=1000)
        texts.append((future, f"{number}({','.join(text for _, text in needed)})"))
        if chance.random() < 0.3:
            texts.pop(chance.randrange(len(texts)))
    for future, text in texts:
        assert future.result(LIMIT) == text


def test_a_lost_engine_ends_the_wait_for_what_is_made_again(ex: Executor, backend: LosingBackend) -> None:
    """F10."""
    future = submit(ex, "a")
    ex.wait([future], timeout=LIMIT)
    backend.lose()
    backend.host.broken(polyexec.BackendLost("gone"))
    with pytest.raises((polyexec.BackendLost, ObjectLost)):
        future.result(LIMIT)

"""Fixtures of the suite's tests."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from polyexec import Executor
from polyexec.testing import bodies
from polyexec.testing.drivers import Driver
from polyexec.testing.executors import Executors, until_idle
from polyexec.testing.session import failed_key, session_key
from polyexec.testing.target import SHARED_KEYS, SINGLE_KEYS, Target
from polyexec.testing.tools import Gate, Marks
from polyexec.testing.watch import Snapshot, marked_environment

_GROWTH = {"threads": 24, "processes": 16, "files": 160}
"""What a shared executor's engine may come to hold over all tests: spare workers, and what serves them."""


@pytest.fixture(scope="session")
def target(pytestconfig: pytest.Config) -> Target:
    """The backend under test."""
    found = pytestconfig.stash[session_key].target
    assert found is not None
    return found


@pytest.fixture(scope="session")
def executors(
    target: Target, pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Executors]:
    """What opens executors."""
    report = pytestconfig.stash[session_key].report

    def note_engine(engine: str) -> None:
        report.engine = engine

    tmp_path_factory.getbasetemp()
    with marked_environment():
        found = Executors(target, on_open=note_engine)
        yield found
        found.close()


@pytest.fixture(autouse=True)
def leaks(request: pytest.FixtureRequest, executors: Executors) -> Iterator[None]:
    """Check after each test that it left nothing."""
    # Where a backend declares that it leaves descriptors, F9's own variant checks what it says.
    descriptors = executors.target.declared("F9") is None
    if request.node.get_closest_marker("alone") is not None:
        executors.close_one()
        before = Snapshot.take(objects=True)
        yield
        if not request.node.stash.get(failed_key, False):
            before.check(descriptors=descriptors)
        return
    yield
    if executors.after_open is not None:
        executors.after_open.check(**_GROWTH, descriptors=descriptors)


def _shared(request: pytest.FixtureRequest, executors: Executors, executor: Executor) -> Iterator[Executor]:
    yield executor
    if request.node.stash.get(failed_key, False):
        executors.close()
    else:
        until_idle(executor)


@pytest.fixture
def ex(request: pytest.FixtureRequest, executors: Executors, leaks: None) -> Iterator[Executor]:
    """The executor that most tests share: two workers, two gpus, one license, two disks."""
    yield from _shared(request, executors, executors.shared("ex", SHARED_KEYS))


@pytest.fixture
def single(request: pytest.FixtureRequest, executors: Executors, target: Target, leaks: None) -> Iterator[Executor]:
    """The executor for tests of a single worker."""
    if not target.own_cluster:
        pytest.skip("needs an engine with one worker")
    yield from _shared(request, executors, executors.shared("single", SINGLE_KEYS))


@pytest.fixture
def last(executors: Executors, target: Target, leaks: None) -> Iterator[Executor]:
    """The executor of a single worker once more, for the one test that closes it."""
    if not target.own_cluster:
        pytest.skip("needs an engine with one worker")
    yield executors.shared("single", SINGLE_KEYS)
    executors.close()


@pytest.fixture
def opened(executors: Executors) -> Callable[..., object]:
    """Opens an executor for one test; the keys that it is called with go into the specification."""
    return executors.opened


@pytest.fixture
def new_gate(tmp_path: Path) -> Iterator[Callable[[], Gate]]:
    """Makes gates; all are opened when the test ends, so that no task waits on."""
    made: list[Gate] = []
    numbers = itertools.count()

    def make() -> Gate:
        made.append(Gate(str(tmp_path / f"gate-{next(numbers)}")))
        return made[-1]

    yield make
    for gate in made:
        gate.open()


@pytest.fixture
def gate(new_gate: Callable[[], Gate], target: Target) -> Gate:
    """A gate that is closed, but open already where a task runs before ``submit`` returns."""
    made = new_gate()
    if target.capabilities.inline:
        made.open()
    return made


@pytest.fixture
def marks(tmp_path: Path) -> Marks:
    """Where tasks leave marks."""
    return Marks(str(tmp_path / "marks"))


@pytest.fixture
def note(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Adds a remark to the test's result in the report, for example why a clause holds trivially."""
    return lambda text: record_property("note", text)


@pytest.fixture
def inline(ex: Executor, target: Target, note: Callable[[str], None]) -> bool:
    """Whether tasks run before ``submit`` returns, so that there is never anything left to cancel."""
    if target.capabilities.inline:
        future = ex.submit(bodies.add, 1, 1)
        assert future.done()
        assert ex.cancel(future) is False
        assert future.result() == 2
        note("trivially: no Future is handed out before its task has ended")
    return target.capabilities.inline


@pytest.fixture
def driver(target: Target, tmp_path: Path, executors: Executors) -> Driver:
    """Runs scripts that connect to the backend from a process of their own."""
    executors.close()
    return Driver(target, tmp_path)

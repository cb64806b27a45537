"""What the runtime makes of what a backend reports, with a backend that does what the test says."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

import polyexec
from polyexec import Executor, Resources, TaskOptions, outcome
from polyexec.spi import Death, Outcome, Tag, Verdict

from .gates import LIMIT
from .stub import StubBackend, StubConfig, connect_stub


@pytest.fixture(params=[False, True], ids=["driver", "engine"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Executor, StubBackend]]:
    """An executor and its backend; values are kept by the driver, or by the engine."""
    ex, backend = connect_stub(StubConfig(keeps=request.param))
    yield ex, backend
    backend.host.broken(polyexec.BackendLost("the test is over"))
    ex.close()


@pytest.fixture
def ex(pair: tuple[Executor, StubBackend]) -> Executor:
    return pair[0]


@pytest.fixture
def backend(pair: tuple[Executor, StubBackend]) -> StubBackend:
    return pair[1]


def test_a_value_and_an_error(ex: Executor, backend: StubBackend) -> None:
    futures = [ex.submit(abs, -1), ex.submit(abs, -2)]
    backend.finish(backend.take(), "value")
    backend.finish(backend.take(), KeyError("text"))
    assert futures[0].result(LIMIT) == "value"
    assert isinstance(futures[1].exception(LIMIT), KeyError)


def test_a_dependency_goes_from_call_to_call(ex: Executor, backend: StubBackend) -> None:
    """O4: where the engine keeps values it is handed the handle, and the driver does not see the value."""
    first = ex.submit(abs, -1)
    second = ex.submit(abs, first)
    backend.finish(backend.take(), 1)
    call = backend.take()
    (value,) = call.values
    assert (value.handle is not None, value.stored is None) == (backend.config.keeps,) * 2
    backend.finish(call, 2)
    assert second.result(LIMIT) == 2


def test_a_handle_is_freed_once_with_its_last_future(ex: Executor, backend: StubBackend) -> None:
    """O5."""
    future = ex.put([1])
    twin = ex.submit(len, future)
    call = backend.take()
    del future
    ex.resources()
    assert backend.freed.empty(), "the task still needs it"
    backend.finish(call, 1)
    assert twin.result(LIMIT) == 1
    if backend.config.keeps:
        assert backend.freed.get(timeout=LIMIT) == call.values[0].handle


def test_a_call_that_the_backend_refuses_at_once(ex: Executor, backend: StubBackend) -> None:
    """The task fails, the others do not, and nothing is held any more."""
    backend.refuses = OSError("no more processes")
    future = ex.submit(abs, -1)
    with pytest.raises(polyexec.BackendBroken, match="no more processes"):
        future.result(LIMIT)
    backend.refuses = None
    assert ex.resources().available == Resources(2)


def test_a_death_is_described(ex: Executor, backend: StubBackend) -> None:
    """F3."""
    future = ex.options(name="train").submit(abs, -1)
    backend.host.lost(backend.take().id, Death("far", 12, signal=9))
    error = future.exception(LIMIT)
    assert isinstance(error, polyexec.WorkerDied)
    assert (error.task, error.host, error.pid, error.signal) == ("train", "far", 12, 9)
    assert "memory" in error.cause


def test_a_retry_hook_changes_the_options(ex: Executor, backend: StubBackend) -> None:
    """F5: it is asked with the error, the number of the attempt and the options, and the next attempt has others."""
    asked: list[tuple[BaseException, int, float]] = []

    def hook(error: BaseException, attempt: int, options: TaskOptions) -> TaskOptions | None:
        asked.append((error, attempt, options.cpus))
        return options.evolve(cpus=2)

    future = ex.options(retries=1, retry=hook).submit(abs, -1)
    backend.host.lost(backend.take().id, Death("host", signal=9))
    call = backend.take()
    assert call.lease.held == Resources(2)
    backend.finish(call, 3)
    assert future.result(LIMIT) == 3
    assert future.attempts == 2
    (question,) = asked
    assert isinstance(question[0], polyexec.WorkerDied)
    assert question[1:] == (1, 1)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [(None, polyexec.WorkerDied), (5, polyexec.SpecificationError), (RuntimeError("hook"), RuntimeError)],
)
def test_a_retry_hook_that_gives_no_options(
    ex: Executor, backend: StubBackend, answer: Any, expected: type[BaseException]
) -> None:
    """F5: the task ends with its own error, or with that of a hook that fails."""

    def hook(*_: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    future = ex.options(retries=1, retry=hook).submit(abs, -1)
    backend.host.lost(backend.take().id, Death("host"))
    error = future.exception(LIMIT)
    assert type(error) is expected
    assert expected is polyexec.WorkerDied or isinstance(error.__cause__, polyexec.WorkerDied)


def test_workers_that_never_start(ex: Executor, backend: StubBackend) -> None:
    """F14: after a bounded number of tries the executor is broken, with the cause."""
    futures = [ex.submit(abs, -1) for _ in range(3)]
    broken = outcome.encode_error(polyexec.BackendBroken("initializer failed"), tag=Tag.BROKEN)
    while not all(future.done() for future in futures):
        if not backend.calls.empty():
            backend.host.finished(backend.take().id, Outcome.of(broken))
    for future in futures:
        assert isinstance(future.exception(LIMIT), polyexec.BackendBroken)
    with pytest.raises(polyexec.BackendBroken, match="initializer failed"):
        ex.submit(abs, -1)


def test_a_lost_engine(ex: Executor, backend: StubBackend) -> None:
    """F10: what runs, what waits and what comes fails; what is there stays."""
    running, done = ex.submit(abs, -1), ex.submit(abs, -2)
    dependent = ex.submit(abs, running)
    backend.take()
    backend.finish(backend.take(), 2)
    assert done.result(LIMIT) == 2
    backend.host.broken(polyexec.BackendLost("gone"))
    for future in (running, dependent):
        assert isinstance(future.exception(LIMIT), polyexec.BackendLost)
    with pytest.raises(polyexec.BackendLost, match="gone"):
        ex.submit(abs, -1)


def test_reports_about_what_has_ended_are_ignored(ex: Executor, backend: StubBackend) -> None:
    """C9: in whatever order they come."""
    future = ex.submit(abs, -1)
    call = backend.take()
    backend.finish(call, 1)
    backend.host.lost(call.id, Death("host"))
    backend.host.stopped(call.id, Verdict.REVOKED)
    backend.host.started(call.id)
    backend.finish(call, 2)
    assert future.result(LIMIT) == 1
    assert ex.resources().available == Resources(2)


def test_cancel_of_a_call_that_is_revoked(ex: Executor, backend: StubBackend) -> None:
    """C1, C8: it was never attempted, and what it held is free."""
    future = ex.submit(abs, -1)
    backend.take()
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(ex.cancel(future)))
    thread.start()
    backend.revoke_all()
    thread.join()
    assert answers == [True]
    assert future.cancelled()
    assert future.attempts == 0
    assert ex.resources().available == Resources(2)


def test_nodes_that_come_and_go(ex: Executor, backend: StubBackend) -> None:
    """R3, R4: what is there counts."""
    backend.alive = False
    backend.host.nodes_changed()
    assert ex.resources().total == Resources()
    with pytest.raises(polyexec.InfeasibleResources, match="there is no node"):
        ex.submit(abs, -1)
    future = ex.options(infeasible="wait").submit(abs, -1)
    backend.alive = True
    backend.host.nodes_changed()
    backend.finish(backend.take(), 1)
    assert future.result(LIMIT) == 1


def test_options_reach_the_call(ex: Executor, backend: StubBackend) -> None:
    """S10, D1: name, lease and environment."""
    ex.options(name="train", cpus=0.5, env={"A": "1"}).submit(abs, -1)
    call = backend.take()
    assert (call.name, call.env, call.lease.node, call.lease.held) == ("train", {"A": "1"}, "node", Resources(0.5))


def test_an_error_that_nobody_asks_for_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    """S12."""
    ex, backend = connect_stub(StubConfig())
    done = threading.Event()
    future = ex.submit(abs, -1)
    future.add_done_callback(lambda _: done.set())
    backend.finish(backend.take(), KeyError("text"))
    assert done.wait(LIMIT)
    del future
    ex.close()
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "nobody asked for the error of task 'abs': KeyError: 'text'" in record.message

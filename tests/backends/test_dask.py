"""What is particular to the Dask backend, on the real engine."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

import polyexec
from polyexec.testing.tools import eventually
from polyexec_dask import memory

distributed = pytest.importorskip("distributed")
psutil = pytest.importorskip("psutil")

LIMIT = 60.0


@pytest.fixture
def ex() -> Iterator[polyexec.Executor]:
    with polyexec.connect("dask?workers=1") as executor:
        yield executor


def _append(path: Path, text: str) -> str:
    with path.open("a") as file:
        file.write(f"{text}\n")
    return text


def _depth(left: int) -> int:
    return 0 if left == 0 else 1 + polyexec.current().submit(_depth, left - 1).result(LIMIT)


def test_dask_shows_the_name_of_a_task(ex: polyexec.Executor) -> None:
    def key() -> str:
        return str(distributed.worker.thread_state.key)

    assert ex.options(name="train").submit(key).result(LIMIT).startswith("train-")


def test_eight_levels_finish_with_one_worker(ex: polyexec.Executor) -> None:
    assert ex.submit(_depth, 8).result(LIMIT) == 8


@pytest.mark.parametrize(("how", "ending"), [("exit", (None, 7)), ("kill", (signal.SIGKILL, None))])
def test_what_waits_behind_a_killer_is_moved(
    ex: polyexec.Executor, tmp_path: Path, how: str, ending: tuple[int | None, int | None]
) -> None:
    started = tmp_path / "started"

    def body(number: int) -> str:
        text = _append(started, str(number))
        if number == 4 and how == "exit":
            os._exit(7)
        if number == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return text

    futures = [ex.submit(body, number) for number in range(10)]
    error = futures[4].exception(LIMIT)
    assert isinstance(error, polyexec.WorkerDied)
    assert (error.signal, error.exit_code) == ending
    assert [future.result(LIMIT) for future in futures if future is not futures[4]] == [*"012356789"]
    assert sorted(started.read_text().split()) == [*"0123456789"]


def test_a_dead_nursery_costs_only_what_runs(ex: polyexec.Executor) -> None:
    assert ex.submit(abs, -1).result(LIMIT) == 1
    (nursery,) = psutil.Process().children()
    nursery.kill()
    nursery.wait()
    assert ex.options(retries=1).submit(abs, -2).result(LIMIT) == 2


def test_a_nursery_that_does_not_kill_is_replaced(ex: polyexec.Executor, tmp_path: Path) -> None:
    """Whoever stops it, by SIGSTOP for example, must not let those hang who cancel by force, or close."""
    path = tmp_path / "nursery"

    def body() -> None:
        (tmp_path / "part").write_text(str(os.getppid()))
        os.rename(tmp_path / "part", path)
        while True:
            time.sleep(0.01)

    future = ex.submit(body)
    eventually(path.exists, "it runs", LIMIT)
    os.kill(int(path.read_text()), signal.SIGSTOP)
    assert ex.cancel(future, force=True)
    with pytest.raises(polyexec.TaskCancelled):
        future.result(LIMIT)
    assert ex.submit(abs, -1).result(LIMIT) == 1


def test_the_users_own_dask_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    before = distributed.client._get_global_client()
    with caplog.at_level(logging.WARNING), polyexec.connect("dask?workers=1") as ex:
        assert ex.submit(abs, -1).result(LIMIT) == 1
        assert distributed.client._get_global_client() is before
    assert [record for record in caplog.records if record.name.startswith("distributed")] == []


def test_two_executors_live_in_one_process() -> None:
    results: list[int] = []

    def use(number: int) -> None:
        with polyexec.connect("dask?workers=1") as ex:
            results.append(ex.submit(abs, -number).result(LIMIT))

    threads = [threading.Thread(target=use, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [1, 2]


def test_a_task_that_outgrows_its_memory_is_killed(ex: polyexec.Executor) -> None:
    def grow() -> None:
        held = []
        while True:
            held.append(bytearray(os.urandom(2**20)))

    error = ex.options(memory="50MB").submit(grow).exception(LIMIT)
    assert isinstance(error, polyexec.WorkerDied)
    assert "out of memory" in str(error)


def _put_here(size: int) -> polyexec.Future[bytes]:
    return polyexec.current().put(bytes(size))


def _pass_on(size: int) -> int:
    return polyexec.current().submit(len, bytes(size)).result(LIMIT)


def test_what_the_driver_cannot_open_is_sent(ex: polyexec.Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(place: memory.Place) -> memory.Segment:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(memory.Segment, "adopting", refuse)
    size = 4 * memory.THRESHOLD
    assert len(ex.submit(bytes, size).result(LIMIT)) == size
    assert len(ex.submit(_put_here, size).result(LIMIT).result(LIMIT)) == size
    assert ex.submit(_pass_on, size).result(LIMIT) == size


def _spoil(array: bytearray, path: Path) -> int:
    first = array[0]
    array[0] = 1
    if not path.exists():
        path.touch()
        raise ConnectionError
    return first


def test_another_attempt_sees_no_change_of_the_one_before(ex: polyexec.Executor, tmp_path: Path) -> None:
    array, patient = bytearray(4 * memory.THRESHOLD), ex.options(retries=1, retry_on=ConnectionError)
    assert patient.submit(_spoil, array, tmp_path / "tried").result(LIMIT) == 0


def test_nobody_listens() -> None:
    with pytest.raises(polyexec.BackendLost, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:1 ") as caught:
        polyexec.connect("dask?address=tcp://127.0.0.1:1&connect_timeout=1")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("specification", ["dask?address=nowhere", "dask?address=tcp://127.0.0.1:1&workers=2"])
def test_a_wrong_address_is_refused(specification: str) -> None:
    with pytest.raises(polyexec.SpecificationError, match="address"):
        polyexec.connect(specification)


@pytest.fixture
def existing(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of a cluster with one worker, under a nanny; the parameter is Dask's for the dashboard's address."""
    script = (
        "import sys, distributed\n"
        "if __name__ == '__main__':\n"
        "    cluster = distributed.LocalCluster(n_workers=1, threads_per_worker=1, host='127.0.0.1', "
        f"dashboard_address={getattr(request, 'param', None)!r})\n"
        "    print(cluster.scheduler_address, flush=True)\n"
        "    sys.stdin.read()\n"
        "    cluster.close()\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "DASK_TEMPORARY_DIRECTORY": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.stdin.close()
        process.wait(LIMIT)


def test_an_existing_cluster_starts_no_body_twice(existing: str, tmp_path: Path) -> None:
    started = tmp_path / "started"

    def body() -> None:
        _append(started, "once")
        os._exit(7)

    with polyexec.connect(f"dask?address={existing}") as ex:
        error = ex.submit(body).exception(LIMIT)
        assert isinstance(error, polyexec.WorkerDied)
        assert error.exit_code == 7
        assert ex.submit(_depth, 3).result(LIMIT) == 3
    assert started.read_text().split() == ["once"]


def test_a_lost_scheduler_fails_what_is_pending(existing: str) -> None:
    def pid_of_scheduler(dask_scheduler: object = None) -> int:
        return os.getpid()

    ex = polyexec.connect(f"dask?address={existing}")
    try:
        with distributed.Client(existing, set_as_default=False) as client:
            pid = client.run_on_scheduler(pid_of_scheduler)
        future = ex.submit(_wait_for_ever)
        os.kill(pid, signal.SIGKILL)
        assert isinstance(future.exception(LIMIT), (polyexec.BackendLost, polyexec.WorkerDied))
    finally:
        ex.close(cancel_pending=True)


def _answers(address: str | None) -> bool:
    assert address is not None
    with urllib.request.urlopen(address, timeout=LIMIT) as response:
        return bool(response.status == 200)


def test_the_dashboard_of_an_own_cluster() -> None:
    """E2 ``dashboard=1`` starts Dask's dashboard, and the address that is named answers."""
    with polyexec.connect("dask?workers=1&dashboard=1") as ex:
        assert _answers(ex.info.dashboard)


@pytest.mark.parametrize("existing", ["127.0.0.1:0"], indirect=True)
def test_the_dashboard_of_an_existing_cluster(existing: str) -> None:
    """E2 The address of an existing cluster's dashboard is named, and answers."""
    with polyexec.connect(f"dask?address={existing}") as ex:
        assert _answers(ex.info.dashboard)


def _wait_for_ever() -> None:
    threading.Event().wait()

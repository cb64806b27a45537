"""What is particular to the Ray backend, on the real engine."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import polyexec

ray = pytest.importorskip("ray")

LIMIT = 60.0


@pytest.fixture(scope="module")
def ex() -> Iterator[polyexec.Executor]:
    with polyexec.connect("ray?workers=1&log_to_driver=0") as executor:
        yield executor


def _append(path: Path, text: str) -> str:
    with path.open("a") as file:
        file.write(f"{text}\n")
    return text


def _depth(left: int) -> int:
    return 0 if left == 0 else 1 + polyexec.current().submit(_depth, left - 1).result(LIMIT)


def test_ray_shows_the_name_of_a_task(ex: polyexec.Executor) -> None:
    def name() -> str:
        return str(ray.get_runtime_context().get_task_name())

    assert ex.options(name="train").submit(name).result(LIMIT) == "train"


def test_eight_levels_finish_with_one_worker(ex: polyexec.Executor) -> None:
    assert ex.submit(_depth, 8).result(LIMIT) == 8


@pytest.mark.parametrize(("how", "ending"), [("exit", (None, 7)), ("kill", (signal.SIGKILL, None))])
def test_a_killer_among_short_calls_harms_no_other(
    ex: polyexec.Executor, tmp_path: Path, how: str, ending: tuple[int | None, int | None]
) -> None:
    started = tmp_path / "started"

    def body(number: int) -> str:
        text = _append(started, str(number))
        if number == 40 and how == "exit":
            os._exit(7)
        if number == 40:
            os.kill(os.getpid(), signal.SIGKILL)
        return text

    assert [ex.submit(body, -number).result(LIMIT) for number in range(1, 4)]
    futures = [ex.submit(body, number) for number in range(80)]
    errors = {number: future.exception(LIMIT) for number, future in enumerate(futures)}
    assert [number for number, error in errors.items() if error is not None] == [40]
    assert isinstance(errors[40], polyexec.WorkerDied)
    assert (errors[40].signal, errors[40].exit_code) == ending
    lines = started.read_text().split()
    assert sorted(lines, key=int) == ["-3", "-2", "-1", *map(str, range(80))]


def test_a_long_call_among_short_ones_holds_none_back(ex: polyexec.Executor, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)

    def body(number: int) -> int:
        if number == 10:
            gate.read_bytes()
        return number

    assert [ex.submit(body, -number).result(LIMIT) for number in range(1, 4)]
    futures = [ex.submit(body, number) for number in range(11)]
    assert [future.result(LIMIT) for future in futures[:10]] == list(range(10))
    gate.write_bytes(b"")
    assert futures[10].result(LIMIT) == 10


def test_a_blocking_system_call_is_interrupted(ex: polyexec.Executor, tmp_path: Path) -> None:
    told = tmp_path / "told"
    os.mkfifo(told)

    def body() -> None:
        told.write_bytes(b"")
        threading.Event().wait(LIMIT)

    future = ex.submit(body)
    told.read_bytes()
    assert ex.cancel(future)
    with pytest.raises(polyexec.TaskCancelled):
        future.result(LIMIT)


def test_own_instance_is_private(ex: polyexec.Executor) -> None:
    """It listens on the loopback interface alone, and its token lies in a folder that only its user can enter."""
    assert ex.info.address.startswith("127.0.0.1:")
    folders = [path for path in Path(tempfile.gettempdir()).glob("polyexec-*") if (path / "ray").exists()]
    assert folders
    for folder in folders:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / "token").stat().st_mode) == 0o600
    assert "RAY_AUTH_TOKEN_PATH" not in os.environ


def test_executors_of_one_process_share_the_instance(ex: polyexec.Executor) -> None:
    with polyexec.connect("ray?workers=2&log_to_driver=0") as second:
        assert second.info.address == ex.info.address
        assert second.submit(int, "3").result(LIMIT) == 3
    assert ex.submit(int, "4").result(LIMIT) == 4
    with pytest.raises(polyexec.SpecificationError, match="one connection in a process"):
        polyexec.connect("ray?gpus=3")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_nobody_listens(address: str) -> None:
    """One readable line, although Ray itself would try for minutes."""
    program = f"import polyexec\ntry: polyexec.connect('ray?address={address}')\nexcept Exception as e: print(repr(e))"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=LIMIT, check=True)
    assert "BackendLost" in ended.stdout or "BackendUnavailable" in ended.stdout
    assert len(ended.stdout.splitlines()) == 1
    assert not ended.stderr


def test_ray_that_the_user_has_started_is_not_taken_over() -> None:
    program = """if True:
        import sys, polyexec, ray
        ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, _temp_dir=sys.argv[1])
        try:
            polyexec.connect("ray")
        except polyexec.SpecificationError as error:
            print("refused" if "address=auto" in str(error) else error)
        with polyexec.connect("ray?address=auto") as ex:
            print(ex.submit(int, "3").result(60), ex.info.dashboard)
        print(ray.is_initialized())
    """
    env = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    # Not tmp_path, which is too long for the names of Ray's sockets.
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        command = [sys.executable, "-c", program, folder]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=180, env=env, check=False)
    assert ended.stdout.split() == ["refused", "3", "None", "True"], ended.stderr


def test_a_lost_engine_fails_what_is_pending() -> None:
    """F10 When Ray's control service dies, every pending Future fails with ``BackendLost``, and close returns."""
    program = """if True:
        import os, signal, time, polyexec, ray
        ex = polyexec.connect("ray?workers=1&log_to_driver=0")
        futures = [ex.submit(time.sleep, 100) for _ in range(3)]
        processes = ray._private.worker._global_node.all_processes
        os.kill(processes["gcs_server"][0].process.pid, signal.SIGKILL)
        print(*{type(future.exception(60)).__name__ for future in futures})
        ex.close()
        print("closed")
    """
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=180, check=False)
    assert ended.stdout.split() == ["BackendLost", "closed"], ended.stderr


def test_a_large_value_that_nobody_else_holds_arrives() -> None:
    """Ray ends the process that waits for a value in its store without holding a reference to it."""
    program = """if True:
        import queue
        import polyexec, ray
        from polyexec_ray.link import Surroundings

        with polyexec.connect("ray?workers=1&log_to_driver=0"):
            around = Surroundings(None, True, False, 0, 1.0, 1.0, lambda job: job(), lambda: None, lambda node: True)
            large = ray.remote(num_cpus=0)(lambda number: bytes(1 << 20))
            for number in range(50):
                arrived = queue.SimpleQueue()
                reference = large.remote(number)
                ray.wait([reference])
                around.notify(reference, arrived.put)
                del reference
                assert len(arrived.get(timeout=60)) == 1 << 20
        """
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=180, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]

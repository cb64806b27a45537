"""The workers of the process backend: how they start, what happens when something of theirs is killed, what is left.

Observed from outside: process ids, /proc, and files that workers write.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import Process, descendants, parent_of

import polyexec
from polyexec.options import Resources
from polyexec.testing.tools import Gate, eventually
from polyexec_local import ProcessBackend, ProcessConfig

LIMIT = 60.0


@contextlib.contextmanager
def connected(**keys: Any) -> Iterator[polyexec.Executor]:
    with polyexec.connect(ProcessConfig(**{"workers": 2, **keys})) as ex:
        yield ex


def family() -> tuple[int, int, int]:
    """Give the ids of the worker that runs this, of its keeper, and of the template."""
    keeper = os.getppid()
    return os.getpid(), keeper, int(Path(f"/proc/{keeper}/stat").read_text().rpartition(")")[2].split()[1])


def hold(path: str, gate: Gate) -> int:
    """Write a worker's id to a file, and wait."""
    Path(path + ".part").write_text(str(os.getpid()))
    os.rename(path + ".part", path)
    gate.wait(LIMIT)
    return os.getpid()


def held(ex: polyexec.Executor, path: Path, gate: Gate) -> tuple[polyexec.Future[int], int]:
    """Start a task that waits, and give it with its worker's id."""
    future = ex.submit(hold, str(path), gate)
    eventually(path.exists, "the task runs", LIMIT)
    return future, int(path.read_text())


def two_at_once(ex: polyexec.Executor, folder: Path, name: str) -> set[int]:
    """Run two tasks at the same time, and give the ids of their workers."""
    gate = Gate(str(folder / f"{name}-gate"))
    futures = [held(ex, folder / f"{name}-{number}", gate)[0] for number in range(2)]
    gate.open()
    return {future.result(LIMIT) for future in futures}


def writing_initializer(path: Path, *then: str) -> Callable[[], None]:
    """Make an initializer that appends its process id to a file, and then does something: the first of these first."""

    def initialize() -> None:
        with open(path, "a") as file:
            file.write(f"{os.getpid()}\n")
        count = len(path.read_text().split())
        exec(then[count - 1] if count <= len(then) else "pass")

    return initialize


def numbers(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()] if path.exists() else []


PAUSE = "__import__('signal').pause()"


def test_killed_template_costs_nothing(process: Any, tmp_path: Path) -> None:
    """F13: workers live on, their tasks too; who is wanted then comes from a new one."""
    with connected() as ex:
        worker, _, template = ex.submit(family).result(LIMIT)
        gate = Gate(str(tmp_path / "gate"))
        future, holder = held(ex, tmp_path / "held", gate)
        watched = process(template)
        watched.send(signal.SIGKILL)
        watched.wait()
        for pid in {worker, holder} - {holder}:
            process(pid).send(signal.SIGKILL)
        later = ex.submit(family).result(LIMIT)
        assert later[2] != template or later[0] != worker
        gate.open()
        assert future.result(LIMIT) == holder
        assert ex.cancel(held(ex, tmp_path / "again", Gate(str(tmp_path / "never")))[0], force=True)
        assert len(two_at_once(ex, tmp_path, "after")) == 2


def test_worker_after_the_template_comes_from_a_new_one(process: Any, tmp_path: Path) -> None:
    """F13, C3."""
    with connected(workers=1) as ex:
        first, _, template = ex.submit(family).result(LIMIT)
        watched = process(template)
        watched.send(signal.SIGKILL)
        watched.wait()
        future, holder = held(ex, tmp_path / "held", Gate(str(tmp_path / "never")))
        assert holder == first
        assert ex.cancel(future, force=True)
        second, _, other = ex.submit(family).result(LIMIT)
        assert second != first
        assert other != template


def test_killed_keeper_costs_the_task_of_its_worker(process: Any, tmp_path: Path) -> None:
    """F3, F13: how the worker ended nobody knows, and nothing is made up."""
    with connected() as ex:
        gate = Gate(str(tmp_path / "gate"))
        (victim, pid), (other, _) = (held(ex, tmp_path / name, gate) for name in ("victim", "other"))
        worker = process(pid)
        process(parent_of(pid)).send(signal.SIGKILL)
        error = victim.exception(LIMIT)
        assert isinstance(error, polyexec.WorkerDied)
        assert (error.pid, error.signal, error.exit_code) == (pid, None, None)
        assert not worker.lives()
        gate.open()
        assert isinstance(other.result(LIMIT), int)
        eventually(lambda: ex.resources().available == ex.resources().total, "all is free")
        assert len(two_at_once(ex, tmp_path, "after")) == 2


def test_template_keepers_and_workers_killed_at_once(process: Any, tmp_path: Path) -> None:
    """F13: whatever somebody kills, the next task finds a worker."""
    with connected() as ex:
        workers = two_at_once(ex, tmp_path, "before")
        keepers = {parent_of(worker) for worker in workers}
        for pid in (*map(parent_of, keepers), *keepers, *workers):
            process(pid).send(signal.SIGKILL)
        assert two_at_once(ex, tmp_path, "after").isdisjoint(workers)


def test_worker_killed_while_it_starts_is_replaced(process: Any, tmp_path: Path) -> None:
    """F13: nobody's task had begun."""
    path = tmp_path / "starts"
    with connected(workers=1, initializer=writing_initializer(path, PAUSE, PAUSE)) as ex:
        future = ex.submit(os.getpid)
        for count in (1, 2):
            eventually(lambda count=count: len(numbers(path)) == count, "a worker starts", LIMIT)  # type: ignore[misc]
            process(numbers(path)[-1]).send(signal.SIGKILL)
        assert future.result(LIMIT) == numbers(path)[2]
        assert future.attempts == 1


def test_keeper_killed_while_its_worker_starts(process: Any, tmp_path: Path) -> None:
    """F13."""
    path = tmp_path / "starts"
    with connected(workers=1, initializer=writing_initializer(path, PAUSE)) as ex:
        future = ex.submit(os.getpid)
        eventually(lambda: len(numbers(path)) == 1, "a worker starts", LIMIT)
        process(parent_of(numbers(path)[0])).send(signal.SIGKILL)
        assert future.result(LIMIT) == numbers(path)[1]


def test_workers_that_die_whenever_they_start(tmp_path: Path) -> None:
    """F14: a bounded number of tries, then an error that says how they ended."""
    path = tmp_path / "starts"
    with connected(initializer=writing_initializer(path, *["__import__('os')._exit(3)"] * 1000)) as ex:
        error = ex.submit(os.getpid).exception(LIMIT)
        assert isinstance(error, polyexec.BackendBroken)
        assert "exit code 3" in str(error)
    assert 0 < len(numbers(path)) < 20


def test_failing_initializer(tmp_path: Path) -> None:
    """F14: the cause is named, after a bounded number of tries."""
    path = tmp_path / "starts"
    with connected(initializer=writing_initializer(path, *["1 / 0"] * 1000)) as ex:
        error = ex.submit(os.getpid).exception(LIMIT)
        assert isinstance(error, polyexec.BackendBroken)
        assert "ZeroDivisionError" in str(error)
    assert 0 < len(numbers(path)) < 20


def test_initializer_without_end(tmp_path: Path) -> None:
    """F14."""
    path = tmp_path / "starts"
    with connected(workers=1, start_timeout=0.2, initializer=writing_initializer(path, *[PAUSE] * 1000)) as ex:
        error = ex.submit(os.getpid).exception(LIMIT)
        assert isinstance(error, polyexec.BackendBroken)
        assert "not ready within 0.2 s" in str(error)


def test_workers_are_ready_again_after_kills(process: Any, tmp_path: Path) -> None:
    """F13: as many as before, without a task that asks for them; none that is idle counts as a failure."""
    path = tmp_path / "starts"
    with connected(initializer=writing_initializer(path)) as ex:
        first = two_at_once(ex, tmp_path, "first")
        for count in (4, 6, 8, 10):
            for pid in numbers(path)[-2:]:
                process(pid).send(signal.SIGKILL)
            eventually(lambda count=count: len(numbers(path)) == count, "replacements start", LIMIT)  # type: ignore[misc]
        assert two_at_once(ex, tmp_path, "last").isdisjoint(first)
        assert len(numbers(path)) == 10


def test_forced_cancels_in_a_row(tmp_path: Path) -> None:
    """C3, C7: the next task finds a worker each time, and in the end there are as many as before."""
    with connected() as ex:
        never = Gate(str(tmp_path / "never"))
        killed = set()
        for number in range(10):
            future, pid = held(ex, tmp_path / f"{number}", never)
            killed.add(pid)
            assert ex.cancel(future, force=True)
            assert ex.submit(os.getpid).result(LIMIT) not in killed
        workers = two_at_once(ex, tmp_path, "after")
        assert len(workers) == 2
        assert workers.isdisjoint(killed)
        eventually(lambda: len(descendants(os.getpid())) == 5, "the template, two workers and their keepers are left")


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Write a module that workers can import."""
    (tmp_path / "modules").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))

    def write(text: str) -> str:
        (tmp_path / "modules" / "pool_preloaded.py").write_text(text)
        return "pool_preloaded"

    return write


def is_loaded(name: str) -> tuple[bool, int]:
    """Say whether a module was there before this task, and who has imported it."""
    return name in sys.modules, sys.modules[name].PID


def test_preloaded_module_is_there_and_imported_once(module: Any, tmp_path: Path) -> None:
    """D1."""
    path = tmp_path / "imports"
    name = module(f"import os\nPID = os.getpid()\nopen({str(path)!r}, 'a').write('x')")
    with polyexec.connect(f"process?workers=2&preload={name},json") as ex:
        template = ex.submit(family).result(LIMIT)[2]
        assert ex.submit(is_loaded, name).result(LIMIT) == (True, template)
        workers = two_at_once(ex, tmp_path, "both")
        assert template not in workers
    assert path.read_text() == "x"


@pytest.mark.parametrize("text", ["raise ValueError('no good')", "import no_such_module_of_mine"])
def test_failing_preload(module: Any, tmp_path: Path, text: str) -> None:
    """F14: the module is named, after a bounded number of tries."""
    path = tmp_path / "imports"
    name = module(f"open({str(path)!r}, 'a').write('x')\n{text}")
    with connected(preload=name) as ex:
        error = ex.submit(os.getpid).exception(LIMIT)
        assert isinstance(error, polyexec.BackendBroken)
        assert f"the module {name!r} cannot be loaded" in str(error)
        with pytest.raises(polyexec.BackendBroken, match=name):
            ex.submit(os.getpid)
    assert 0 < len(path.read_text()) < 20


def test_preload_without_end(module: Any) -> None:
    """F14: the template itself takes too long."""
    with connected(preload=module("import signal\nsignal.pause()"), start_timeout=0.2) as ex:
        error = ex.submit(os.getpid).exception(LIMIT)
        assert isinstance(error, polyexec.BackendBroken)
        assert "not ready within 0.2 s" in str(error)


def test_template_killed_while_it_loads_modules(module: Any, process: Any, tmp_path: Path) -> None:
    """F13: it is started again, and nobody's task had begun."""
    path = tmp_path / "imports"
    name = module(
        f"import os, signal\nopen({str(path)!r}, 'a').write(f'{{os.getpid()}}\\n')\n"
        f"if len(open({str(path)!r}).read().split()) < 3: signal.pause()"
    )
    with connected(workers=1, preload=[name]) as ex:
        future = ex.submit(os.getpid)
        for count in (1, 2):
            eventually(lambda count=count: len(numbers(path)) == count, "a template starts", LIMIT)  # type: ignore[misc]
            process(numbers(path)[-1]).send(signal.SIGKILL)
        assert isinstance(future.result(LIMIT), int)
    assert len(numbers(path)) == 3


@pytest.mark.parametrize("given", ["", "a,,b", "a b", "a.", "9", 5, [3]])
def test_what_is_no_list_of_modules(given: Any) -> None:
    with pytest.raises(ValueError, match="is not a list of modules"):
        ProcessConfig(preload=given)


def test_workers_see_what_was_there_at_connect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """D1: later changes of the driver's environment and folder reach no worker, not even one that starts later."""

    def look() -> tuple[str | None, str]:
        return os.environ.get("POLYEXEC_TEST_MARK"), os.getcwd()

    monkeypatch.setenv("POLYEXEC_TEST_MARK", "then")
    before = os.getcwd()
    with connected(workers=1) as ex:
        assert ex.submit(look).result(LIMIT) == ("then", before)
        monkeypatch.setenv("POLYEXEC_TEST_MARK", "later")
        monkeypatch.chdir(tmp_path)
        assert ex.cancel(held(ex, tmp_path / "held", Gate(str(tmp_path / "never")))[0], force=True)
        assert ex.submit(look).result(LIMIT) == ("then", before)


def things() -> tuple[set[int], int, int]:
    return descendants(os.getpid()), len(os.listdir("/proc/self/fd")), threading.active_count()


def test_fifty_opens_and_closes_leave_nothing() -> None:
    """F9: no process, not even a dead one, no descriptor, no thread."""
    before = things()
    for number in range(50):
        with connected(workers=1) as ex:
            if number % 2:
                assert ex.submit(abs, -1).result(LIMIT) == 1
        assert things() == before


@pytest.mark.parametrize("stage", ["importing", "initializing"])
def test_close_while_workers_start(module: Any, tmp_path: Path, stage: str) -> None:
    """F9: nobody waits for what they do, and nothing is left."""
    path = tmp_path / "starts"
    before = things()
    importing = module(f"import os, signal\nopen({str(path)!r}, 'a').write(f'{{os.getpid()}}\\n')\nsignal.pause()")
    keys = {
        "importing": {"preload": importing},
        "initializing": {"initializer": writing_initializer(path, *[PAUSE] * 10)},
    }
    with connected(**keys[stage]):
        eventually(lambda: numbers(path), "it starts", LIMIT)
    assert things() == before


class Unpicklable:
    """An initializer that goes nowhere."""

    def __call__(self) -> None:
        """Do nothing."""

    def __reduce__(self) -> Any:
        raise RuntimeError("cannot be pickled")


def test_connect_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """F9: whether it failed before the backend was opened, or in there."""
    before = things()
    with pytest.raises(RuntimeError, match="cannot be pickled"):
        polyexec.connect(ProcessConfig(initializer=Unpicklable()))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(polyexec.SpecificationError):
        polyexec.connect(ProcessConfig(gpus=2))
    assert things() == before


def test_no_descriptor_is_left_at_connect() -> None:
    """F14: an error that says so, at once."""
    code = """
import os, resource, polyexec, polyexec.runtime, polyexec.driver, polyexec_local.pool
from polyexec_local import ProcessConfig
with polyexec.connect(ProcessConfig(workers=1)) as ex:
    ex.submit(abs, -1).result()
before = sorted(os.listdir("/proc/self/fd"))
taken = [os.open("/dev/null", os.O_RDONLY) for _ in range(30)]
resource.setrlimit(resource.RLIMIT_NOFILE, (taken[-1] + 3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
try:
    polyexec.connect(ProcessConfig(workers=1))
except (polyexec.BackendBroken, OSError) as error:
    print(type(error).__name__)
for descriptor in taken:
    os.close(descriptor)
assert sorted(os.listdir("/proc/self/fd")) == before
with polyexec.connect(ProcessConfig(workers=1)) as ex:
    assert ex.submit(abs, -1).result() == 1
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "BackendBroken"


def test_backend_opens_without_having_begun() -> None:
    """The interface for backends: beginning early is a favour, not a duty."""
    from polyexec.runtime import Runtime

    before = things()
    backend = ProcessBackend(ProcessConfig(workers=1))
    runtime = Runtime(backend, "direct")
    backend.open(runtime)
    runtime.start()
    assert backend.nodes()[0].total == Resources(1, 0, backend.nodes()[0].total.memory)
    backend.close(kill=True)
    runtime.stop(None)
    assert things() == before


FORKED = """
import os, signal, sys, time
sys.path[:0] = {path!r}
import polyexec
from test_pool_workers import descendants, family
ex = polyexec.connect("process?workers=2")
found = ex.submit(family).result()
busy = ex.submit(time.sleep, 600)
child = os.fork()
if child == 0:
    try:
        ex.submit(abs, -1)
    except polyexec.ForkedExecutor:
        signal.pause()
    os._exit(1)
assert ex.submit(abs, -1).result() == 1
print(*sorted(descendants(os.getpid()), key=lambda pid: pid != child), flush=True)
signal.pause()
"""


def test_forked_child_of_the_driver_keeps_no_worker(process: Any) -> None:
    """F8, F15: the driver works on after the fork; when it is killed, its workers end although its child lives."""
    path = [str(Path(__file__).parent), *map(os.path.abspath, sys.path)]
    with subprocess.Popen(
        [sys.executable, "-c", FORKED.format(path=path)], stdout=subprocess.PIPE, text=True
    ) as driver:
        assert driver.stdout is not None
        child, *others = (process(int(pid)) for pid in driver.stdout.readline().split())
        assert len(others) >= 5
        driver.kill()
    for each in others:
        each.wait()
    assert child.lives()


def test_starts_and_replacements_are_quick(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """C7: printed, not asserted."""
    began = time.perf_counter()
    with connected(workers=1) as ex:
        ex.submit(abs, -1).result(LIMIT)
        first = time.perf_counter() - began
        times = []
        for number in range(10):
            future, _ = held(ex, tmp_path / f"{number}", Gate(str(tmp_path / "never")))
            asked = time.perf_counter()
            assert ex.cancel(future, force=True)
            assert ex.submit(abs, -1).result(LIMIT) == 1
            times.append(time.perf_counter() - asked)
    with capsys.disabled():
        middle = sorted(times)[len(times) // 2]
        print(f"\nconnect to first result {first * 1e3:.0f} ms, forced cancel to next {middle * 1e3:.1f} ms", end=" ")


def test_processes_are_seen() -> None:
    """The tests' own eyes."""
    with connected(workers=1) as ex, contextlib.closing(Process(ex.submit(os.getpid).result(LIMIT))) as seen:
        assert seen.lives()
        assert seen.pid in descendants(os.getpid())

"""CPython's own tests of ``concurrent.futures``, with our executor in the place of the standard library's.

The tests are those of this interpreter, or of ``POLYEXEC_CPYTHON_TESTS``, the folder
``Lib/test`` of a CPython from 3.11 on.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import multiprocessing
import multiprocessing.managers
import os
import sys
import tempfile
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import judge_worker

from polyexec.adapters.futures import PolyexecExecutor

PACKAGE = "test.test_concurrent_futures"
PRIVATE = "looks at what is private to the executors of the standard library (their threads, processes, queues)"
NOT_OURS = {
    "test_max_workers_too_large": "is for Windows",
    "test_max_tasks_per_child": "is about an argument of ProcessPoolExecutor's own",
    "test_max_tasks_per_child_defaults_to_spawn_context": "is about an argument of ProcessPoolExecutor's own",
    "test_max_tasks_early_shutdown": "is about an argument of ProcessPoolExecutor's own",
    "test_hang_global_shutdown_lock": "is about a lock of ThreadPoolExecutor's own; makes no other executor",
    "test_thread_names_assigned": "is about an argument of ThreadPoolExecutor's own",
    "test_free_reference_yielded_future": "makes no executor",
    "test_correct_timeout_exception_msg": "makes no executor",
    **dict.fromkeys(
        (
            "test_killed_child",
            "test_saturation",
            "test_idle_process_reuse_one",
            "test_idle_process_reuse_multiple",
            "test_python_finalization_error",
            "test_processes_terminate",
            "test_threads_terminate",
            "test_context_manager_shutdown",
            "test_del_shutdown",
            "test_shutdown_no_wait",
            "test_shutdown_deadlock_pickle",
            "test_gh105829_should_not_deadlock_if_wakeup_pipe_full",
            "test_default_workers",
            "test_idle_thread_reuse",
            "test_thread_names_default",
        ),
        PRIVATE,
    ),
}
"""Cases that do not apply, and why."""


class JudgedExecutor(PolyexecExecutor):
    """Takes the context of ``multiprocessing`` that the tests give to a process pool, and needs none."""

    def __init__(self, max_workers: int | None = None, *, mp_context: Any = None, **others: Any) -> None:
        super().__init__(max_workers, **others)


class Context:
    """What the tests need of ``multiprocessing``, in a form that reaches any worker."""

    def __init__(self, case: unittest.TestCase) -> None:
        self._case = case

    def Manager(self) -> Any:
        # What the test ends itself.
        manager = multiprocessing.managers.SyncManager(authkey=judge_worker.AUTHKEY)
        manager.start()
        return manager

    def Queue(self) -> Any:
        manager = multiprocessing.managers.SyncManager(authkey=judge_worker.AUTHKEY)
        manager.start()
        self._case.addCleanup(manager.shutdown)
        return manager.Queue()

    def get_start_method(self, allow_none: bool = False) -> str:
        return "spawn"


class Threads:
    """What the tests for threads run on."""

    executor_type = JudgedExecutor


class Processes(Threads):
    """What the tests for processes run on."""

    ctx = "spawn"

    def get_context(self) -> Any:
        assert isinstance(self, unittest.TestCase)
        return Context(self)


def available() -> str:
    """Say why the tests cannot be run, nothing if they can."""
    try:
        load("test_wait")
    except ImportError as error:
        return (
            f"CPython's test.test_concurrent_futures is not there ({error}); POLYEXEC_CPYTHON_TESTS names the folder "
            "Lib/test of a CPython that has it"
        )
    return ""


def load(module: str) -> Any:
    """Import a module of the tests."""
    folder = os.environ.get("POLYEXEC_CPYTHON_TESTS")
    if folder and "test" not in sys.modules:
        if not Path(folder, "test_concurrent_futures").is_dir():
            raise ImportError(f"{folder} has no test_concurrent_futures")
        # Only this package, not the standard library around it.
        place = tempfile.TemporaryDirectory(prefix="judge-")
        atexit.register(place.cleanup)
        Path(place.name, "test").symlink_to(Path(folder).absolute())
        sys.path.insert(0, place.name)
    return importlib.import_module(f"{PACKAGE}.{module}")


@functools.cache
def classes(kind: str) -> list[type[unittest.TestCase]]:
    """Make the classes of tests that apply to executors of threads, or of processes."""
    util, executor, wait = load("util"), load("executor"), load("test_wait")
    completed, shutdown, init = load("test_as_completed"), load("test_shutdown"), load("test_init")
    # Or each case prints how long it took, among the results.
    importlib.import_module("test.support").verbose = False
    mixins: list[type]
    if kind == "thread":
        mixins = [load("test_thread_pool").ThreadPoolExecutorTest, wait.ThreadPoolWaitTests]
        mixins += [completed.AsCompletedTests, shutdown.ThreadPoolShutdownTest]
    else:
        mixins = [load("test_process_pool").ProcessPoolExecutorTest, wait.WaitTests, completed.AsCompletedTests]
        mixins += [shutdown.ProcessPoolShutdownTest, load("test_deadlock").ExecutorDeadlockTest]
    mixins += [init.InitializerMixin, init.FailingInitializerMixin]
    assert executor.ExecutorTest in mixins[0].__mro__
    shutdown.assert_python_ok = _with_our_executor(shutdown.assert_python_ok)
    own = Threads if kind == "thread" else Processes
    bases = util.ExecutorMixin, util.BaseTestCase
    return [type(f"{kind}_{mixin.__name__}", (own, mixin, *bases), {"__module__": "cpython_cases"}) for mixin in mixins]


def __getattr__(name: str) -> Any:
    """Find a class of tests in a worker, where it has not been made yet."""
    kind, _, rest = name.partition("_")
    if rest and kind in ("thread", "process"):
        return {one.__name__: one for one in classes(kind)}[name]
    raise AttributeError(name)


def _with_our_executor(run: Callable[..., Any]) -> Callable[..., Any]:
    """Let the programs that the tests start find our executor where they import the standard one."""
    paths = [str(Path(__file__).parent), *sys.path]
    prelude = (
        f"import sys; sys.path[:] = {paths!r}\n"
        "import concurrent.futures, multiprocessing, cpython_cases\n"
        "concurrent.futures.JudgedExecutor = cpython_cases.JudgedExecutor\n"
    )

    def run_ours(option: str, code: str, **environment: str) -> Any:
        code = code.replace("ThreadPoolExecutor", "JudgedExecutor")
        return run(option, prelude + code, **environment)

    return run_ours


def cases(kind: str) -> dict[str, unittest.TestCase]:
    """Give the cases that apply, by name."""
    found = {}
    for one in classes(kind):
        for name in unittest.defaultTestLoader.getTestCaseNames(one):
            if name not in NOT_OURS:
                found[f"{one.__name__.partition('_')[2]}.{name}"] = one(name)
    return found


def outcome(case: unittest.TestCase) -> tuple[str, str]:
    """Run a case, and give how it ended, and why."""
    result = unittest.TestResult()
    case.run(result)
    if result.skipped:
        return "skipped", result.skipped[0][1]
    wrong = [*result.failures, *result.errors]
    return ("failed", wrong[0][1]) if wrong else ("passed", "")


def main(specification: str, kind: str, *names: str) -> None:
    """Run cases one after the other, and print a line of JSON for each.

    Args:
        specification: of the backend.
        kind: ``thread`` or ``process``.
        *names: of the cases.
    """
    multiprocessing.current_process().authkey = judge_worker.AUTHKEY
    os.environ["POLYEXEC_BACKEND"] = specification
    found = cases(kind)
    for name in names:
        status, reason = outcome(found[name])
        print(json.dumps([name, status, reason]), flush=True)

"""The watchdog: a test that stands still says why before it is ended."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

HANGS = """
    import threading

    import polyexec
    import pytest

    @pytest.fixture(scope="module")
    def ex():
        executor = polyexec.connect("process?workers=1")
        yield executor
        executor.close(cancel_pending=True)

    @pytest.mark.timeout(60)
    def test_works(ex):
        assert ex.submit(abs, -1).result() == 1

    def lock_up(secret):
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()

    def test_hangs(ex):
        ex.submit(lock_up, "hunter2").result()
"""
IN_TIME = """
    def test_ends_in_time():
        pass
"""


def run(folder: Path, source: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_case.py").write_text(textwrap.dedent(source))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "polyexec.testing.watchdog"]
    return subprocess.run(
        [*command, "--rootdir", str(folder), *arguments, str(folder / "test_case.py")],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def test_names_the_culprit_before_the_test_is_ended(tmp_path: Path) -> None:
    done = run(tmp_path, HANGS, "--timeout", "6")
    assert done.returncode == 1, done.stdout
    assert "1 failed, 1 passed" in done.stdout
    said = done.stderr
    assert "polyexec watchdog: test_case.py::test_hangs has nearly used up its 6 s" in said
    assert "lock_up: running for" in said
    assert "thread MainThread: waits for the result of lock_up #" in said
    workers = said[said.index("WORKERS") :]
    assert " in lock_up" in workers[: workers.index("THREADS OF PROCESS")]
    assert " in test_hangs" in said[said.index("THREADS OF PROCESS") :]
    assert "test_works" not in said
    assert "hunter2" not in said


def test_says_nothing_of_tests_that_end_in_time(tmp_path: Path) -> None:
    done = run(tmp_path, IN_TIME, "--timeout", "60")
    assert (done.returncode, done.stderr) == (0, "")


def test_needs_what_ends_tests(tmp_path: Path) -> None:
    done = run(tmp_path, IN_TIME, "-p", "no:timeout")
    assert done.returncode == 4
    assert 'needs pytest-timeout: pip install "polyexec[testing]"' in done.stderr

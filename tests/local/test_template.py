"""Workers forked from a template: their starts and ends, and what is left of them.

Observed from outside: process descriptors, /proc, and what the processes say of themselves.
"""

from __future__ import annotations

import ast
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import Process, descendants, parent_of

from polyexec_local.template import Event, Exited, Refused, Spawned, Template

ENTRY = "template_entries:obey"


class Workers:
    """Some workers of a template, each at the other end of a socket."""

    def __init__(self, template: Template) -> None:
        self.template = template
        self.connections: list[socket.socket] = []
        self.events: list[Event] = []

    def ask_for(self) -> int:
        """Ask for a worker, and give its token."""
        ours, theirs = socket.socketpair()
        self.connections.append(ours)
        self.template.spawn(len(self.connections) - 1, theirs)
        return len(self.connections) - 1

    def new(self) -> int:
        """Ask for a worker, and wait for its process."""
        token = self.ask_for()
        self.event(Spawned, token)
        return token

    def event(self, kind: Any, token: int) -> Any:
        """Wait for an event."""
        while not (found := [event for event in self.events if isinstance(event, kind) and event.token == token]):
            select.select([self.template], [], [])
            self.events += self.template.receive()
        return found[0]

    def tell(self, token: int, code: str) -> None:
        """Let a worker evaluate an expression."""
        self.connections[token].send(code.encode())

    def ask(self, token: int, code: str) -> Any:
        """Let a worker evaluate an expression, and give what it gives."""
        self.tell(token, code)
        return ast.literal_eval(self.connections[token].recv(1 << 16).decode())

    def close(self) -> None:
        """End all."""
        self.template.close()
        for connection in self.connections:
            connection.close()


@contextlib.contextmanager
def workers(*preload: str, entry: str = ENTRY) -> Iterator[Workers]:
    found = Workers(Template(preload, entry=entry))
    try:
        yield found
    finally:
        found.close()


def template_of(found: Workers, token: int) -> int:
    """Find the template of a worker that lives: the parent of its parent."""
    return parent_of(found.ask(token, "os.getppid()"))


def test_many_workers_start_and_every_ending_is_reported() -> None:
    """F3."""
    with workers() as found:
        tokens = [found.ask_for() for _ in range(20)]
        pids = {found.event(Spawned, token).pid for token in tokens}
        assert {found.ask(token, "os.getpid()") for token in tokens} == pids
        endings = ["os._exit(0)", "os._exit(7)", "os.kill(os.getpid(), 9)", "os.abort()", "sys.exit(3)"]
        for token in tokens:
            found.tell(token, endings[token % len(endings)])
        codes = [found.event(Exited, token).code for token in tokens]
        assert codes == [0, 7, -signal.SIGKILL, -signal.SIGABRT, 3] * 4


def test_worker_that_is_let_go_ends_as_a_program_does(tmp_path: Path) -> None:
    """F9: what has been registered for the end runs, in the worker alone and once."""
    with workers() as found:
        token = found.new()
        path = tmp_path / "ends"
        found.ask(token, f"__import__('atexit').register(lambda: open({str(path)!r}, 'a').write('x'))and None")
        found.connections[token].close()
        assert found.event(Exited, token).code == 0
    assert path.read_text() == "x"


def test_killed_worker_takes_with_it_what_its_tasks_started(process: Any) -> None:
    """F16: a child, its child, and a daemon in a session of its own; nothing of another worker."""
    with workers() as found:
        victim, other = found.new(), found.new()
        started = [process(found.ask(victim, code)) for code in ("child()", "daemon()")]
        kept = [process(found.ask(other, code)) for code in ("child()", "daemon()", "os.getpid()")]
        assert all(each.lives() for each in started)
        found.template.kill(victim)
        assert found.event(Exited, victim).code == -signal.SIGKILL
        for each in started:
            each.wait()
        assert all(each.lives() for each in kept)
        assert found.ask(other, "1") == 1
    assert not any(each.lives() for each in kept)


def test_crashed_worker_takes_with_it_what_its_tasks_started(process: Any) -> None:
    """F16."""
    with workers() as found:
        token = found.new()
        started = [process(found.ask(token, code)) for code in ("child()", "daemon()")]
        found.tell(token, "os._exit(1)")
        assert found.event(Exited, token).code == 1
        for each in started:
            each.wait()


def test_end_of_a_worker_is_known_before_it_is_received(process: Any) -> None:
    """F13: so that nothing is handed to a worker that has died."""
    with workers() as found:
        token = found.new()
        assert found.template.lives(token)
        worker = process(found.event(Spawned, token).pid)
        worker.send(signal.SIGKILL)
        worker.wait()
        assert not found.template.lives(token)
        assert found.event(Exited, token).code == -signal.SIGKILL
        assert not found.template.lives(token)


def test_daemon_lives_as_long_as_the_worker_that_started_it(process: Any) -> None:
    """F16: it was orphaned while the worker lived, and that is no reason to end it; a dead one is reaped."""
    with workers() as found:
        token = found.new()
        lives, dies = (process(found.ask(token, "daemon()")) for _ in range(2))
        assert parent_of(lives.pid) == found.ask(token, "os.getppid()")
        dies.send(signal.SIGKILL)
        while Path(f"/proc/{dies.pid}").exists():
            os.sched_yield()
        assert lives.lives()


def test_workers_outlive_the_template_and_the_next_one_gets_a_new_template(process: Any) -> None:
    """F13."""
    with workers() as found:
        first = found.new()
        template = process(template_of(found, first))
        template.send(signal.SIGKILL)
        template.wait()
        second = found.new()
        assert found.ask(first, "1") == 1
        assert template_of(found, second) != template.pid
        found.tell(first, "os._exit(5)")
        found.tell(second, "os._exit(6)")
        assert [found.event(Exited, token).code for token in (first, second)] == [5, 6]


def test_template_that_dies_with_a_request_refuses_it(process: Any) -> None:
    """F13: it may be tried again, and then works."""
    with workers() as found:
        template = process(template_of(found, found.new()))
        template.send(signal.SIGSTOP)
        token = found.ask_for()
        template.send(signal.SIGKILL)
        refused = found.event(Refused, token)
        assert refused.accident
        assert "signal 9" in refused.reason
        assert found.ask(found.new(), "1") == 1
        worker = process(found.ask(0, "os.getpid()"))
    assert not worker.lives()


def test_killed_keeper_takes_the_worker_with_it(process: Any) -> None:
    """F13, F16: how the worker ended nobody knows then, but that it did is known."""
    with workers() as found:
        token, other = found.new(), found.new()
        worker, daemon = (process(found.ask(token, code)) for code in ("os.getpid()", "daemon()"))
        process(found.ask(token, "os.getppid()")).send(signal.SIGKILL)
        assert found.event(Exited, token).code is None
        worker.wait()
        daemon.wait()
        assert found.ask(other, "1") == 1


def test_keeper_and_template_killed_together(process: Any) -> None:
    """F13: nobody is left to report, and the end is reported all the same."""
    with workers() as found:
        token = found.new()
        worker = process(found.event(Spawned, token).pid)
        template, keeper = process(template_of(found, token)), process(found.ask(token, "os.getppid()"))
        for each in (template, keeper):
            each.send(signal.SIGKILL)
        assert found.event(Exited, token).code is None
        worker.wait()
        assert found.ask(found.new(), "1") == 1


def test_worker_is_killed_before_it_is_there(process: Any) -> None:
    """C3."""
    with workers() as found:
        template = process(template_of(found, found.new()))
        template.send(signal.SIGSTOP)
        token = found.ask_for()
        found.template.kill(token)
        template.send(signal.SIGCONT)
        assert found.event(Exited, token).code == -signal.SIGKILL


def test_requests_wait_while_there_is_no_room(process: Any) -> None:
    """F9: more than the socket holds, while nobody reads; what is not sent is not lost."""
    with workers() as found:
        template = process(template_of(found, found.new()))
        template.send(signal.SIGSTOP)
        tokens = [found.ask_for() for _ in range(300)]
        found.template.receive()
        for token in tokens[5:]:
            found.template.kill(token)
        template.send(signal.SIGCONT)
        assert [found.ask(token, "1") for token in tokens[:5]] == [1] * 5
        for token in tokens[5:]:
            found.event((Exited, Refused), token)
        assert any(isinstance(event, Refused) for event in found.events)


def test_close_leaves_nothing(process: Any) -> None:
    """F9: no process, not even a dead one, and no descriptor; whatever workers do."""
    before, below = os.listdir("/proc/self/fd"), descendants(os.getpid())
    with workers() as found:
        tokens = [found.new() for _ in range(4)]
        found.tell(tokens[0], "hold_the_interpreter()")
        process(found.ask(tokens[1], "os.getpid()")).send(signal.SIGSTOP)
        pids = {found.ask(tokens[2], "daemon()"), *descendants(os.getpid()) - below}
        found.ask_for()
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
    assert descendants(os.getpid()) == below
    # Those of the fixture are still open.
    assert len(os.listdir("/proc/self/fd")) == len(before) + 1


@pytest.mark.parametrize("stage", ["made", "started", "asked"])
def test_close_while_it_starts_leaves_nothing(stage: str) -> None:
    """F9."""
    before, below = os.listdir("/proc/self/fd"), descendants(os.getpid())
    with workers() as found:
        if stage != "made":
            found.template.start()
        if stage == "asked":
            found.ask_for()
    assert descendants(os.getpid()) == below
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_worker_sees_what_the_driver_saw(monkeypatch: pytest.MonkeyPatch) -> None:
    """D1: variables, folder and standard streams; no other descriptor, not even one that may be inherited."""
    read, write = os.pipe()
    os.set_inheritable(write, True)
    monkeypatch.setenv("POLYEXEC_TEST_MARK", "then")
    try:
        with workers() as found:
            monkeypatch.setenv("POLYEXEC_TEST_MARK", "later")
            token = found.new()
            assert found.ask(token, "os.environ['POLYEXEC_TEST_MARK']") == "then"
            assert found.ask(token, "os.getcwd()") == os.getcwd()
            assert found.ask(token, "sys.path") == [os.path.abspath(path) for path in sys.path]
            opened = found.ask(token, "descriptors()")
            assert opened[0] == "/dev/null"
            assert [opened[number] for number in (1, 2)] == [
                os.readlink(f"/proc/self/fd/{number}") for number in (1, 2)
            ]
            assert [target.partition(":")[0] for number, target in opened.items() if number > 2] == ["socket"]
    finally:
        os.close(read)
        os.close(write)


def test_worker_leads_a_session_and_has_the_usual_signals() -> None:
    """C2, F16: the driver may ignore or block some; a task must be interruptible, and must be able to wait."""
    was = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        with workers() as found:
            token = found.new()
            pid = found.event(Spawned, token).pid
            assert found.ask(token, "(os.getpid(), os.getsid(0), os.getpgid(0))") == (pid, pid, pid)
            assert found.ask(token, "[*signal.pthread_sigmask(signal.SIG_BLOCK, ())]") == []
            assert signal.SIGCHLD not in found.ask(token, "ignored()")
            assert found.ask(token, "signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL")
            assert found.ask(token, "signal.set_wakeup_fd(-1)") == -1
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
        signal.signal(signal.SIGCHLD, was)


def test_interrupt_from_the_keyboard_does_not_reach_template_and_keepers(process: Any) -> None:
    """W7."""
    with workers() as found:
        token = found.new()
        for pid in (template_of(found, token), found.ask(token, "os.getppid()")):
            os.kill(pid, signal.SIGINT)
        assert found.ask(found.new(), "1") == 1
        assert found.ask(token, "1") == 1


def module(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> str:
    """Write a module that a template can import."""
    (folder / "preloaded_for_test.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    return "preloaded_for_test"


def test_preloaded_module_is_imported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """D1: what it has printed does not come again from each worker."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    path = tmp_path / "imports"
    name = module(tmp_path, monkeypatch, f"open({str(path)!r}, 'a').write('x')\nprint('no newline', end='')")
    with workers(name) as found:
        for token in [found.new() for _ in range(3)]:
            assert found.ask(token, f"{name!r} in sys.modules")
            found.connections[token].close()
            assert found.event(Exited, token).code == 0
    assert path.read_text() == "x"
    assert capfd.readouterr().out == "no newline"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("raise ValueError('no good')", "ValueError: no good"),
        ("raise SystemExit(4)", "SystemExit: 4"),
        ("import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()", "started 1 threads"),
        ("import no_such_module_of_mine", "no_such_module_of_mine"),
    ],
)
def test_module_that_cannot_be_preloaded_is_named(
    text: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F14."""
    name = module(tmp_path, monkeypatch, text)
    with workers(name) as found:
        for _ in range(2):
            refused = found.event(Refused, found.ask_for())
            assert name in refused.reason
            assert reason in refused.reason
            assert not refused.accident


def test_template_without_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F14."""
    name = module(tmp_path, monkeypatch, "import signal; signal.pause()")
    with workers(name) as found:
        token = found.ask_for()
        found.template.give_up("it took too long")
        assert found.event(Refused, token) == Refused(token, "it took too long")


def test_workers_draw_different_random_numbers() -> None:
    """D1: as workers would that import NumPy themselves."""
    with workers("random", "numpy.random") as found:
        tokens = [found.new() for _ in range(3)]
        for code in ("__import__('random').random()", "float(sys.modules['numpy'].random.random())"):
            assert len({found.ask(token, code) for token in tokens}) == 3


def test_preloaded_numpy_starts_no_thread_and_leaves_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """R10, D1: nor is there a warning about forking."""
    monkeypatch.setenv("PYTHONWARNINGS", "error::DeprecationWarning:polyexec_local")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    with workers("numpy") as found:
        token = found.new()
        assert found.ask(token, "os.environ.get('OMP_NUM_THREADS')") == "3"
        assert found.ask(token, "os.environ.get('OPENBLAS_NUM_THREADS')") is None
        template = template_of(found, token)
        assert len(os.listdir(f"/proc/{template}/task")) == 1


DRIVER = """
import os, select, signal, sys
sys.path[:0] = {path!r}
from test_template import Workers, descendants
from polyexec_local.template import Template
workers = Workers(Template({preload!r}, entry="template_entries:obey"))
child = 0
{body}
print(*sorted(descendants(os.getpid()), key=lambda pid: pid != child), flush=True)
signal.pause()
"""

BUSY = """
tokens = [workers.new() for _ in range(4)]
workers.ask(tokens[0], "daemon()"), workers.ask(tokens[1], "child()")
workers.tell(tokens[2], "hold_the_interpreter()")
os.kill(workers.ask(tokens[3], "os.getpid()"), signal.SIGSTOP)
"""

FORKED = """
tokens = [workers.new() for _ in range(2)]
child = os.fork()
if child == 0:
    signal.pause()
"""


def killed_driver(body: str, process: Any, preload: tuple[str, ...] = ()) -> list[Process]:
    """Run a driver, kill it, and give what it had started; a child that it has forked comes first."""
    path = [str(Path(__file__).parent), *map(os.path.abspath, sys.path)]
    code = DRIVER.format(path=path, preload=preload, body=body)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        found = [process(int(pid)) for pid in driver.stdout.readline().split()]
        driver.kill()
    return found


def test_nothing_outlives_a_killed_driver(process: Any) -> None:
    """F8: whatever the workers do, stopped or in C code that holds the interpreter."""
    found = killed_driver(BUSY, process)
    assert len(found) == 11
    for each in found:
        each.wait()


def test_forked_child_of_the_driver_does_not_keep_workers(process: Any) -> None:
    """F8, F15."""
    found = killed_driver(FORKED, process)
    assert len(found) == 6
    child, *others = found
    for each in others:
        each.wait()
    assert child.lives()


def test_template_that_imports_for_long_ends_with_the_driver(
    process: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F8."""
    os.mkfifo(tmp_path / "entered")
    text = f"import signal; open({str(tmp_path / 'entered')!r}, 'w').close()\nwhile True: signal.pause()"
    name = module(tmp_path, monkeypatch, text)
    body = f"workers.ask_for()\nopen({str(tmp_path / 'entered')!r}).read()"
    (template,) = killed_driver(body, process, (name,))
    template.wait()


def test_starts_are_quick(capsys: pytest.CaptureFixture[str]) -> None:
    """F3: printed, not asserted."""
    began = time.perf_counter()
    with workers(entry=ENTRY) as found:
        times = []
        for _ in range(10):
            asked = time.perf_counter()
            token = found.ask_for()
            assert found.ask(token, "1") == 1
            times.append(time.perf_counter() - (asked if times else began))
            found.template.kill(token)
            found.event(Exited, token)
    with capsys.disabled():
        rest = sorted(times[1:])
        print(f"\nfirst worker {times[0] * 1e3:.1f} ms, others {rest[0] * 1e3:.1f} - {rest[-1] * 1e3:.1f} ms", end=" ")

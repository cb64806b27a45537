"""Programs as users write them: what ``__main__`` defines, Ctrl-C, and a fork."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import attrs
import pytest

from polyexec import Executor
from polyexec.testing import bodies
from polyexec.testing.drivers import Driver, Ended
from polyexec.testing.executors import Executors
from polyexec.testing.helpers import LIMIT
from polyexec.testing.marks import alone, clause
from polyexec.testing.target import Target
from polyexec.testing.tools import Gate, Marks, eventually
from polyexec.testing.watch import LINUX

_DEFINITIONS = """
    import json, os, signal, sys
    import polyexec
    from polyexec.testing import bodies
    from polyexec.testing.tools import Gate, Marks

    marks, gate, inline = Marks(sys.argv[2]), Gate(sys.argv[3]), sys.argv[4] == "inline"
    marks.add("run " + __name__)
    OFFSET = 100

    def function(value):
        return helper(value) + OFFSET

    def helper(value):
        return value * 2

    class Thing:
        factor = 3

        def __init__(self, value):
            self.value = value

        def scaled(self):
            return Thing(self.value * self.factor)

    class Problem(Exception):
        pass

    def fail():
        raise Problem("of main")

    def say(**values):
        print(json.dumps(values), flush=True)

    def use_main(ex):
        thing = ex.submit(Thing(2).scaled).result(30)
        error = ex.submit(fail).exception(30)
        mapped = list(ex.map(function, [1, 2]))
        found = [ex.submit(function, 1).result(30), thing.value, isinstance(thing, Thing)]
        say(main=[*found, isinstance(error, Problem), str(error), mapped])
"""

_EXPECTED = [102, 6, True, True, "of main", [102, 104]]

_WITHOUT_GUARD = f"""{_DEFINITIONS}
    def told(action):
        try:
            action()
        except BaseException as error:
            return type(error).__name__
        return "nothing raised"

    ex = polyexec.connect(sys.argv[1])
    try:
        use_main(ex)
    except Exception as error:
        say(main=repr(error))

    done = ex.submit(bodies.add, 1, 1)
    assert done.result(30) == 2
    queued = ex.submit(bodies.add, 2, 2)
    items = ex.stream(range, 3)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        calls = [lambda: ex.submit(bodies.add, 1, 1), lambda: ex.put(1), lambda: ex.wait([done]),
                 lambda: ex.resources(), lambda: ex.cancel(done), lambda: next(items)]
        os.write(writer, json.dumps([told(call) for call in calls]).encode())
        os._exit(0)
    os.close(writer)
    say(child=json.loads(os.read(reader, 10_000)))
    os.waitpid(child, 0)
    say(parent=[queued.result(30), ex.submit(bodies.add, 3, 3).result(30), len(list(items))])
    ex.close()
    say(closed=True)
"""

_WITH_GUARD = f"""{_DEFINITIONS}
    waits = {{
        "wait": lambda ex, future: ex.wait([future]),
        "result": lambda ex, future: future.result(),
        "result with timeout": lambda ex, future: future.result(60),
        "as_completed": lambda ex, future: list(ex.as_completed([future])),
        "map": lambda ex, future: list(ex.map(bodies.add, [1], [future])),
        "stream": lambda ex, future: next(ex.stream(bodies.items_behind_gate, marks, gate, "stream")),
    }}

    def attempt(ex, name):
        future = None if inline else ex.submit(bodies.pass_gate, marks, gate, name)
        try:
            say(waiting=name)
            if inline and name != "stream":
                ex.submit(bodies.pass_gate, marks, gate, name)
            else:
                waits[name](ex, future)
        except KeyboardInterrupt:
            say(interrupted=name)
        else:
            say(went_on=name)

    def main():
        # Shells let background jobs ignore it, and so would this program then.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with polyexec.connect(sys.argv[1]) as ex:
            try:
                use_main(ex)
            except Exception as error:
                say(main=repr(error))
            for name in waits:
                attempt(ex, name)
            gate.open()
            say(after=ex.submit(bodies.add, 1, 1).result(30))
        say(closed=True)

    if __name__ == "__main__":
        main()
"""


@attrs.frozen
class Told:
    """What a script did, by the words with which it told.

    Attributes:
        ended: how it ended.
        words: what it printed.
        marks: what its file says.
    """

    ended: Ended
    words: dict[str, list[Any]]
    marks: list[str]


def _run(source: str, executors: Executors, target: Target, folder: Any, waits: tuple[str, ...] = ()) -> Told:
    executors.close()
    marks, gate = Marks(str(folder / "marks")), Gate(str(folder / "gate"))
    inline = target.capabilities.inline
    lines: list[str] = []

    def interrupt(process: subprocess.Popen[str]) -> None:
        for name in waits:
            _read_until(process, lines, "waiting", name)
            if inline:
                marks.wait_for(f"start {name}")
            _until_it_waits(process.pid)
            process.send_signal(signal.SIGINT)
            _read_until(process, lines, "interrupted", name)

    driver = Driver(target, folder)
    ended = driver.run(source, marks.path, gate.path, "inline" if inline else "", meanwhile=interrupt)
    words: dict[str, list[Any]] = {}
    for said in [*map(json.loads, lines), *ended.said]:
        for word, value in said.items():
            words.setdefault(word, []).append(value)
    return Told(ended, words, marks.lines())


def _until_it_waits(pid: int) -> None:
    status = Path(f"/proc/{pid}/status")
    if LINUX:
        eventually(lambda: "State:\tS" in status.read_text(), "the script waits")


def _read_until(process: subprocess.Popen[str], lines: list[str], word: str, value: str) -> None:
    assert process.stdout is not None
    while json.dumps({word: value}) + "\n" not in lines:
        line = process.stdout.readline()
        assert line, "the script ended"
        if line.startswith("{"):
            lines.append(line)


@pytest.fixture(scope="module")
def unguarded(executors: Executors, target: Target, tmp_path_factory: pytest.TempPathFactory) -> Told:
    """What the script without a guard did."""
    return _run(_WITHOUT_GUARD, executors, target, tmp_path_factory.mktemp("unguarded"))


_WAITS = ("wait", "result", "result with timeout", "as_completed", "map", "stream")


@pytest.fixture(scope="module")
def guarded(executors: Executors, target: Target, tmp_path_factory: pytest.TempPathFactory) -> Told:
    """What the script with a guard did."""
    return _run(_WITH_GUARD, executors, target, tmp_path_factory.mktemp("guarded"), _WAITS)


@alone
@clause("S3")
def test_what_a_script_without_a_guard_defines(unguarded: Told) -> None:
    """S3 What ``__main__`` defines can be submitted without a guard; the workers do not run the script again."""
    assert unguarded.words.get("main") == [_EXPECTED], unguarded.ended.errors
    assert unguarded.marks.count("run __main__") == 1
    assert [line for line in unguarded.marks if line.startswith("run")] == ["run __main__"]


@alone
@clause("S3")
def test_what_a_script_with_a_guard_defines(guarded: Told) -> None:
    """S3 And with a guard."""
    assert guarded.words.get("main") == [_EXPECTED], guarded.ended.errors


@alone
@clause("F15")
def test_a_forked_child_is_refused(unguarded: Told) -> None:
    """F15 After ``os.fork`` the child gets ``ForkedExecutor`` at once."""
    assert unguarded.words.get("child") == [["ForkedExecutor"] * 6], unguarded.ended.errors


@alone
@clause("F15")
def test_a_forking_parent_is_unharmed(unguarded: Told) -> None:
    """F15 The parent is unharmed: what was submitted before and after the fork completes, and it closes."""
    assert unguarded.words.get("parent") == [[4, 6, 3]], unguarded.ended.errors
    assert unguarded.words.get("closed") == [True], unguarded.ended.errors
    assert unguarded.ended.code == 0, unguarded.ended.errors


@clause("F15")
@pytest.mark.parametrize("cpus", [1, 2])
def test_the_child_of_a_task_is_not_the_task(ex: Executor, marks: Marks, cpus: int) -> None:
    """F15 A process that a task has forked ends when it comes out of the body; the task's result is its own."""
    assert ex.options(cpus=cpus).submit(bodies.fork_and_return, marks).result(LIMIT) == "the task's"
    assert marks.count("start") == 1


@alone
@clause("W7")
def test_ctrl_c_interrupts_any_wait(guarded: Told) -> None:
    """W7 Ctrl-C interrupts any wait of the driver, and the executor is still good."""
    assert guarded.words.get("interrupted") == list(_WAITS), guarded.ended.errors
    assert "went_on" not in guarded.words
    assert guarded.words.get("after") == [2], guarded.ended.errors
    assert guarded.words.get("closed") == [True], guarded.ended.errors
    assert guarded.ended.code == 0, guarded.ended.errors

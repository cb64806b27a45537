"""The command ``polyexec``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from polyexec.cli import main


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("POLYEXEC_")}
    return subprocess.run(
        [sys.executable, "-m", "polyexec.cli", *arguments],
        env=environment | variables, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A script that connects, runs a task, and prints the backend, its own arguments and the task's result."""
    path = tmp_path / "script.py"
    path.write_text(
        "import sys, polyexec\n"
        "def double(x): return 2 * x\n"
        "with polyexec.connect() as ex:\n"
        "    print(ex.info.backend, sys.argv[1:], __name__, ex.submit(double, 21).result())\n"
    )
    return path


def test_backends_are_listed_without_importing_any() -> None:
    code = "import sys; from polyexec.cli import main; main(['backends']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    *lines, modules = done.stdout.splitlines()
    assert {line.split()[0] for line in lines} >= {"serial", "threads", "process", "dask", "ray"}
    assert not {"ray", "dask", "distributed", "polyexec_local", "polyexec_dask", "polyexec_ray"} & set(modules.split())


def test_info_shows_backend_choice_and_resources(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--backend", "threads?workers=3"]) == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert shown["backend"] == "threads"
    assert shown["chosen_by"] == "argument"
    assert shown["total"].startswith("3 cpus")


def test_run_sets_the_backend_and_passes_arguments_on(script: Path) -> None:
    done = run("run", "--backend", "threads?workers=1", str(script), "--backend", "x", "-v")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "threads ['--backend', 'x', '-v'] __main__ 42\n"


def test_run_without_backend_leaves_the_choice_to_the_environment(script: Path) -> None:
    assert run("run", str(script), POLYEXEC_BACKEND="serial").stdout.startswith("serial ")


@pytest.mark.parametrize(
    ("specification", "words"),
    [
        ("threads?wokers=3", ["wokers", "workers"]),
        ("threads?workers=many", ["workers", "many"]),
        ("no_such_backend", ["no_such_backend", "threads"]),
        ("dask?address=tcp://127.0.0.1:1&start_timeout=1", ["127.0.0.1:1"]),
    ],
)
@pytest.mark.parametrize("command", ["info", "run"])
def test_a_wrong_backend_is_one_line(specification: str, words: list[str], command: str, script: Path) -> None:
    done = run(command, "--backend", specification, *([str(script)] if command == "run" else []))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("polyexec: error: ")
    assert all(word in line for word in words)


@pytest.mark.parametrize("asked", ["option", "variable"])
def test_the_traceback_is_shown_when_asked_for(asked: str) -> None:
    arguments = ["info", "--backend", "no_such_backend"]
    done = run("--traceback", *arguments) if asked == "option" else run(*arguments, POLYEXEC_TRACEBACK="1")
    assert done.returncode == 2
    assert done.stderr.startswith("Traceback")
    assert "BackendNotFound" in done.stderr


def test_an_error_of_the_script_itself_is_shown_as_python_does(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text("import polyexec\nwith polyexec.connect('serial') as ex:\n    ex.submit(lambda: 1 / 0).result()\n")
    done = run("run", str(path))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ZeroDivisionError: division by zero"


def test_a_script_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    done = run("run", str(tmp_path / "nothing.py"))
    assert done.returncode == 2
    assert done.stderr == f"polyexec: error: there is no file {str(tmp_path / 'nothing.py')!r}\n"


def test_the_exit_code_of_a_script_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text("import sys\nsys.exit(7)\n")
    assert run("run", str(path)).returncode == 7

"""Modules and files of a folder that the workers do not have travel with the task that needs them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import polyexec
from polyexec import Executor


def greet() -> str:
    """Use a module, a file and a variable that only this task has."""
    import greetings  # type: ignore[import-not-found]

    name = Path("name.txt").read_text(encoding="utf-8").strip()
    return f"{greetings.hello(name)} in {os.environ['GREETING_LANGUAGE']}"


def write_project(folder: Path) -> None:
    """Make a small project: a module, a file of data, and something that stays at home."""
    (folder / "lib").mkdir()
    (folder / "lib" / "greetings.py").write_text("def hello(name):\n    return f'hello {name}'\n", encoding="utf-8")
    (folder / "data").mkdir()
    (folder / "data" / "name.txt").write_text("world\n", encoding="utf-8")
    (folder / "data" / "secret.txt").write_text("not for others\n", encoding="utf-8")
    (folder / "data" / ".gitignore").write_text("secret.txt\n", encoding="utf-8")


def main(ex: Executor) -> None:
    """Run a task with a module, a folder and a variable."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_project(folder)
        there = ex.options(
            working_dir=folder / "data",
            py_modules=[folder / "lib" / "greetings.py"],
            env={"GREETING_LANGUAGE": "English"},
        )
        print(there.submit(greet).result())
        print("files:", there.submit(lambda: sorted(os.listdir("."))).result())
        print("elsewhere:", ex.submit(os.environ.get, "GREETING_LANGUAGE").result())


if __name__ == "__main__":
    with polyexec.connect() as executor:
        main(executor)

"""Chapter D: folders and modules that are sent along with tasks."""

from __future__ import annotations

import importlib
import importlib.util
import os
import stat
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import pytest

import polyexec
from polyexec import Executor
from polyexec.testing.helpers import LIMIT, require_processes
from polyexec.testing.marks import alone, clause, deviation
from polyexec.testing.target import Target
from polyexec.testing.tools import Marks

_CODE = """
import os, signal

VERSION = {version}
calls = []

class Thing:
    def __init__(self, value):
        self.value = value

def give(thing=None):
    return Thing(VERSION if thing is None else thing.value + 1)

def where():
    return __file__

def count():
    calls.append(None)
    return VERSION, len(calls)

def die_first(marks):
    marks.add("start")
    if marks.count("start") == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return VERSION
"""


@attrs.frozen
class Shelf:
    """A folder of modules that the driver can import, and workers cannot.

    Attributes:
        folder: where they are.
        name: of the module; no other test has one of that name.
    """

    folder: Path
    name: str

    @property
    def file(self) -> Path:
        """Where a module of one file is."""
        return self.folder / f"{self.name}.py"

    def write(self, version: int = 1) -> Path:
        """Write a module of one file."""
        self.file.write_text(_CODE.format(version=version))
        return self.file

    def write_package(self) -> Path:
        """Write a package of two modules."""
        package = self.folder / self.name
        package.mkdir()
        (package / "__init__.py").write_text("from .inside import *\nfrom .inside import calls\n")
        (package / "inside.py").write_text(_CODE.format(version=1))
        return package

    def load(self, name: str = "") -> ModuleType:
        """Import it here, as it is now."""
        for known in [known for known in sys.modules if known.partition(".")[0] == self.name]:
            del sys.modules[known]
        importlib.invalidate_caches()
        return importlib.import_module(name or self.name)


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    """An empty one."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    found = Shelf(tmp_path / "shelf", f"shelf_{uuid.uuid4().hex[:8]}")
    found.folder.mkdir()
    monkeypatch.syspath_prepend(str(found.folder))
    yield found
    for name in [name for name in sys.modules if name.partition(".")[0] == found.name]:
        del sys.modules[name]


def _look() -> dict[str, Any]:
    """Give what a task sees of its folder."""
    names = {os.path.relpath(os.path.join(folder, name)) for folder, _, names in os.walk(".") for name in names}
    return {"folder": os.getcwd(), "files": sorted(names), "path": list(sys.path)}


def _find(name: str) -> str | None:
    found = importlib.util.find_spec(name)
    return None if found is None else found.origin


@clause("D1")
@pytest.mark.parametrize("kind", ["file", "package", "folder", "module"])
def test_functions_of_a_module_that_is_sent_along(ex: Executor, shelf: Shelf, kind: str) -> None:
    """D1 Functions and classes of a module work in tasks that have it, whose workers cannot find it otherwise."""
    name = shelf.name
    if kind == "folder":
        (shelf.folder / name).mkdir()
        shelf.write().rename(shelf.folder / name / "inner.py")
        name += ".inner"
        sent: Any = shelf.folder / shelf.name
    else:
        sent = shelf.write_package() if kind == "package" else shelf.write()
    module = shelf.load(name)
    ex_with = ex.options(py_modules=[module if kind == "module" else sent])
    first = ex_with.submit(module.give)
    assert ex_with.submit(module.give, first).result(LIMIT).value == 2
    assert isinstance(first.result(LIMIT), module.Thing)
    copy = ex_with.submit(module.where).result(LIMIT)
    assert not copy.startswith(str(shelf.folder))
    for later in [ex.submit(_find, shelf.name) for _ in range(4)]:
        origin = later.result(LIMIT)
        assert origin is None or origin.startswith(str(shelf.folder)), "a task without it finds the copy"


@clause("D1")
def test_a_file_of_a_folder_of_modules_is_importable_by_its_own_name(ex: Executor, shelf: Shelf) -> None:
    """D1 What a folder that is no package holds can be imported as if the folder were on the path, too."""
    source = shelf.folder / "src"
    source.mkdir()
    shelf.write().rename(source / f"{shelf.name}.py")
    assert ex.options(py_modules=[source]).submit(_find, shelf.name).result(LIMIT) is not None


@clause("D1")
def test_a_task_runs_in_its_folder(ex: Executor, shelf: Shelf, target: Target) -> None:
    """D1 A task with ``working_dir`` runs in a copy of it, imports what is there, and keeps its ``env``."""
    shelf.write()
    (shelf.folder / "data.txt").write_text("some data")

    def body(name: str) -> tuple[str, str, str | None]:
        module = importlib.import_module(name)
        assert module.__file__ is not None
        return Path("data.txt").read_text(), os.path.dirname(module.__file__), os.environ.get("POLYEXEC_TESTING_VALUE")

    inside = ex.options(working_dir=shelf.folder, env={"POLYEXEC_TESTING_VALUE": "set"})
    before = {ex.submit(_look).result(LIMIT)["folder"] for _ in range(4)}
    folder = inside.submit(_look).result(LIMIT)["folder"]
    assert inside.submit(body, shelf.name).result(LIMIT) == ("some data", folder, "set")
    assert folder != str(shelf.folder)
    after = [ex.submit(_look).result(LIMIT) for _ in range(4)]
    assert {seen["folder"] for seen in after} <= before | {os.getcwd()}
    assert not [path for seen in after for path in seen["path"] if path.startswith(folder)]


@clause("D1")
def test_what_gitignore_names_stays_here(ex: Executor, shelf: Shelf) -> None:
    """D1 Files that ``.gitignore`` names, at every level, are not sent; neither is what git or Python keep there."""
    files = {
        ".gitignore": "*.log\n/data/\n!keep.log\n",
        "a.py": "",
        "a.log": "",
        "keep.log": "",
        "data/large": "",
        "inner/.gitignore": "b.*\n!a.log\n",
        "inner/a.log": "",
        "inner/b.py": "",
        "inner/data/small": "",
        ".git/HEAD": "",
        "inner/__pycache__/a.pyc": "",
    }
    for name, text in files.items():
        (shelf.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (shelf.folder / name).write_text(text)
    seen = ex.options(working_dir=shelf.folder).submit(_look).result(LIMIT)["files"]
    assert seen == [".gitignore", "a.py", "inner/.gitignore", "inner/a.log", "inner/data/small", "keep.log"]


@clause("D1", "S2")
def test_versions_of_a_module_in_turn(single: Executor, shelf: Shelf) -> None:
    """D1 A task has the version that was there when it was submitted; each is itself when its next task comes."""
    ex = single.options(py_modules=[shelf.write()])
    counts = []
    for version in (1, 2, 1, 2):
        shelf.write(version)
        counts.append(ex.submit(shelf.load().count))
    assert [future.result(LIMIT) for future in counts] == [(1, 1), (2, 1), (1, 2), (2, 2)]


@clause("D1")
def test_tasks_of_a_task_have_what_it_has(ex: Executor, shelf: Shelf) -> None:
    """D1 What a task submits has the same as the task, or what the task itself gives it."""
    shelf.write()
    module = shelf.load()

    def body(name: str) -> list[Any]:
        inherited = polyexec.current().submit(importlib.import_module(name).give)
        Path("made.py").write_text("value = 'made in a task'\n")
        given = polyexec.current().options(py_modules=["made.py"]).submit(lambda: importlib.import_module("made").value)
        return [inherited.result().value, given.result(), Path("made.py").is_file()]

    inside = ex.options(working_dir=shelf.folder, py_modules=[module])
    assert inside.submit(body, shelf.name).result(LIMIT) == [1, "made in a task", True]
    assert not (shelf.folder / "made.py").exists()


@clause("D1", "F5")
@pytest.mark.parametrize("retry", [None, lambda error, attempt, options: options], ids=["plain", "hook"])
def test_a_new_attempt_has_what_the_first_had(
    ex: Executor, shelf: Shelf, marks: Marks, target: Target, retry: Any
) -> None:
    """D1 A task that runs again, in another worker perhaps, has what was sent along at first."""
    require_processes(target)
    shelf.write()
    module = shelf.load()
    future = ex.options(py_modules=[module], retries=1, retry=retry).submit(module.die_first, marks)
    shelf.write(2)
    assert future.result(LIMIT) == 1


@clause("D1")
def test_all_is_put_back_after_an_error(ex: Executor, shelf: Shelf) -> None:
    """D1 A task that fails, or goes elsewhere, leaves its worker as it was."""
    before = [ex.submit(_look).result(LIMIT)["folder"] for _ in range(4)]

    def body() -> None:
        os.chdir("/")
        sys.path.clear()
        raise ValueError("failed")

    shelf.write()
    assert isinstance(ex.options(working_dir=shelf.folder).submit(body).exception(LIMIT), ValueError)
    after = [ex.submit(_look).result(LIMIT) for _ in range(4)]
    assert {seen["folder"] for seen in after} <= set(before)
    assert all(seen["path"] for seen in after)


@clause("D1")
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"working_dir": "no-such-folder"}, "no-such-folder"),
        ({"working_dir": 3}, "3"),
        ({"working_dir": __file__}, "folder"),
        ({"py_modules": "a-text"}, "list"),
        ({"py_modules": ["no_such_module"]}, "no_such_module"),
        ({"py_modules": [3]}, "3"),
        ({"py_modules": [sys]}, "sys"),
        ({"py_modules": [polyexec]}, "polyexec"),
    ],
)
def test_what_cannot_be_sent_is_refused(ex: Executor, options: dict[str, Any], says: str) -> None:
    """D1 What is not there, or cannot be imported, is refused at once, with a text that names it."""
    with pytest.raises(polyexec.SpecificationError, match=says):
        ex.options(**options)


@alone
@clause("D1", "F9")
def test_copies_go_with_the_executor(opened: Callable[..., AbstractContextManager[Executor]], shelf: Shelf) -> None:
    """D1 Nobody else can look into a copy, and none is left when the executor is closed."""
    shelf.write()
    with opened(workers=1) as ex:
        folder = Path(ex.options(working_dir=shelf.folder).submit(_look).result(LIMIT)["folder"])
        assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
    assert not folder.parent.exists()


@deviation("D1")
def test_modules_are_used_where_they_are(ex: Executor, shelf: Shelf) -> None:
    """D1 (declared) Tasks import from where things are, and stay in the current directory of the process."""
    shelf.write()
    module = shelf.load()
    seen = ex.options(py_modules=[shelf.file], working_dir=shelf.folder).submit(_look).result(LIMIT)
    assert seen["folder"] == os.getcwd()
    assert seen["path"].count(str(shelf.folder)) == sys.path.count(str(shelf.folder)) + 2
    assert ex.options(py_modules=[module]).submit(module.where).result(LIMIT) == str(shelf.file)

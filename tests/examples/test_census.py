"""The example program, on a part of its input."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from pathlib import Path
from types import ModuleType

import pytest

import polyexec

FOLDER = Path(__file__).parents[2] / "examples"


def load(name: str) -> ModuleType:
    """Import an example."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def census() -> ModuleType:
    """The program as a module."""
    return load("census")


@pytest.fixture(scope="module")
def sources(census: ModuleType) -> list[tuple[str, bytes]]:
    """Some of the library's files, and one that is no Python."""
    return [*itertools.islice(census.library_sources(), 40), ("broken.py", b"def :\n")]


def test_counts_do_not_depend_on_the_order_of_files(census: ModuleType, sources: list[tuple[str, bytes]]) -> None:
    with polyexec.connect("serial") as ex:
        first = census.digest(*census.take_census(ex, sources))
        second = census.digest(*census.take_census(ex, sources[::-1]))
    assert first == second


def test_what_is_counted(census: ModuleType) -> None:
    source = b"import os.path, sys\nfrom re import sub\ndef f(a):\n    if a:\n        return os.sep\n"
    with polyexec.connect("serial") as ex:
        total, twins = census.take_census(ex, [("a.py", source), ("b.py", b"def :\n")])
    assert (total.files, total.lines, total.unparsable) == (2, 6, 1)
    assert total.identifiers == {"f": 1, "a": 2, "os": 1, "sep": 1}
    assert total.imports == {"os": 1, "sys": 1, "re": 1}
    assert total.functions == [(1, "a.py:f")]
    assert twins == []


def test_demo_tells_which_backend_failed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    demo = load("demo")
    monkeypatch.setattr(sys, "argv", ["demo", "no-such-backend"])
    assert demo.main() == 1
    shown = capsys.readouterr()
    assert "failed: " in shown.out
    assert "no-such-backend" in shown.out
    assert shown.err == "demo: not every backend finished\n"

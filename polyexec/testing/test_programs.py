"""Whole programs, which print the same on every backend; each stands under the clause that it is mostly about."""

from __future__ import annotations

import importlib
import re

import pytest

from polyexec import Executor
from polyexec.testing.marks import clause
from polyexec.testing.programs import PRINTED

_OTHERS = re.compile(r"(\x1b\[\d+m)?\(")
"""What is printed on behalf of tasks, or of the engine, which may have warnings of its own, is marked so."""


@pytest.mark.parametrize(
    ("name", "printed"),
    [pytest.param(name, printed, marks=clause(number), id=name) for (number, name), printed in PRINTED.items()],
)
def test_a_program_prints_the_same_everywhere(
    name: str, printed: str, ex: Executor, capsys: pytest.CaptureFixture[str]
) -> None:
    """Clause of each program: it prints on this backend what it prints on all others."""
    module = importlib.import_module(f"polyexec.testing.programs.{name}")
    module.main(ex)
    expected = [line.strip() for line in printed.strip().splitlines()]
    assert [line for line in capsys.readouterr().out.splitlines() if not _OTHERS.match(line)] == expected

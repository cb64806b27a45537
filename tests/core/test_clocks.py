"""Which clocks the code looks at: the wall clock may be set at any time, so that nothing may be measured by it."""

from __future__ import annotations

import ast
from pathlib import Path

import polyexec

ROOT = Path(polyexec.__file__).parents[1]
LOOKS = {"polyexec/recording.py", "polyexec/dumping.py", "polyexec/packing.py"}
"""Two give times to people and tools; the last compares with the times of files."""

WALL = {"time", "time_ns", "now", "utcnow", "today"}
CLOCKS = {"time", "datetime", "date", "_time"}


def looks(tree: ast.AST) -> bool:
    """Tell whether code looks at the wall clock."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in {"time", "distributed.metrics"}:
            if WALL & {name.name for name in node.names}:
                return True
        elif isinstance(node, ast.Attribute) and node.attr in WALL and ast.unparse(node.value) in CLOCKS:
            return True
    return False


def test_no_time_is_measured_by_the_wall_clock() -> None:
    files = [*ROOT.glob("polyexec/**/*.py"), *ROOT.glob("backends/**/*.py")]
    found = {path.relative_to(ROOT).as_posix() for path in files if looks(ast.parse(path.read_text()))}
    assert found == LOOKS

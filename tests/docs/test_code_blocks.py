"""Every Python block of the documentation runs: those of one page in order, as one script, in a process of its own.

Programs that a page includes are marked as ``{.python}``; they are tested where they are.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(path for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")] if "```python" in path.read_text())
BLOCK = re.compile(r"^(?P<indent> *)```python[^\n]*\n(?P<code>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE)


def script_of(page: str) -> str:
    """Blank all but the code, so that line numbers in tracebacks are those of the page."""
    lines = [""] * (page.count("\n") + 1)
    for block in BLOCK.finditer(page):
        first = page.count("\n", 0, block.start("code"))
        for offset, line in enumerate(block["code"].splitlines()):
            lines[first + offset] = line.removeprefix(block["indent"])
    return "\n".join(lines)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_blocks_of_a_page_run(path: Path, tmp_path: Path) -> None:
    script = tmp_path / "blocks.py"
    script.write_text(script_of(path.read_text()))
    environment = {**os.environ, "POLYEXEC_BACKEND": "process?workers=2"}
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr

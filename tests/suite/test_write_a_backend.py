"""The page on writing a backend shows the code of the distribution that the packaging tests install."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOREIGN = ROOT / "tests" / "foreign"
SHOWN = ("pyproject.toml", "foreign_pool/__init__.py", "foreign_pool/pool.py", "foreign_pool/worker.py")


@pytest.mark.parametrize("path", SHOWN)
def test_the_page_shows_the_file_as_it_is(path: str) -> None:
    page = (ROOT / "docs" / "how-to" / "write-a-backend.md").read_text(encoding="utf-8")
    (code,) = re.findall(rf'^```\w+ title="{re.escape(path)}"\n(.*?)^```$', page, re.DOTALL | re.MULTILINE)
    assert code == (FOREIGN / path).read_text(encoding="utf-8")

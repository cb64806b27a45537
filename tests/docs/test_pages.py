"""What pages say about the code, compared with the code."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
import pytest

import polyexec
from polyexec import registry
from polyexec.testing.clauses import CLAUSES

DOCS = Path(__file__).parents[2] / "docs"
BACKENDS = ("serial", "threads", "process", "dask", "ray")


def first_cells(page: Path) -> set[str]:
    """Give what stands in the first column of a page's tables."""
    return set(re.findall(r"^\| ([^|]+?) \|", page.read_text(), re.MULTILINE))


def test_the_contract_has_every_clause() -> None:
    headings = re.findall(r"^### ([A-Z]\d+)$", (DOCS / "reference" / "contract.md").read_text(), re.MULTILINE)
    assert headings == list(CLAUSES)


@pytest.mark.parametrize("name", BACKENDS)
def test_the_page_of_a_backend_lists_its_keys(name: str) -> None:
    keys = {f"`{field.name}`" for field in attrs.fields(registry.backend_class(name).Config)}
    assert keys <= first_cells(DOCS / "backends" / f"{name}.md")


@pytest.mark.parametrize("name", BACKENDS)
def test_the_page_of_a_backend_names_what_it_does_not_keep(name: str) -> None:
    page = (DOCS / "backends" / f"{name}.md").read_text()
    entries = re.findall(r"^(?:\| ([^|]+) \||- ([^:]+):)", page, re.MULTILINE)
    named = {clause for entry in entries for clause in re.findall(r"\b[A-Z]\d+\b", "".join(entry))}
    assert named == {deviation.clause for deviation in registry.backend_class(name).deviations}


def test_the_table_of_errors_is_right() -> None:
    page = (DOCS / "how-to" / "handle-failures.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| `([\w.]+)` \|", page, re.MULTILINE)
    for name, base in rows:
        error = getattr(polyexec, name)
        assert base.rpartition(".")[2] in {parent.__name__ for parent in error.__mro__}
    root = polyexec.PolyexecError
    public = {name for name in polyexec.__all__ if issubclass_of(getattr(polyexec, name), root)}
    assert {name for name, _ in rows} == public - {"PolyexecError", "RemoteTraceback", "ActorDied"}


def issubclass_of(value: object, root: type) -> bool:
    """Tell whether something is a class below another."""
    return isinstance(value, type) and issubclass(value, root)

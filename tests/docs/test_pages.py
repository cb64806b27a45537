"""What pages say about the code, compared with the code."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import attrs
import pytest

import polyexec
from polyexec import registry
from polyexec.testing.clauses import CLAUSES
from polyexec.testing.programs import PRINTED

DOCS = Path(__file__).parents[2] / "docs"
LINK = re.compile(r"\[[^\]]+\]\([^)]*contract\.md#[^)]*\)")
"""A reference to a clause says nothing about whether it is kept."""

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
    page = LINK.sub("", (DOCS / "backends" / f"{name}.md").read_text())
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
    assert {name for name, _ in rows} == public - {"PolyexecError", "RemoteTraceback"}


def test_programs_are_shown_with_what_they_print() -> None:
    """A page includes each program, and says what it prints, as the conformance suite finds it on every backend."""
    pages = [page.read_text() for page in DOCS.rglob("*.md")]
    for (_, name), printed in PRINTED.items():
        shown = f'\n--8<-- "polyexec/testing/programs/{name}.py"\n```\n'
        text = f"\n```text\n{textwrap.dedent(printed).strip()}\n```\n"
        assert [page for page in pages if shown in page and text in page], name


def test_the_tests_that_pages_name_exist() -> None:
    named = {name for page in DOCS.rglob("*.md") for name in re.findall(r"`(test_\w+)`", page.read_text())}
    sources = [path.read_text() for folder in ("tests", "polyexec") for path in (DOCS.parent / folder).rglob("*.py")]
    defined = {name for source in sources for name in re.findall(r"\bdef (test_\w+)\(", source)}
    assert named
    assert not named - defined


def test_nothing_else_is_included_than_files() -> None:
    """A formatter that takes the mark of an inclusion for an operator would leave it on the page as it is."""
    for page in DOCS.rglob("*.md"):
        for line in page.read_text().splitlines():
            assert re.fullmatch(r'--8<-- "[\w./]+"', line) or not re.search(r"8 ?< ?-", line), page


def issubclass_of(value: object, root: type) -> bool:
    """Tell whether something is a class below another."""
    return isinstance(value, type) and issubclass(value, root)

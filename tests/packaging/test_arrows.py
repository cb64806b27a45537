"""Who imports whom: backends -> polyexec.spi -> core; the core imports no backend, and no backend another."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = ROOT / "polyexec"
BACKENDS: dict[str, set[str]] = {
    "polyexec_local": set(),
    "polyexec_dask": {"dask", "distributed"},
    "polyexec_ray": {"ray"},
}
FOR_BACKENDS = {
    *(
        "config",
        "envelope",
        "errors",
        "interrupts",
        "lanes",
        "memory_usage",
        "options",
        "outcome",
        "plain_worker",
        "spi",
        "stacks",
    ),
}
TOOLS = {"attrs", "cloudpickle", "threadpoolctl"}
OPTIONAL = {"rich": "progress.py"}
"""What one module of the core uses if it is there."""


def imports_of(folder: Path) -> Iterator[tuple[str, str]]:
    """Give each imported name with the file that imports it, imports inside functions among them."""
    for path in sorted(folder.rglob("*.py")):
        package = ".".join(path.parent.relative_to(folder.parent).parts)
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                yield from ((alias.name, str(path)) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                source = resolve_name("." * node.level + (node.module or ""), package)
                yield from ((f"{source}.{alias.name}", str(path)) for alias in node.names)


def foreign(folder: Path, allowed: set[str]) -> list[tuple[str, str]]:
    """Give the imports of packages that are neither the standard library's nor allowed."""
    tops = sys.stdlib_module_names | allowed
    return [found for found in imports_of(folder) if found[0].split(".")[0] not in tops]


def test_core_imports_no_backend_and_no_engine() -> None:
    outside = foreign(CORE, {"polyexec"} | TOOLS)
    outside = [
        (name, path) for name, path in outside if Path(path) != CORE / OPTIONAL.get(name.split(".")[0], "nowhere")
    ]
    assert [found for found in outside if not found[1].startswith(str(CORE / "testing"))] == []
    # One of the suite's programs writes a module of this name for its tasks.
    assert {name.split(".")[0] for name, _ in outside} <= {"pytest", "numpy", "_pytest", "greetings"}


@pytest.mark.parametrize("package", BACKENDS)
def test_backend_imports_its_engine_alone(package: str) -> None:
    assert foreign(ROOT / "backends" / package, {"polyexec", package} | TOOLS | BACKENDS[package]) == []


@pytest.mark.parametrize("package", BACKENDS)
def test_backend_uses_what_is_meant_for_backends(package: str) -> None:
    public = {"polyexec"} | {f"polyexec.{name}" for name in FOR_BACKENDS | public_names()}
    used = {name for name, _ in imports_of(ROOT / "backends" / package) if name.split(".")[0] == "polyexec"}
    assert {name for name in used if ".".join(name.split(".")[:2]) not in public} == set()


def public_names() -> set[str]:
    """Read ``__all__`` of the package."""
    for node in ast.parse((CORE / "__init__.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    raise AssertionError("polyexec has no __all__")

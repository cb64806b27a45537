"""What the subcommands do."""

from __future__ import annotations

import importlib.metadata
import os
import re
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence

import attrs

import polyexec
from polyexec import registry

EXTENSIONS = "polyexec.commands"


class WrongUse(Exception):
    """What the command was asked to do makes no sense."""


def list_backends() -> None:
    """Print the name of each installed backend, where it comes from, and whether its engine is there."""
    for name, entry in sorted(registry.names().items()):
        missing = sorted(_missing_requirements(name, entry))
        state = f"missing {', '.join(missing)}: {_install_line(name, entry)}" if missing else "ready"
        print(f"{name:12} {_origin(entry):24} {state}")


def show_info(specification: str | None) -> None:
    """Connect, and print what the executor knows about itself and its resources."""
    with polyexec.connect(specification) as ex:
        for field, value in attrs.asdict(ex.info, recurse=False).items():
            print(f"{field:14} {'-' if value in (None, '') else value}")
        resources = ex.resources()
        print(f"{'total':14} {resources.total}")
        print(f"{'available':14} {resources.available}")
        for node in resources.nodes:
            print(f"{'node':14} {node.id} on {node.host}: {node.total}{'' if node.alive else ', lost'}")


def run_script(script: str, arguments: Sequence[str], specification: str | None) -> None:
    """Run a script as ``python SCRIPT ARGUMENTS`` would, with ``POLYEXEC_BACKEND`` set to the specification."""
    if not os.path.isfile(script):
        raise WrongUse(f"there is no file {script!r}")
    if specification is not None:
        os.environ["POLYEXEC_BACKEND"] = specification
    sys.argv = [script, *arguments]
    sys.path.insert(0, os.path.dirname(os.path.abspath(script)))
    runpy.run_path(script, run_name="__main__")


def extensions() -> list[str]:
    """Name the commands that installed packages add, by the entry points ``polyexec.commands``."""
    return sorted(importlib.metadata.entry_points(group=EXTENSIONS).names)


def find_extension(name: str) -> Callable[[Sequence[str]], int] | None:
    """Import the function behind such a command; it takes the arguments, and gives the exit status. None if unknown."""
    found = importlib.metadata.entry_points(group=EXTENSIONS, name=name)
    for point in found:
        function: Callable[[Sequence[str]], int] = point.load()
        return function
    return None


def _missing_requirements(name: str, entry: importlib.metadata.EntryPoint) -> Iterator[str]:
    """Tell what of a distribution's extra of the same name as the backend is not installed."""
    for requirement in (entry.dist and entry.dist.requires) or ():
        package, _, marker = requirement.partition(";")
        match = re.match(r"[\w.-]+", package)
        if match and re.search(rf"""extra\s*==\s*["']{re.escape(name)}["']""", marker) and not _is_installed(match[0]):
            yield match[0]


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _install_line(name: str, entry: importlib.metadata.EntryPoint) -> str:
    return f'pip install "{entry.dist.name if entry.dist else name}[{name}]"'


def _origin(entry: importlib.metadata.EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value

"""The pytest plugin of the conformance suite and the fault matrix, found through the entry-point group ``pytest11``.

It adds options and hooks only to runs that ask for ``polyexec.testing``, and is inert in all others. (A ``conftest.py``
cannot add options here: pytest reads them before it looks at what ``--pyargs`` names.) The fault matrix is a package
inside the suite's; it runs only if it is asked for by its own name.
"""

from __future__ import annotations

from pathlib import Path

import pytest

_PACKAGE = "polyexec.testing"
_FAULTS = f"{_PACKAGE}.faults"
_FOLDER = Path(__file__).resolve().parent


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config, parser: pytest.Parser, args: list[str]) -> None:
    """Add the suite's options to a run that asks for it."""
    folder = early_config.invocation_params.dir
    # What follows -p is a plugin, such as the watchdog.
    args = [argument for index, argument in enumerate(args) if args[max(0, index - 1)] != "-p"]
    if not any(names(argument, folder, _PACKAGE) for argument in args):
        return
    group = parser.getgroup("polyexec", "polyexec conformance suite and fault matrix")
    group.addoption(
        "--backend", dest="polyexec_backend", metavar="SPEC", help="backend under test, NAME[?key=value&...]"
    )
    if any(names(argument, folder, _FAULTS) for argument in args):
        group.addoption(
            "--fault-report",
            dest="polyexec_faults_report",
            metavar="FILE",
            help="write the result, row by row, as JSON",
        )
        return
    group.addoption(
        "--backend-report", dest="polyexec_report", metavar="FILE", help="write the result, clause by clause, as JSON"
    )
    group.addoption(
        "--clauses", dest="polyexec_clauses", metavar="C1,C2", default="", help="run only the tests of these clauses"
    )


def names(argument: str, folder: Path, package: str) -> bool:
    """Tell whether an argument of pytest's names a package of the suite, or something in it.

    Args:
        argument: from the command line.
        folder: in which pytest was started.
        package: ``polyexec.testing`` or a package in it.
    """
    name = argument.partition("::")[0]
    if name == package or name.startswith(f"{package}."):
        return True
    try:
        path = (folder / name).resolve()
        return path.exists() and path.is_relative_to(_FOLDER.joinpath(*package.split(".")[2:]))
    except (OSError, ValueError):
        return False


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave the fault matrix out of runs of the suite."""
    wanted = hasattr(config.option, "polyexec_faults_report")
    return True if not wanted and collection_path == _FOLDER / "faults" else None


def pytest_configure(config: pytest.Config) -> None:
    """Start the bookkeeping of what is asked for."""
    if hasattr(config.option, "polyexec_faults_report"):
        from polyexec.testing.faults.session import FaultSession

        config.pluginmanager.register(FaultSession.of(config), "polyexec-faults")
    elif hasattr(config.option, "polyexec_backend"):
        from polyexec.testing.session import Session

        config.pluginmanager.register(Session.of(config), "polyexec-conformance")

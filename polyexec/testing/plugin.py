"""The pytest plugin of the conformance suite, found through the entry-point group ``pytest11``.

It adds options and hooks only to runs that ask for ``polyexec.testing``, and is inert in all others. (A ``conftest.py``
cannot add options here: pytest reads them before it looks at what ``--pyargs`` names.)
"""

from __future__ import annotations

from pathlib import Path

import pytest

_PACKAGE = "polyexec.testing"


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config, parser: pytest.Parser, args: list[str]) -> None:
    """Add the suite's options to a run that asks for it."""
    if not any(_names_suite(argument, early_config.invocation_params.dir) for argument in args):
        return
    group = parser.getgroup("polyexec", "polyexec conformance suite")
    group.addoption(
        "--backend", dest="polyexec_backend", metavar="SPEC", help="backend under test, NAME[?key=value&...]"
    )
    group.addoption(
        "--backend-report", dest="polyexec_report", metavar="FILE", help="write the result, clause by clause, as JSON"
    )
    group.addoption(
        "--clauses", dest="polyexec_clauses", metavar="C1,C2", default="", help="run only the tests of these clauses"
    )


def _names_suite(argument: str, folder: Path) -> bool:
    name = argument.partition("::")[0]
    if name == _PACKAGE or name.startswith(f"{_PACKAGE}."):
        return True
    try:
        path = (folder / name).resolve()
        return path.exists() and path.is_relative_to(Path(__file__).resolve().parent)
    except (OSError, ValueError):
        return False


def pytest_configure(config: pytest.Config) -> None:
    """Start the suite's own bookkeeping if its options are there."""
    if hasattr(config.option, "polyexec_backend"):
        from polyexec.testing.session import Session

        config.pluginmanager.register(Session.of(config), "polyexec-conformance")

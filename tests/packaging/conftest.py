"""A wheel of the checkout, and a fresh environment that it is installed into."""

from __future__ import annotations

import sys
import venv
from pathlib import Path

import pytest
from commands import run_quietly

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, as a user would get it."""
    folder = tmp_path_factory.mktemp("wheel")
    run_quietly([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)])
    (path,) = folder.glob("polyexec-*.whl")
    return path


@pytest.fixture(scope="session")
def bare_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of an environment with the wheel and the dependencies of the core, and no more."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False, symlinks=True)
    python = str(folder / "bin" / "python")
    run_quietly([sys.executable, "-m", "pip", "--python", python, "install", "--quiet", str(wheel)])
    return python


@pytest.fixture(scope="session")
def testing_python(wheel: Path, bare_python: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of an environment with the wheel and its extra ``testing``."""
    folder = tmp_path_factory.mktemp("testing")
    venv.create(folder, with_pip=False, symlinks=True)
    python = str(folder / "bin" / "python")
    run_quietly([sys.executable, "-m", "pip", "--python", python, "install", "--quiet", f"{wheel}[testing]"])
    return python

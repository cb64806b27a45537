"""Finding an entry point quickly gives what ``importlib.metadata`` gives, or nothing."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from polyexec import entry_points, registry

GROUP = "toys.for.tests"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Be where nothing is installed but what is put into two folders, ``a`` before ``b``."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path / "a"), str(tmp_path / "missing.zip"), str(tmp_path / "b")])
    return tmp_path


def install(site: Path, name: str, text: str) -> None:
    (site / name).mkdir()
    (site / name / "METADATA").write_text(f"Name: {name.partition('/')[2].partition('-')[0]}\nVersion: 1\n")
    (site / name / "entry_points.txt").write_text(text)


@pytest.mark.parametrize("kind", ["one-1.0.dist-info", "one.dist-info", "one-1.0-py3.11.egg-info", "one.egg-info"])
def test_what_is_installed_is_found(site: Path, kind: str) -> None:
    mine = f"[{GROUP}]\n# toy = y:Y\nball = m.n:Ball\ntoy=m:Toy\n"
    install(site, f"b/{kind}", f"[other]\ntoy = x:X\n\n{mine}[z]\ntoy = z:Z\n")
    assert entry_points.find(GROUP, "toy") == "m:Toy"
    assert entry_points.find(GROUP, "ball") == "m.n:Ball"
    assert entry_points.find(GROUP, "nope") is None
    assert entry_points.find("nope", "toy") is None


def test_the_first_of_a_name_counts(site: Path) -> None:
    """As when something is installed in the user's folder and in the system's."""
    install(site, "b/my_dist-1.0.dist-info", f"[{GROUP}]\ntoy = old:Toy\n")
    install(site, "a/My.Dist-2.0.dist-info", f"[{GROUP}]\ntoy = new:Toy\n")
    assert entry_points.find(GROUP, "toy") == "new:Toy"
    assert [point.value for point in importlib.metadata.entry_points(group=GROUP)] == ["new:Toy"]


@pytest.mark.parametrize("value", ["m:Toy.inner", "m", "m:Toy [extra]", ""])
def test_what_is_unusual_is_left_to_others(site: Path, value: str) -> None:
    install(site, "a/one-1.dist-info", f"[{GROUP}]\ntoy = {value}\n")
    assert entry_points.find(GROUP, "toy") is None


def test_two_distributions_are_left_to_others(site: Path) -> None:
    for name in ("one", "two"):
        install(site, f"a/{name}-1.dist-info", f"[{GROUP}]\ntoy = {name}:Toy\n")
    assert entry_points.find(GROUP, "toy") is None


def test_what_is_installed_here() -> None:
    for name, point in registry.names().items():
        assert entry_points.find(registry.GROUP, name) == point.value


def test_connect_goes_without_the_slow_way() -> None:
    code = "import polyexec, sys; polyexec.connect('serial').close(); assert 'importlib.metadata' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

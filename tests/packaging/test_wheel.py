"""What is in the wheel, and what works with the core's dependencies alone."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from commands import run_quietly

BACKENDS = {"serial", "threads", "process", "dask", "ray"}
PACKAGES = {"polyexec", "polyexec_local", "polyexec_dask", "polyexec_ray", "polyexec_bench"}


def evaluate(python: str, code: str, folder: Path) -> object:
    """Run code that prints JSON, far from the checkout."""
    return json.loads(run_quietly([python, "-c", f"import json; {code}"], cwd=folder))


def test_wheel_has_the_packages_at_its_top_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == PACKAGES
    assert not [name for name in names if name.endswith((".pyc", ".md", ".toml"))]


def test_wheel_says_that_it_is_typed(wheel: Path) -> None:
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(zipfile.ZipFile(wheel).namelist())


def test_import_loads_no_engine_and_no_numpy(bare_python: str, tmp_path: Path) -> None:
    loaded = evaluate(bare_python, "import sys, polyexec; print(json.dumps(sorted(sys.modules)))", tmp_path)
    assert isinstance(loaded, list)
    assert not {"numpy", "ray", "dask", "distributed", "pytest", *PACKAGES - {"polyexec"}} & set(loaded)


def test_every_public_name_exists(bare_python: str, tmp_path: Path) -> None:
    code = "import polyexec; print(json.dumps([n for n in polyexec.__all__ if not hasattr(polyexec, n)]))"
    assert evaluate(bare_python, code, tmp_path) == []


def test_every_backend_is_announced(bare_python: str, tmp_path: Path) -> None:
    code = "from polyexec import registry; print(json.dumps(sorted(registry.names())))"
    assert evaluate(bare_python, code, tmp_path) == sorted(BACKENDS)


def test_command_lists_backends_and_what_they_lack(bare_python: str, tmp_path: Path) -> None:
    lines = run_quietly([str(Path(bare_python).with_name("polyexec")), "backends"], cwd=tmp_path).splitlines()
    states = {line.split()[0]: line for line in lines}
    assert set(states) == BACKENDS
    assert states["process"].endswith("ready")
    assert states["ray"].endswith('missing ray: pip install "polyexec[ray]"')


def test_local_backends_work_with_the_core_alone(bare_python: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import polyexec\nwith polyexec.connect() as ex:\n    print(ex.submit(lambda: 42).result())\n")
    command = [str(Path(bare_python).with_name("polyexec")), "run", "--backend"]
    for backend in ("serial", "threads?workers=1", "process?workers=1"):
        assert run_quietly([*command, backend, str(script)], cwd=tmp_path) == "42\n"


def test_conformance_suite_is_collected_from_the_wheel(testing_python: str, tmp_path: Path) -> None:
    command = [
        testing_python,
        "-m",
        "pytest",
        "--pyargs",
        "polyexec.testing",
        "--backend",
        "serial",
        "--collect-only",
        "-q",
    ]
    assert "tests collected" in run_quietly(command, cwd=tmp_path)

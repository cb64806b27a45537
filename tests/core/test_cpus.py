"""The number of cpus that a process may use (R1): what it may not use must not be promised to tasks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from polyexec import SpecificationError, cpus
from polyexec.config import usable_cpus

V2 = {"own": "0::/a/b\n"}
V1 = {"own": "12:pids:/x\n4:cpu,cpuacct:/a/b\n0::/\n"}


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Be on a machine with 64 cpus, whose control groups are described in a folder."""
    monkeypatch.delenv(cpus.VARIABLE, raising=False)
    monkeypatch.setattr(cpus, "_by_affinity", lambda: 64)
    monkeypatch.setattr(cpus, "_GROUPS", str(tmp_path))
    monkeypatch.setattr(cpus, "_OWN_GROUPS", str(tmp_path / "own"))
    return tmp_path


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 64),
        (V2, 64),
        ({**V2, "cpu.max": "max 100000\n", "a/b/cpu.max": "max 100000\n"}, 64),
        ({**V2, "a/b/cpu.max": "400000 100000\n"}, 4),
        ({**V2, "a/cpu.max": "350000 100000\n", "a/b/cpu.max": "800000 100000\n"}, 4),
        ({**V2, "cpu.max": "10000 100000\n"}, 1),
        ({"own": "0::/\n", "cpu.max": "200000 100000\n"}, 2),
        ({"own": "0::/../c\n", "cpu.max": "200000 100000\n"}, 2),
        ({**V1, "cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
        ({**V1, "cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ({**V1, "cpu/a/b/cpu.cfs_quota_us": "300000\n", "cpu/a/b/cpu.cfs_period_us": "100000\n"}, 3),
    ],
)
def test_quotas_of_control_groups(many: Path, files: dict[str, str], expected: int) -> None:
    for name, text in files.items():
        (many / name).parent.mkdir(parents=True, exist_ok=True)
        (many / name).write_text(text)
    assert usable_cpus() == expected


@pytest.mark.parametrize(("said", "expected"), [("3", 3), ("100", 64), ("0", 1), (" ", 64)])
def test_what_the_user_says(many: Path, monkeypatch: pytest.MonkeyPatch, said: str, expected: int) -> None:
    monkeypatch.setenv(cpus.VARIABLE, said)
    assert usable_cpus() == expected


def test_what_is_no_number_is_refused_in_one_line(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cpus.VARIABLE, "few")
    with pytest.raises(SpecificationError, match="LOKY_MAX_CPU_COUNT='few' is not a number of cpus"):
        usable_cpus()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux binds processes to cpus")
def test_affinity() -> None:
    one = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, [{one}]); from polyexec.config import usable_cpus; print(usable_cpus())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"1\n"

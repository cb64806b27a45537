"""F11: what is read about memory of processes, control groups of both versions, and the kernel's OOM killer."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from polyexec import memory_usage
from polyexec.config import machine_memory
from polyexec.memory_usage import Machine

GIB = 2**30


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Writes files of a system that is made up; paths begin with ``proc/`` or ``cgroup/``."""
    monkeypatch.setattr(memory_usage, "_PROC", str(tmp_path / "proc"))
    monkeypatch.setattr(memory_usage, "_CGROUPS", str(tmp_path / "cgroup"))

    def write(path: str, text: str) -> None:
        memory_usage._groups.cache_clear()
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    memory_usage._groups.cache_clear()
    memory_usage._lists_children.cache_clear()
    yield write
    memory_usage._groups.cache_clear()
    memory_usage._lists_children.cache_clear()


def meminfo(fake: Callable[[str, str], None], available: int, total: int) -> None:
    fake("proc/meminfo", f"MemTotal: {total // 1024} kB\nMemFree: 17 kB\nMemAvailable: {available // 1024} kB\n")


def test_a_machine_without_limits(fake: Callable[[str, str], None]) -> None:
    meminfo(fake, 3 * GIB, 8 * GIB)
    assert memory_usage.machine() == Machine(3 * GIB, 8 * GIB)
    assert machine_memory() == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_limits_of_version_2(fake: Callable[[str, str], None]) -> None:
    """The tightest of all levels counts; files that can be dropped are not in use, shared memory is."""
    meminfo(fake, 6 * GIB, 8 * GIB)
    fake("proc/self/cgroup", "0::/slice/job\n")
    for folder, limit, used, files in (("slice/job", "max", 3, 0), ("slice", str(4 * GIB), 3, 1), ("", "max", 9, 0)):
        fake(f"cgroup/{folder}/memory.max", f"{limit}\n")
        fake(f"cgroup/{folder}/memory.current", f"{used * GIB}\n")
        stat = f"anon 5\nshmem 77\ninactive_file {files * GIB // 2}\nactive_file {files * GIB // 2}\n"
        fake(f"cgroup/{folder}/memory.stat", stat)
    assert memory_usage.machine() == Machine(2 * GIB, 4 * GIB)
    fake("cgroup/slice/job/memory.max", f"{2**20}\n")
    assert memory_usage.machine() == Machine(0, 2**20)
    assert machine_memory() == 2**20


def test_limits_of_version_1(fake: Callable[[str, str], None]) -> None:
    meminfo(fake, 6 * GIB, 8 * GIB)
    fake("proc/self/cgroup", "9:cpu,cpuacct:/x\n4:memory:/job\n0::/other\n")
    for folder, limit, used in (("job", 2 * GIB, GIB), ("", 2**63 - 4096, 5 * GIB)):
        fake(f"cgroup/memory/{folder}/memory.limit_in_bytes", f"{limit}\n")
        fake(f"cgroup/memory/{folder}/memory.usage_in_bytes", f"{used}\n")
        stat = f"active_file 3\ninactive_file 4\ntotal_inactive_file {GIB // 4}\ntotal_active_file {GIB // 4}\n"
        fake(f"cgroup/memory/{folder}/memory.stat", stat)
    assert memory_usage.machine() == Machine(GIB * 3 // 2, 2 * GIB)


def test_a_container_sees_its_group_at_the_root(fake: Callable[[str, str], None]) -> None:
    """Its path is the host's, which is not mounted there."""
    meminfo(fake, 6 * GIB, 8 * GIB)
    for path in ("/docker/0123", "/../outside"):
        fake("proc/self/cgroup", f"0::{path}\n")
        fake("cgroup/memory.max", f"{GIB}\n")
        fake("cgroup/memory.current", f"{GIB // 2}\n")
        fake("cgroup/memory.stat", "anon 5\n")
        assert memory_usage.machine() == Machine(GIB // 2, GIB)


def test_kills_by_the_kernel(fake: Callable[[str, str], None]) -> None:
    """Those of the process's own control group, or else of the machine."""
    assert memory_usage.oom_kills() == 0
    fake("proc/vmstat", "nr_free_pages 5\noom_kill 3\nswap_ra 0\n")
    assert memory_usage.oom_kills() == 3
    fake("proc/self/cgroup", "0::/job\n")
    fake("cgroup/job/memory.stat", "anon 5\n")
    assert memory_usage.oom_kills() == 3
    fake("cgroup/job/memory.events", "low 0\nmax 7\noom 9\noom_kill 2\noom_group_kill 0\n")
    assert memory_usage.oom_kills() == 2


def test_kills_by_the_kernel_in_version_1(fake: Callable[[str, str], None]) -> None:
    fake("proc/vmstat", "nr_free_pages 5\noom_kill 3\n")
    fake("proc/self/cgroup", "4:memory:/job\n")
    fake("cgroup/memory/job/memory.stat", "cache 5\n")
    fake("cgroup/memory/job/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")
    assert memory_usage.oom_kills() == 1


def test_a_process_in_swap(fake: Callable[[str, str], None]) -> None:
    fake("proc/7/status", "Name:\tx\nVmRSS:\t90 kB\nRssAnon:\t  40 kB\nRssFile:\t50 kB\nVmSwap:\t       2 kB\n")
    assert memory_usage.own_bytes(7) == 42 * 1024
    assert memory_usage.own_bytes(8) is None


def test_pages_are_counted_by_share(fake: Callable[[str, str], None]) -> None:
    """Where the kernel does not tell shares, they count in full."""
    fake("proc/7/smaps_rollup", "0-f ---p 0 00:00 0 [rollup]\nPss: 90 kB\nPss_Anon: 20 kB\nSwap: 9 kB\nSwapPss: 3 kB\n")
    fake("proc/8/smaps_rollup", "0-f ---p 0 00:00 0 [rollup]\nPss: 90 kB\nSwapPss: 3 kB\n")
    fake("proc/8/status", "RssAnon: 100 kB\nVmSwap: 0 kB\n")
    assert memory_usage.counted_once([7, 8, 9]) == 123 * 1024


def test_nothing_is_known_elsewhere(fake: Callable[[str, str], None]) -> None:
    assert memory_usage.machine() is None
    assert memory_usage.family(os.getpid()) == (os.getpid(),)
    assert memory_usage.used_by(os.getpid()) == 0
    assert memory_usage.outgrown(os.getpid(), 0, 0) is None
    assert memory_usage.oom_kills() == 0


def test_this_machine() -> None:
    found = memory_usage.machine()
    assert found is not None
    assert 0 < found.available <= found.total
    assert memory_usage.oom_kills() >= 0
    assert memory_usage.used_by(os.getpid()) >= 2**20


_PARENT = """
import subprocess, threading
def start():
    global child
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
thread = threading.Thread(target=start)
thread.start()
thread.join()
deep = subprocess.Popen(["sh", "-c", "cat; true"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
deep.stdin.write(b"x\\n"); deep.stdin.flush()
deep.stdout.readline()
print(child.pid, deep.pid, flush=True)
input()
child.communicate(); deep.communicate()
"""


@pytest.mark.parametrize("lists_children", [True, False])
def test_a_family(monkeypatch: pytest.MonkeyPatch, lists_children: bool) -> None:
    """Children of every thread, and theirs; also on a kernel that does not list them."""
    monkeypatch.setattr(memory_usage, "_lists_children", lambda: lists_children)
    command = [sys.executable, "-c", _PARENT]
    parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    children = {int(pid) for pid in parent.stdout.readline().split()}
    found = memory_usage.family(parent.pid)
    parent.communicate("\n", timeout=60)
    assert found[0] == parent.pid
    assert children < set(found)
    assert len(found) == len(set(found)) == 4

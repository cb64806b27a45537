"""R5: which GPUs tasks may use, on machines with a driver, with a command only, with declared ones, with none."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import polyexec
from polyexec import gpus
from polyexec.config import LocalClusterConfig
from polyexec.testing.tools import eventually
from polyexec.testing.watch import alive


class Driver:
    """NVML, with devices that are reachable or not."""

    def __init__(self, uuids: Sequence[str | None], status: int = 0) -> None:
        self.uuids = uuids
        self.status = status
        self.open = 0

    def nvmlInit_v2(self) -> int:
        self.open += self.status == 0
        return self.status

    def nvmlShutdown(self) -> int:
        self.open -= 1
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = len(self.uuids)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, device: Any) -> int:
        device._obj.value = index.value + 1
        return 0 if self.uuids[index.value] is not None else 4

    def nvmlDeviceGetUUID(self, device: Any, text: Any, size: Any) -> int:
        uuid = self.uuids[device.value - 1]
        assert uuid is not None
        text.value = uuid.encode()
        assert len(text) == size.value
        return 0 if uuid else 3


def absent(name: str) -> Any:
    """Load what is not there."""
    raise OSError(f"{name}: cannot open shared object file")


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """A machine without GPUs; called with UUIDs, one that has them."""
    monkeypatch.delenv(gpus.VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))

    def has(*uuids: str | None, status: int = 0) -> None:
        driver = Driver(uuids, status)
        monkeypatch.setattr(gpus.ctypes, "CDLL", lambda name: driver)
        gpus.discover.cache_clear()

    monkeypatch.setattr(gpus.ctypes, "CDLL", absent)
    gpus.discover.cache_clear()
    yield has
    gpus.discover.cache_clear()


def command(folder: Path, script: str) -> None:
    """Put a script in the place of ``nvidia-smi``."""
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o700)


def test_a_machine_without_gpus() -> None:
    assert gpus.usable() == ()
    assert LocalClusterConfig().total().gpus == 0


def test_the_drivers_library_is_asked(machine: Callable[..., None]) -> None:
    machine("GPU-aa", "GPU-bb", "")
    assert gpus.discover() == ("GPU-aa", "GPU-bb", "")
    assert gpus.usable() == ("0", "1", "2")
    assert LocalClusterConfig().total().gpus == 3


def test_devices_out_of_reach_do_not_count(machine: Callable[..., None]) -> None:
    """NVML counts what a control group keeps from the process, CUDA does not."""
    machine(None, "GPU-bb", None, "GPU-dd")
    assert gpus.discover() == ("GPU-bb", "GPU-dd")
    assert gpus.usable() == ("0", "1")


def test_the_library_is_let_go(machine: Callable[..., None]) -> None:
    driver = Driver(["GPU-aa"])
    assert gpus._ask_nvml(lambda name: driver) == ("GPU-aa",)
    assert driver.open == 0


def test_a_machine_is_looked_at_once(machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    machine("GPU-aa")
    assert gpus.usable() == ("0",)
    monkeypatch.setattr(gpus.ctypes, "CDLL", absent)
    assert gpus.usable() == ("0",)


@pytest.mark.parametrize(
    ("variable", "names"),
    [
        ("", ()),
        ("-1", ()),
        ("NoDevFiles", ()),
        ("2,5", ("2", "5")),
        ("5, 2", ("5", "2")),
        ("2,-1,5", ("2",)),
        ("2,2,5", ("2",)),
        ("2,6,5", ("2",)),
        ("GPU-bbbb,1", ("GPU-bbbb", "1")),
        ("GPU-b", ("GPU-b",)),
        ("GPU-x,1", ()),
        ("MIG-GPU-aaaa/1/0,MIG-77", ("MIG-GPU-aaaa/1/0", "MIG-77")),
    ],
)
def test_visible_devices_are_honoured(
    machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch, variable: str, names: tuple[str, ...]
) -> None:
    machine("GPU-aaaa", "GPU-bbbb", "GPU-cccc", "GPU-dddd", "GPU-eeee", "GPU-ffff")
    monkeypatch.setenv(gpus.VARIABLE, variable)
    assert gpus.usable() == names
    assert LocalClusterConfig().gpu_ids() == names
    assert LocalClusterConfig().total().gpus == len(names)


@pytest.mark.parametrize("variable", ["0", "GPU-aaaa", "MIG-77"])
def test_a_variable_makes_no_gpu(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(gpus.VARIABLE, variable)
    assert gpus.usable() == ()


def test_declared_gpus_need_no_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "_ask_nvml", lambda load: pytest.fail("the machine was asked"))
    assert gpus.usable(2) == ("0", "1")
    assert gpus.usable(0) == ()
    for variable, names in (("", ("0", "1")), ("5,2,7", ("5", "2")), ("MIG-1,MIG-2", ("MIG-1", "MIG-2"))):
        monkeypatch.setenv(gpus.VARIABLE, variable)
        assert gpus.usable(2) == names
    assert LocalClusterConfig(gpus="2").total().gpus == 2


def test_more_cannot_be_declared_than_are_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(gpus.VARIABLE, "3")
    with pytest.raises(polyexec.SpecificationError, match=r"gpus=2, but CUDA_VISIBLE_DEVICES='3' leaves 1"):
        LocalClusterConfig(gpus=2).total()


_LISTING = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aaaa)
  MIG 1g.10gb     Device  0: (UUID: MIG-1111)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-bbbb)
GPU 2: Tesla K80
"""


@pytest.mark.parametrize("library", [False, True], ids=["no library", "no driver under the library"])
def test_the_command_is_asked(machine: Callable[..., None], tmp_path: Path, library: bool) -> None:
    if library:
        machine("GPU-hidden", status=9)
    command(tmp_path, f'test "$*" = -L && /bin/cat <<"END"\n{_LISTING}END')
    assert gpus.discover() == ("GPU-aaaa", "GPU-bbbb", "")
    assert gpus.usable() == ("0", "1", "2")


def test_a_library_without_its_functions(machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus.ctypes, "CDLL", lambda name: object())
    assert gpus.usable() == ()


@pytest.mark.parametrize(
    "script", ['echo "NVIDIA-SMI has failed" >&2; exit 9', "printf 'GPU 0: \\377\\n'; exit 1", "kill -9 $$"]
)
def test_a_command_that_fails(tmp_path: Path, script: str) -> None:
    command(tmp_path, script)
    assert gpus.usable() == ()


def test_a_command_that_cannot_be_started(tmp_path: Path) -> None:
    (tmp_path / "nvidia-smi").write_bytes(b"\x7fELF rubbish")
    (tmp_path / "nvidia-smi").chmod(0o700)
    assert gpus.usable() == ()


def test_a_command_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is given up, and neither it nor what it has started is left."""
    pids = tmp_path / "pids"

    def time_out(process: subprocess.Popen[str], timeout: float) -> None:
        eventually(lambda: pids.exists() and len(pids.read_text().split()) == 2)
        raise subprocess.TimeoutExpired(process.args, timeout)

    monkeypatch.setattr(subprocess.Popen, "communicate", time_out)
    command(tmp_path, f"/bin/sleep 60 & echo $$ $! >{pids}; wait")
    assert gpus.usable() == ()
    assert "nvidia-smi has not ended" in caplog.text
    eventually(lambda: not any(alive(int(pid)) for pid in pids.read_text().split()))


def test_a_driver_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """It is given up, and the command is not asked: it would hang as well."""
    go_on = threading.Event()
    driver = Driver(["GPU-aa"])
    monkeypatch.setattr(driver, "nvmlInit_v2", lambda: go_on.wait(60) and 9)
    monkeypatch.setattr(gpus, "_NVML_SECONDS", 0.05)
    monkeypatch.setattr(gpus.ctypes, "CDLL", lambda name: driver)
    monkeypatch.setattr(gpus, "_ask_command", lambda: pytest.fail("the command was asked"))
    assert gpus.usable() == ()
    assert "NVML does not answer" in caplog.text
    go_on.set()
    for thread in threading.enumerate():
        if thread.name == "polyexec-nvml":
            thread.join(10)
            assert not thread.is_alive()

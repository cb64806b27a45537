"""Which GPUs of this machine tasks may use, by the names that ``CUDA_VISIBLE_DEVICES`` takes.

NVIDIA's driver is asked through NVML, its own library, else through the command ``nvidia-smi``; neither can hang the
program. Both are looked for where Linux has them; elsewhere nothing is found, and ``gpus=`` declares what there is.

What was found is kept for the life of the process. Threads that ask at the same time may each look; they find the same.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from polyexec.errors import SpecificationError

VARIABLE = "CUDA_VISIBLE_DEVICES"

_LIBRARY = "libnvidia-ml.so.1"
_COMMAND = "nvidia-smi"
_NVML_SECONDS = 10.0
"""Without persistence mode a driver takes about a second to wake each GPU."""
_COMMAND_SECONDS = 5.0
_UUID_SIZE = 96
_LISTED = re.compile(r"^GPU \d+: .*?(?:\(UUID: (\S+)\))?\s*$", re.MULTILINE)
_logger = logging.getLogger("polyexec")


def usable(declared: int | None = None) -> tuple[str, ...]:
    """Name the GPUs that tasks of this process may use.

    An existing ``CUDA_VISIBLE_DEVICES`` is honoured: empty or ``-1`` means none, a list means those, in its order. As
    CUDA does, this stops at the first name that no GPU has. May block for seconds, once in a process, while a driver
    starts; takes well under a millisecond where there is none. Thread-safe.

    Args:
        declared: their number, which is not checked against the machine, so that GPUs can be declared where there
            are none; None for those that are found.

    Returns:
        Their names, the place of each being its index for the ledger.

    Raises:
        SpecificationError: more are declared than ``CUDA_VISIBLE_DEVICES`` names.
    """
    variable = os.environ.get(VARIABLE)
    named = None if variable is None else tuple(_names(variable))
    if declared is not None:
        return _declared(declared, named or (), variable)
    if named == ():
        return ()
    found = discover()
    return tuple(map(str, range(len(found)))) if named is None else tuple(_present(named, found))


def _names(variable: str) -> Iterator[str]:
    """Read a list of indices and UUIDs, to its end or to what is neither, or comes again."""
    seen = set()
    for name in map(str.strip, variable.split(",")):
        if name in seen or not (name.isdecimal() or name.startswith(("GPU-", "MIG-"))):
            return
        seen.add(name)
        yield name


def _declared(count: int, named: tuple[str, ...], variable: str | None) -> tuple[str, ...]:
    if not named:
        return tuple(map(str, range(count)))
    if count > len(named):
        raise SpecificationError(f"gpus={count}, but {VARIABLE}={variable!r} leaves {len(named)}: declare fewer")
    return named[:count]


def _present(named: Sequence[str], found: Sequence[str]) -> Iterator[str]:
    for name in named:
        if not _is_one_of(name, found):
            return
        yield name


def _is_one_of(name: str, found: Sequence[str]) -> bool:
    if name.isdecimal():
        return int(name) < len(found)
    if name.startswith("MIG-"):
        return bool(found)
    # CUDA takes the beginning of a UUID, too.
    return any(not uuid or uuid.startswith(name) for uuid in found)


@functools.cache
def discover() -> tuple[str, ...]:
    """Give the UUIDs of the GPUs that this process can reach, the empty text where one has none."""
    found = _ask_nvml(ctypes.CDLL)
    return _ask_command() if found is None else found


def _ask_nvml(load: Callable[[str], Any]) -> tuple[str, ...] | None:
    """Ask NVML; None if there is no library, or no driver under it."""
    try:
        library = load(_LIBRARY)
    except OSError:
        return None
    answers: SimpleQueue[tuple[str, ...] | None] = SimpleQueue()

    def ask() -> None:
        try:
            answers.put(_list_devices(library))
        except AttributeError:
            # A library so old that it lacks a function.
            answers.put(None)

    # A driver in trouble may not answer for ever; the thread is left to itself then, and keeps no program from its end.
    Thread(target=ask, name="polyexec-nvml", daemon=True).start()
    try:
        return answers.get(timeout=_NVML_SECONDS)
    except Empty:
        _logger.warning("NVML does not answer: no GPU is used unless gpus= declares some")
        return ()


def _list_devices(library: Any) -> tuple[str, ...] | None:
    if library.nvmlInit_v2() != 0:
        return None
    try:
        count = ctypes.c_uint()
        if library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
            return None
        uuids = [_uuid(library, index) for index in range(count.value)]
    finally:
        library.nvmlShutdown()
    return tuple(uuid for uuid in uuids if uuid is not None)


def _uuid(library: Any, index: int) -> str | None:
    """Give a UUID; None for a device that a control group keeps from this process, which NVML counts all the same."""
    device, text = ctypes.c_void_p(), ctypes.create_string_buffer(_UUID_SIZE)
    if library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(device)) != 0:
        return None
    failed = library.nvmlDeviceGetUUID(device, text, ctypes.c_uint(_UUID_SIZE)) != 0
    return "" if failed else text.value.decode("ascii", "replace")


def _ask_command() -> tuple[str, ...]:
    import shutil

    path = shutil.which(_COMMAND)
    if path is None:
        return ()
    import subprocess

    try:
        process = subprocess.Popen(
            [path, "-L"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
    except OSError:
        return ()
    try:
        output, _ = process.communicate(timeout=_COMMAND_SECONDS)
    except subprocess.TimeoutExpired:
        _give_up(process)
        return ()
    return tuple(_LISTED.findall(output)) if process.returncode == 0 else ()


def _give_up(process: Any) -> None:
    """Kill the command with whatever it has started; what hangs in the driver cannot be killed, nor waited for."""
    import subprocess

    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.stdout.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=1.0)
    _logger.warning("%s has not ended: no GPU is used unless gpus= declares some", _COMMAND)

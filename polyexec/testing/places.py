"""Where the bytes of a value lie, and how much a process had to hold or to read for them; from ``/proc``, on Linux.

Workers import this module, so it needs no more than NumPy.
"""

from __future__ import annotations

import os
import re
import socket
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import numpy as np

_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ ([0-9a-f]+) (\S+) (\d+)")
_NETWORK = Path("/proc/net/dev")


@attrs.frozen
class Place:
    """Where the bytes of a buffer lie, as the process sees it that uses them.

    Attributes:
        host: name of the machine.
        pid: the process.
        address: of the first byte in that process.
        file: device and inode of the file that is mapped there; empty for memory of the process's own.
        offset: of the first byte in the file.
        copied: bytes of the mapping of which the process has made a copy of its own.
    """

    host: str
    pid: int
    address: int
    file: str
    offset: int
    copied: int

    @property
    def identity(self) -> tuple[str, str, int]:
        """The same for all who look at the same memory, in whatever process of the machine they do."""
        return (self.host, self.file, self.offset) if self.file else (self.host, str(self.pid), self.address)


@attrs.frozen
class _Mapping:
    begin: int
    end: int
    file: str
    offset: int
    anonymous: int


def place_of(buffer: Any) -> Place:
    """Give the place of a contiguous buffer.

    Args:
        buffer: whatever has the buffer protocol; not empty.

    Returns:
        The place. Memory that is partly a file's and partly not counts as the process's own.
    """
    array = np.frombuffer(memoryview(buffer).cast("B"), np.uint8)
    begin = int(array.ctypes.data)
    end = begin + array.nbytes
    parts = [part for part in _mappings() if part.begin < end and begin < part.end]
    first = parts[0]
    whole = all(part.file and _start(part) == _start(first) for part in parts)
    offset = first.offset + begin - first.begin if whole else 0
    copied = sum(part.anonymous for part in parts) if whole else 0
    return Place(socket.gethostname(), os.getpid(), begin, first.file if whole else "", offset, copied)


def _start(part: _Mapping) -> tuple[str, int]:
    """Give the file, and the address at which its first byte would lie: equal for neighbours that belong together."""
    return part.file, part.begin - part.offset


def _mappings() -> Iterator[_Mapping]:
    found: _Mapping | None = None
    for line in Path("/proc/self/smaps").read_text().splitlines():
        match = _MAPPING.match(line)
        if match is not None:
            begin, end, offset = (int(match[number], 16) for number in (1, 2, 3))
            found = _Mapping(begin, end, "" if match[5] == "0" else f"{match[4]}/{match[5]}", offset, 0)
        elif found is not None and line.startswith("Anonymous:"):
            yield attrs.evolve(found, anonymous=int(line.split()[1]) * 1024)
            found = None


def held_for(action: Callable[[], Any]) -> tuple[Any, int]:
    """Run something, and measure the memory that this process took for it at most.

    Args:
        action: what to run.

    Returns:
        What it gave, and by how many bytes the resident memory of this process, what it maps and has touched of
        shared memory included, was more at its peak than before.

    Raises:
        OSError: this system does not let a process reset its peak.
    """
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmHWM")
    value = action()
    return value, _status("VmHWM") - before


def allocated_for(action: Callable[[], Any]) -> tuple[Any, int]:
    """Run something, and measure what Python's own objects took for it at most, in any thread of this process.

    Args:
        action: what to run.

    Returns:
        What it gave, and the bytes; memory that is mapped does not count.
    """
    tracemalloc.start()
    try:
        return action(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def own_memory() -> int:
    """Give the memory in bytes that this process has for itself alone, without what it maps or shares."""
    return _status("RssAnon")


def _status(name: str) -> int:
    return _number("/proc/self/status", name) * 1024


def _number(path: str | Path, name: str) -> int:
    found = re.search(rf"^\s*{name}:\s*(\d+)", Path(path).read_text(), re.MULTILINE)
    return int(found[1]) if found else 0


def read_and_written() -> int:
    """Give the bytes that this process has read from files and pipes, or written to them, until now."""
    return _number("/proc/self/io", "rchar") + _number("/proc/self/io", "wchar")


def transported(pids: list[int]) -> int:
    """Give the bytes that came to some processes through pipes, or by this machine's own network, until now.

    Args:
        pids: the processes.

    Returns:
        The bytes; whatever else uses the network counts too, so of several measurements the least is right. What goes
        through Unix sockets is not known.
    """
    return sum(_read_by(pid) for pid in pids) + _number(_NETWORK, "lo")


def _read_by(pid: int) -> int:
    try:
        return _number(f"/proc/{pid}/io", "rchar")
    except OSError:
        return 0

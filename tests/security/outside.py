"""What somebody beside a program sees of it: its processes, sockets, files and memory; only the standard library."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import attrs

_ACCEPTS = 0x10000


@attrs.frozen
class Socket:
    """A socket of the program that somebody could connect, or send, to."""

    table: str
    address: str

    @property
    def place(self) -> str:
        """The path, or the number of the port."""
        return self.address if self.table == "unix" else str(int(self.address.rpartition(":")[2], 16))

    @property
    def is_loopback(self) -> bool:
        """Whether it is of the internet, and this machine alone can reach it."""
        host = self.address.partition(":")[0]
        return (host.endswith("7F") and len(host) == 8) or host in (
            f"{'0' * 16}FFFF00000100007F",
            f"{'0' * 24}01000000",
        )


def family(root: int) -> set[int]:
    """Give a process and its descendants."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def descriptors(pids: set[int]) -> Iterator[tuple[str, os.stat_result]]:
    """Give what the open descriptors of processes refer to."""
    for pid in pids:
        for path in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                yield os.readlink(path), os.stat(path)
            except OSError:
                continue


def sockets(pids: set[int]) -> set[Socket]:
    """Give the sockets of processes that have an address and wait for somebody."""
    mine = {str(status.st_ino) for _, status in descriptors(pids) if stat.S_ISSOCK(status.st_mode)}
    found = set()
    for table in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6", "udplite", "udplite6"):
        for fields in _rows(table):
            if fields[9] in mine and (fields[3] == "0A" or not table.startswith("tcp")):
                found.add(Socket(table, fields[1]))
    for fields in _rows("unix"):
        name = fields[7] if len(fields) > 7 else ""
        if fields[6] in mine and (int(fields[3], 16) & _ACCEPTS or name.startswith("@")):
            found.add(Socket("unix", name))
    return found


def _rows(table: str) -> Iterator[list[str]]:
    try:
        lines = Path("/proc/net", table).read_text().splitlines()[1:]
    except OSError:
        return
    yield from (line.split(maxsplit=7 if table == "unix" else -1) for line in lines)


def others_may_use(path: Path) -> bool:
    """Say whether other users than the owner can reach a path that is not below a folder of the owner's alone."""
    return not any(stat.S_IMODE(os.lstat(step).st_mode) & 0o077 == 0 for step in (path, *path.parents))


def public_paths(folder: Path) -> list[str]:
    """Give the files and folders below a folder that other users can reach."""
    found = []
    for path in folder.rglob("*"):
        try:
            if not path.is_symlink() and others_may_use(path):
                found.append(str(path))
        except FileNotFoundError:
            continue
    return found


def public_memory(pids: set[int]) -> set[str]:
    """Give shared memory and files without a name in which the permissions let other users in."""
    return {
        target
        for target, status in descriptors(pids)
        if stat.S_ISREG(status.st_mode)
        and stat.S_IMODE(status.st_mode) & 0o077
        and (target.startswith(("/memfd:", "/dev/shm/")) or target.endswith(" (deleted)"))
    }


def commands(pids: set[int]) -> str:
    """Give what the process list shows: the arguments of processes."""
    return "\n".join(
        path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        for pid in pids
        if (path := Path(f"/proc/{pid}/cmdline")).exists()
    )

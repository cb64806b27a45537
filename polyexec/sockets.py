"""Which processes of this machine wait for whom: the sockets of a process tree, as the kernel shows them.

On Linux only, from ``/proc``; elsewhere nothing can be seen. What comes and goes meanwhile may be missed.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable, Iterator

import attrs

_NET = "/proc/self/net"
_LISTENING = "0A"
_UNCONNECTED = "07"
_ACCEPTS = 0x10000
_INTERNET = ("tcp", "tcp6", "udp", "udp6")


@attrs.frozen
class Listener:
    """A socket on which a process waits for others.

    Attributes:
        protocol: ``"tcp"``, ``"udp"``, with a ``6`` for those of IPv6, or ``"unix"``.
        address: ``"127.0.0.1:4321"``, ``"[::]:4321"``, the path of a file, or ``"@name"`` for an abstract socket, which
            every user of the machine can reach.
        pid: id of the process that waits; of several the first.
        process: its name, as the kernel has it.
    """

    protocol: str
    address: str
    pid: int
    process: str

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        return self.protocol == "unix" or is_loopback(self.address)

    def __str__(self) -> str:
        return f"{self.protocol} {self.address} of process {self.pid} ({self.process})"


def is_loopback(address: str) -> bool:
    """Say whether an address, with or without scheme and port, is of this machine alone; so is an empty one."""
    host = address.rpartition("://")[2].rpartition("@")[2]
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return host in ("", "localhost")
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_loopback


def tree(root: int) -> list[int]:
    """Give a process and all that come from it."""
    children: dict[int, list[int]] = {}
    for name in _entries("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                    parent = int(file.read().rpartition(")")[2].split()[1])
            except (OSError, IndexError, ValueError):
                continue
            children.setdefault(parent, []).append(int(name))
    found = [root]
    for pid in found:
        found += children.get(pid, ())
    return found


def listeners(pids: Iterable[int]) -> tuple[Listener, ...]:
    """Give the sockets on which some processes wait for others, in the order of the processes."""
    waiting = dict(_waiting())
    found: dict[str, Listener] = {}
    for pid in pids:
        for number in _entries(f"/proc/{pid}/fd"):
            try:
                inode = os.readlink(f"/proc/{pid}/fd/{number}").removeprefix("socket:[").removesuffix("]")
            except OSError:
                continue
            if inode in waiting and inode not in found:
                protocol, address = waiting[inode]
                found[inode] = Listener(protocol, address, pid, _name(pid))
    return tuple(found.values())


def _entries(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def _lines(table: str) -> Iterator[str]:
    try:
        with open(f"{_NET}/{table}", encoding="utf-8", errors="replace") as file:
            yield from file.readlines()[1:]
    except OSError:
        return


def _waiting() -> Iterator[tuple[str, tuple[str, str]]]:
    """Give the inodes of all sockets that wait for somebody, with protocol and address."""
    for protocol in _INTERNET:
        state = _LISTENING if protocol.startswith("tcp") else _UNCONNECTED
        for line in _lines(protocol):
            fields = line.split()
            if fields[3] == state:
                yield fields[9], (protocol, _address(fields[1]))
    for line in _lines("unix"):
        fields = line.rstrip("\n").split(maxsplit=7)
        # Datagrams to a socket with a name need nobody who accepts.
        if int(fields[3], 16) & _ACCEPTS or (int(fields[4], 16) == 2 and len(fields) == 8):
            yield fields[6], ("unix", fields[7] if len(fields) == 8 else "")


def _address(text: str) -> str:
    """Translate the kernel's hexadecimal words, which have the byte order of the machine."""
    host, _, port = text.partition(":")
    packed = b"".join(bytes.fromhex(host[at : at + 8])[::-1] for at in range(0, len(host), 8))
    found = ipaddress.ip_address(packed)
    found = getattr(found, "ipv4_mapped", None) or found
    return f"{found}:{int(port, 16)}" if found.version == 4 else f"[{found}]:{int(port, 16)}"

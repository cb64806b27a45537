"""More that may be left: names in shared memory that nobody uses, sockets that listen, objects that nobody needs."""

from __future__ import annotations

import gc
import ipaddress
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from polyexec import ActorHandle, Executor, Future, Reservation, Stream
from polyexec.spi import Backend

_SHARED_MEMORY = Path("/dev/shm")
_LISTENING = "0A"
_ACCEPTS = 1 << 16
"""The flag of a local socket that listens, ``__SO_ACCEPTCON`` of Linux."""

_INODE = re.compile(r"socket:\[(\d+)\]")
_KINDS = frozenset({ActorHandle, Executor, Future, Reservation, Stream})


def instances() -> Counter[str]:
    """Count the objects here that stand for executors and for what they have made, by class.

    Costs about 0.2 microseconds for each object that Python's collector knows.
    """
    kinds: Counter[type] = Counter(map(type, gc.get_objects()))
    return Counter({kind.__name__: count for kind, count in kinds.items() if _is_ours(kind)})


def _is_ours(kind: type) -> bool:
    return kind in _KINDS or (isinstance(kind, type) and Backend in kind.__mro__)


def listening() -> set[str]:
    """Give the addresses at which sockets of this process listen."""
    own = {found[1] for target in _targets("self") if (found := _INODE.fullmatch(target)) is not None}
    return {address for inode, address in (*_internet(), *_local()) if inode in own} if own else set()


def _internet() -> Iterator[tuple[str, str]]:
    for name in ("tcp", "tcp6"):
        for fields in _table(f"/proc/self/net/{name}"):
            if fields[3] == _LISTENING:
                yield fields[9], f"{name} {fields[1]}"


def _local() -> Iterator[tuple[str, str]]:
    for fields in _table("/proc/self/net/unix"):
        if int(fields[3], 16) & _ACCEPTS:
            yield fields[6], " ".join(["unix", *fields[7:]])


def _table(path: str) -> list[list[str]]:
    try:
        return [line.split() for line in Path(path).read_text(errors="replace").splitlines()[1:]]
    except OSError:
        return []


def listening_addresses(pid: int) -> set[str]:
    """Give the addresses at which sockets of a process listen: ``HOST:PORT``, or the names of abstract local ones."""
    own = {match[1] for target in _targets(str(pid)) if (match := _INODE.fullmatch(target)) is not None}
    internet = {_readable(address.split()[1]) for inode, address in _internet() if inode in own}
    return internet | {address for inode, address in _local() if inode in own and address.startswith("unix @")}


def _readable(address: str) -> str:
    """Give an address as people write it, from the kernel's tables, in which words of four bytes are turned round."""
    host, port = address.split(":")
    words = bytes.fromhex(host)
    found = ipaddress.ip_address(b"".join(words[begin : begin + 4][::-1] for begin in range(0, len(words), 4)))
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    return f"{found}:{int(port, 16)}"


def names_in_shared_memory() -> set[str]:
    """Give the names of this user's shared memory and semaphores, whichever process has made them."""
    try:
        return {entry.name for entry in os.scandir(_SHARED_MEMORY) if entry.stat().st_uid == os.getuid()}
    except OSError:
        return set()


def orphans(names: Iterable[str], family: Iterable[int]) -> set[str]:
    """Give those names in shared memory that are used by none of the processes which are not of the family."""
    found = {f"{_SHARED_MEMORY}/{name}" for name in names}
    if found:
        related = {str(pid) for pid in (os.getpid(), *family)}
        for pid in os.listdir("/proc"):
            if pid.isdigit() and pid not in related:
                found -= _used(pid)
    return found


def _used(pid: str) -> set[str]:
    try:
        lines = Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    return {*_targets(pid), *(line[line.index("/") :] for line in lines if "/dev/shm/" in line)}


def _targets(pid: str) -> list[str]:
    found = []
    try:
        for path in Path(f"/proc/{pid}/fd").iterdir():
            found.append(os.readlink(path))
    except OSError:
        pass
    return found

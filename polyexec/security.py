"""Who can reach an executor: what it shows to users and to tests about sockets, files and authentication."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import attrs

from polyexec import folders, sockets
from polyexec.sockets import Listener

if TYPE_CHECKING:
    from polyexec.session import Info
    from polyexec.spi import Protection


@attrs.frozen
class PathAccess:
    """Who may use a file or a folder of an executor.

    Attributes:
        path: where it is.
        mode: its permissions, for example ``0o700``.
        is_private: it belongs to this user, and nobody else may read, write or enter it, but for the superuser; or it
            lies in a folder of which that is true.
    """

    path: str
    mode: int
    is_private: bool

    def __str__(self) -> str:
        return f"{self.path} ({self.mode:03o})"


@attrs.frozen
class SecurityReport:
    """Who can reach an executor, and how it knows that they may; what is true now.

    Attributes:
        backend: name of the backend.
        address: where the engine is; empty inside this process.
        authentication: what tells those who belong to the engine from others, in words; empty if nothing does, None if
            the backend does not say.
        is_encrypted: what the processes tell each other over a network is encrypted.
        listeners: sockets on which this process, or one that comes from it, waits for others; those that the program
            has opened itself are among them.
        paths: files and folders of this machine that the executor has made, or from which it takes keys and tokens.
        weaknesses: one sentence for each thing that lets others in; empty if there is none.
    """

    backend: str
    address: str
    authentication: str | None
    is_encrypted: bool
    listeners: tuple[Listener, ...]
    paths: tuple[PathAccess, ...]
    weaknesses: tuple[str, ...]

    def __str__(self) -> str:
        kept = "unknown" if self.authentication is None else self.authentication or "none"
        lines = [f"backend {self.backend!r}{self.address and f' at {self.address}'}"]
        lines += [f"authentication: {kept}"]
        lines += [f"encryption: {'yes' if self.is_encrypted else 'no'}"] if self.address else []
        lines += [f"listens: {listener}" for listener in self.listeners]
        lines += [f"path: {path}" for path in self.paths]
        lines += [f"weakness: {weakness}" for weakness in self.weaknesses]
        return "\n".join(lines)


def report(info: Info, executor_id: str, protection: Protection) -> SecurityReport:
    """Look at this process, at what comes from it, and at what a backend says."""
    listeners = sockets.listeners(sockets.tree(os.getpid()))
    held = folders.held(executor_id)
    paths = tuple(_accesses([*protection.paths, *([held] if held else [])]))
    return SecurityReport(
        info.backend,
        info.address,
        protection.authentication,
        protection.is_encrypted,
        listeners,
        paths,
        tuple(_weaknesses(info.address, protection, listeners, paths)),
    )


def _weaknesses(
    address: str, protection: Protection, listeners: Iterable[Listener], paths: Iterable[PathAccess]
) -> Iterator[str]:
    if protection.authentication is None:
        yield "the backend does not say how it tells those who may run code from others"
    elif not protection.authentication:
        where = address or "the engine"
        who = "every user of this machine" if sockets.is_loopback(address) else "whoever reaches it over the network"
        yield f"{where} asks nobody who he is: {who} can run code as the user of its workers"
    if not protection.is_encrypted and not sockets.is_loopback(address):
        yield f"what goes to {address} and comes from there is not encrypted"
    for listener in listeners:
        if not listener.is_local and not protection.authentication:
            yield f"other machines can reach {listener}"
        elif listener.protocol == "unix" and not is_private(listener.address):
            yield f"other users of this machine can reach {listener}"
    for path in paths:
        if not path.is_private:
            yield f"other users of this machine can use {path}"


def _accesses(paths: Iterable[str]) -> Iterator[PathAccess]:
    for path in paths:
        try:
            mode = stat.S_IMODE(os.lstat(path).st_mode)
        except FileNotFoundError:
            continue
        yield PathAccess(path, mode, is_private(path))


def is_private(path: str) -> bool:
    """Say whether only this user can reach a path; an abstract socket, ``"@name"``, has none."""
    while path.startswith("/"):
        try:
            found = os.lstat(path)
        except OSError:
            return False
        if found.st_uid == os.geteuid() and not found.st_mode & 0o077 and not stat.S_ISLNK(found.st_mode):
            return True
        if path == "/":
            return False
        path = os.path.dirname(path)
    return False

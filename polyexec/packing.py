"""Packing folders and modules to send them: what goes along, whether it has changed, and the archive.

``Content`` may be used from any thread: what it remembers are dicts that are changed by atomic operations only, and
two threads may find out the same.
"""

from __future__ import annotations

import hashlib
import io
import os
import time
import zipfile
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import attrs

from polyexec.errors import SpecificationError
from polyexec.ignoring import Rules

SIZE_LIMIT = 512 << 20
"""Bytes of one archive."""

_NEVER = frozenset({".git", "__pycache__"})
_RULES = ".gitignore"
_CHUNK = 1 << 20

_TICK = 100_000_000
"""Nanoseconds within which two changes of a file may have the same time; the kernel's clock for files is coarse."""

_Stamp: TypeAlias = tuple[int, ...]
_Rules: TypeAlias = tuple[tuple[int, Rules], ...]
"""Those of the folders above, each with the number of folders from the root to its own."""


@attrs.frozen
class Item:
    """A file or a folder that goes along.

    Attributes:
        name: in the archive; that of a folder ends with a slash.
        path: where it is.
        stamp: changes when it does.
    """

    name: str
    path: str
    stamp: _Stamp = ()


@attrs.frozen
class Listing:
    """What goes along.

    Attributes:
        items: in order of their names.
        is_settled: another change than what is seen here will be seen as one.
    """

    items: Sequence[Item]
    is_settled: bool


class Content:
    """Finds what belongs to a folder or a file.

    Symbolic links are followed, wherever they lead; those that lead nowhere, and what is neither file nor folder, are
    left out.

    Args:
        source: its path.
        prefix: what comes before the names in the archive.
    """

    def __init__(self, source: str, prefix: str) -> None:
        self._source = source
        self._prefix = prefix
        self._rules: dict[str, tuple[_Stamp, Rules]] = {}
        self._decisions: dict[str, tuple[_Rules, dict[str, bool]]] = {}

    def look(self) -> Listing:
        """Look at all that goes along, as it is now.

        Raises:
            SpecificationError: something cannot be read.
        """
        began = time.time_ns()
        try:
            items = list(self._items())
        except OSError as error:
            raise SpecificationError(f"cannot send {self._source!r}: {error}") from error
        newest = max((max(item.stamp[2:]) for item in items if item.stamp), default=0)
        return Listing(items, newest < began - _TICK)

    def _items(self) -> Iterator[Item]:
        if os.path.isdir(self._source):
            yield from self._visit(self._source, "", (), ())
        else:
            yield Item(self._prefix + os.path.basename(self._source), self._source, _stamp(os.stat(self._source)))

    def _visit(self, folder: str, inside: str, rules: _Rules, parents: tuple[tuple[int, int], ...]) -> Iterator[Item]:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        rules = self._with_own(rules, inside, entries)
        decisions = self._decisions_under(rules, inside)
        for entry in entries:
            if entry.name in _NEVER:
                continue
            is_folder = entry.is_dir()
            name = f"{inside}{entry.name}/" if is_folder else inside + entry.name
            if not (rules and _is_ignored(name, rules, decisions)):
                try:
                    status = entry.stat()
                except FileNotFoundError:
                    continue
                if is_folder:
                    yield Item(self._prefix + name, entry.path)
                    identity = status.st_dev, status.st_ino
                    if identity in parents:
                        raise SpecificationError(f"cannot send {self._source!r}: {entry.path!r} leads back to itself")
                    yield from self._visit(entry.path, name, rules, (*parents, identity))
                elif entry.is_file():
                    yield Item(self._prefix + name, entry.path, _stamp(status))

    def _with_own(self, rules: _Rules, inside: str, entries: Sequence[os.DirEntry[str]]) -> _Rules:
        for entry in entries:
            if entry.name == _RULES and entry.is_file():
                stamp = _stamp(entry.stat())
                known = self._rules.get(inside)
                if known is None or known[0] != stamp:
                    with open(entry.path, encoding="utf-8", errors="surrogateescape") as file:
                        known = self._rules[inside] = stamp, Rules.read(file.read())
                return (*rules, (inside.count("/"), known[1]))
        return rules

    def _decisions_under(self, rules: _Rules, inside: str) -> dict[str, bool]:
        known = self._decisions.get(inside)
        if known is None or known[0] != rules:
            known = self._decisions[inside] = rules, {}
        return known[1]


def _is_ignored(name: str, rules: _Rules, decisions: dict[str, bool]) -> bool:
    """Say what the rules nearest to a file or folder say about it; those above its folder let that pass."""
    known = decisions.get(name)
    if known is None:
        path, is_folder = name.rstrip("/").split("/"), name.endswith("/")
        verdicts = (own.verdict(path[depth:], is_folder=is_folder) for depth, own in reversed(rules))
        known = decisions[name] = next((verdict for verdict in verdicts if verdict is not None), False)
    return known


def _stamp(status: os.stat_result) -> _Stamp:
    return status.st_ino, status.st_mode << 48 | status.st_size, status.st_mtime_ns, status.st_ctime_ns


def pack(source: str, listing: Listing) -> bytes:
    """Make an archive; the same content gives the same bytes.

    Args:
        source: what is packed, for errors.
        listing: of it; what has gone since is left out.

    Raises:
        SpecificationError: something cannot be read, or it is too large.
    """
    buffer = io.BytesIO()
    try:
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for item in listing.items:
                _add(archive, buffer, item)
    except _TooLarge:
        raise SpecificationError(
            f"{source!r} is larger than {SIZE_LIMIT >> 20} MiB when it is packed: name what is not needed in a "
            f"{_RULES} there, and let large data be read from where all workers see them"
        ) from None
    except OSError as error:
        raise SpecificationError(f"cannot send {source!r}: {error}") from error
    return buffer.getvalue()


class _TooLarge(Exception):
    pass


def _add(archive: zipfile.ZipFile, buffer: io.BytesIO, item: Item) -> None:
    info = zipfile.ZipInfo(item.name)
    info.compress_type = zipfile.ZIP_DEFLATED
    if not item.stamp:
        archive.writestr(info, b"")
        return
    try:
        source = open(item.path, "rb")  # noqa: SIM115  # only to open it may find that it has gone
    except FileNotFoundError:
        return
    with source:
        status = os.fstat(source.fileno())
        info.external_attr = (status.st_mode & 0o100) << 16
        info.file_size = status.st_size
        with archive.open(info, "w") as target:
            while chunk := source.read(_CHUNK):
                target.write(chunk)
                if buffer.tell() > SIZE_LIMIT:
                    raise _TooLarge


def digest_of(archive: bytes) -> str:
    """Identify an archive by its content."""
    return hashlib.sha256(archive).hexdigest()[:32]

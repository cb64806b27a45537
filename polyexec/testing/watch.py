"""Looking at this machine from beside the executor: processes, threads, descriptors, shared memory.

On Linux only; elsewhere snapshots are empty and the checks that need them hold trivially.
"""

from __future__ import annotations

import gc
import os
import re
import shutil
import sys
import tempfile
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs

from polyexec.testing.leftovers import instances, listening, names_in_shared_memory, orphans
from polyexec.testing.tools import eventually

LINUX = Path("/proc/self/stat").exists()
_MARK_NAME = "POLYEXEC_TESTING_RUN"
_HELPERS = ("resource_tracker", "forkserver")
_GRACE = 5.0


class LeakError(AssertionError):
    """Something is left that a test or an executor should have taken away."""


@contextmanager
def marked_environment() -> Iterator[None]:
    """Mark this process's environment, so that whatever is started or stored from now on can be found.

    Processes inherit the mark wherever they hide; temporary files go to a folder of their own. Its path is short,
    because sockets may be put there.
    """
    before = {name: os.environ.get(name) for name in (_MARK_NAME, "TMPDIR")}
    folder = tempfile.mkdtemp(prefix="px-")
    os.environ.update({_MARK_NAME: uuid.uuid4().hex, "TMPDIR": folder})
    tempfile.tempdir = None
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        tempfile.tempdir = None
        shutil.rmtree(folder, ignore_errors=True)


@attrs.frozen
class Process:
    """A process that lives.

    Attributes:
        pid: its id.
        start: when it started, in ticks since boot; with the id it is unique.
        parent: id of its parent.
        command: its command line.
    """

    pid: int
    start: int
    parent: int = attrs.field(eq=False)
    command: str = attrs.field(eq=False)


def read_process(pid: int) -> Process | None:
    """Give a process, None if there is none or if it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (OSError, ValueError):
        return None
    return None if fields[0] in "ZX" else Process(pid, int(fields[19]), int(fields[1]), command)


def alive(pid: int) -> bool:
    """Tell whether a process lives."""
    if LINUX:
        return read_process(pid) is not None
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def family() -> set[Process]:
    """Give all processes that come from this one: its descendants, and whoever else has its marked environment."""
    if not LINUX:
        return set()
    everyone = {
        found.pid: found for name in os.listdir("/proc") if name.isdigit() and (found := read_process(int(name)))
    }
    return {found for found in everyone.values() if found.pid != os.getpid() and _belongs(found, everyone)}


def _belongs(process: Process, everyone: dict[int, Process]) -> bool:
    ancestor: Process | None = process
    while ancestor is not None and ancestor.pid > 1:
        if ancestor.parent == os.getpid():
            return True
        ancestor = everyone.get(ancestor.parent)
    mark = os.environ.get(_MARK_NAME, "")
    try:
        return bool(mark) and f"{_MARK_NAME}={mark}".encode() in Path(f"/proc/{process.pid}/environ").read_bytes()
    except OSError:
        return False


def descriptors(pid: int | None = None) -> Counter[str]:
    """Count the open descriptors of a process by what they refer to, without numbers.

    Args:
        pid: of the process; None for this one.

    Returns:
        The counts; none if there is no such process.
    """
    kinds: Counter[str] = Counter()
    folder = f"/proc/{'self' if pid is None else pid}/fd"
    try:
        for name in os.listdir(folder) if LINUX else ():
            with suppress(OSError):
                kinds[re.sub(r"\d+", "N", os.readlink(f"{folder}/{name}"))] += 1
    except OSError:
        pass
    return kinds


def shared_memory() -> set[str]:
    """Give the names of shared memory that have this process's id in them, and of polyexec's temporary files."""
    own_memory = re.compile(rf"(.*\D)?{os.getpid()}(\D.*)?")
    return {*_names("/dev/shm", own_memory), *_names(tempfile.gettempdir(), re.compile("polyexec.*"))}


def _names(folder: str, pattern: re.Pattern[str]) -> list[str]:
    try:
        return [f"{folder}/{name}" for name in os.listdir(folder) if pattern.fullmatch(name)]
    except OSError:
        return []


def memory() -> int:
    """Give the memory of this process and its family in bytes: what is mapped or kept in open files, each page once."""
    return sum(_memory())


def memory_of_files() -> int:
    """Give the part of that which are files in memory: what a store shares, whoever looks at it."""
    return _memory()[1]


def _memory() -> tuple[int, int]:
    pids = [os.getpid(), *(found.pid for found in family())]
    kept: Counter[str] = Counter()
    own = sum(_mapped(pid, kept) for pid in pids)
    for inode, size in _open_files(pids).items():
        kept[inode] = max(kept[inode], size)
    return own, kept.total()


_MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ (\d+) +(\S*)")
_SHARED = ("/memfd:", "/dev/shm/")


def _mapped(pid: int, kept: Counter[str]) -> int:
    """Give a process's part of what it maps; what it maps of files in memory is added to theirs, by inode."""
    own, inode = 0, ""
    try:
        lines = Path(f"/proc/{pid}/smaps").read_text(errors="replace").splitlines()
    except OSError:
        return 0
    for line in lines:
        if line.startswith("Pss:"):
            size = int(line.split()[1]) * 1024
            own += 0 if inode else size
            kept[inode] += size if inode else 0
        elif (found := _MAPPING.match(line)) is not None:
            inode = found[1] if found[2].startswith(_SHARED) else ""
    del kept[""]
    return own


def _open_files(pids: list[int]) -> dict[str, int]:
    """Give the sizes of files in memory that processes hold open, by inode."""
    sizes: dict[str, int] = {}
    for pid in pids:
        try:
            for path in Path(f"/proc/{pid}/fd").iterdir():
                if os.readlink(path).startswith(_SHARED):
                    found = os.stat(path)
                    sizes[str(found.st_ino)] = found.st_blocks * 512
        except OSError:
            continue
    return sizes


@attrs.frozen
class Snapshot:
    """What there is at one time.

    Attributes:
        threads: of this process, by ident.
        processes: the family.
        open: descriptors by kind.
        names: in shared memory and among temporary files.
        shared: this user's names in shared memory, whoever has made them.
        listening: addresses at which sockets of this process listen.
        instances: objects of polyexec's own by class; None if nobody wants to know.
    """

    threads: dict[int, str]
    processes: set[Process]
    open: Counter[str]
    names: set[str]
    shared: set[str]
    listening: set[str]
    instances: Counter[str] | None = None

    @staticmethod
    def take(*, objects: bool = False) -> Snapshot:
        """Look now.

        Args:
            objects: count instances, too.
        """
        gc.collect()
        return Snapshot(
            {thread.ident: thread.name for thread in threading.enumerate() if thread.ident is not None},
            family(),
            descriptors(),
            shared_memory(),
            names_in_shared_memory(),
            listening() if LINUX else set(),
            instances() if objects else None,
        )

    def leaks(self, *, threads: int = 0, processes: int = 0, files: int = 0, descriptors: bool = True) -> list[str]:
        """Say what is there now and was not then.

        Args:
            threads: how many more threads are allowed.
            processes: how many more processes.
            files: how many more descriptors.
            descriptors: look at descriptors too.

        Returns:
            One text for each kind of leak, none if there is none.
        """
        now = Snapshot.take(objects=self.instances is not None)
        found = [*self._new_threads(now, threads), *self._new_processes(now, processes)]
        if descriptors and (more := now.open - self.open).total() > files:
            found.append(f"descriptors {dict(more)}")
        if descriptors and not files and (addresses := now.listening - self.listening):
            found.append(f"sockets that listen {sorted(addresses)}")
        orphaned = orphans(now.shared - self.shared, (process.pid for process in now.processes))
        if not files and (names := (now.names - self.names) | orphaned):
            found.append(f"files {sorted(names)}")
        if now.instances is not None and self.instances is not None and (objects := now.instances - self.instances):
            found.append(f"objects {dict(objects)}")
        return found

    def _new_threads(self, now: Snapshot, allowed: int) -> Iterator[str]:
        new = {ident: name for ident, name in now.threads.items() if ident not in self.threads}
        if len(new) > allowed:
            yield f"threads {[_thread_text(ident, name) for ident, name in new.items()]}"

    def _new_processes(self, now: Snapshot, allowed: int) -> Iterator[str]:
        new = [item for item in now.processes - self.processes if not _is_helper(item)]
        if len(new) > allowed:
            yield f"processes {[(item.pid, item.command[:120]) for item in new]}"

    def check(self, *, threads: int = 0, processes: int = 0, files: int = 0, descriptors: bool = True) -> None:
        """Raise ``LeakError`` if something is left after a grace of some seconds; see ``leaks``."""

        def found() -> list[str]:
            return self.leaks(threads=threads, processes=processes, files=files, descriptors=descriptors)

        if not LINUX or not found():
            return
        last: list[str] = []

        def clean() -> bool:
            last[:] = found()
            return not last

        try:
            eventually(clean, limit=_GRACE)
        except AssertionError:
            raise LeakError(f"left after {_GRACE:g} s: {'; '.join(last)}") from None


def _thread_text(ident: int, name: str) -> str:
    """Name a thread, and say where it is."""
    frame = sys._current_frames().get(ident)
    if frame is None:
        return name
    return f"{name} in {frame.f_code.co_name} ({frame.f_code.co_filename}:{frame.f_lineno})"


def _is_helper(process: Process) -> bool:
    return any(name in process.command for name in _HELPERS)

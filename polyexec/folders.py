"""The folder of a machine into which what an executor sends is unpacked (D1), and how it goes.

Every process that uses the folder holds a lock on it, which the kernel takes back however the process ends. A janitor,
a small process that is started with the folder, waits until nobody holds the lock, removes the folder, and ends. So
the folder goes when the driver and its workers are gone, killed or not (F8).

``_held`` is guarded by ``_lock``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import attrs

from polyexec.errors import ResourceExhausted

if TYPE_CHECKING:
    import subprocess

_PATIENCE = 5.0
"""Seconds that a driver which closes waits for the folder to go."""

_LOCK_NAME, _SEAT_NAME = ".lock", ".janitor"

_JANITOR = f"""
import fcntl, os, shutil, sys
folder, _, detached = sys.argv[1:]
if detached and os.fork():
    os._exit(0)
lock = os.open(os.path.join(folder, {_LOCK_NAME!r}), os.O_RDWR)
fcntl.lockf(lock, fcntl.LOCK_EX)
gone = f"{{folder}}.{{os.getpid()}}.gone"
os.rename(folder, gone)
os.close(lock)
shutil.rmtree(gone, ignore_errors=True)
"""


@attrs.frozen
class _Held:
    folder: str
    lock: int
    pid: int
    janitor: subprocess.Popen[bytes] | None


_held: dict[str, _Held] = {}
_lock = threading.Lock()
_late: list[subprocess.Popen[bytes]] = []
"""Janitors that outlived the close of their executor, because others still use the folder."""


def hold(executor_id: str, *, is_driver: bool) -> str:
    """Keep the executor's folder on this machine until ``release``, or until this process ends.

    Args:
        executor_id: whose folder.
        is_driver: a janitor shall be a child of this process; otherwise it must not count as what a task has started.

    Returns:
        The folder, which nobody else than this user can look into.

    Raises:
        ResourceExhausted: no room, no process or no descriptor is left.
        OSError: the folder cannot be made.
    """
    with _lock:
        found = _held.get(executor_id)
        # A lock is not inherited by a forked process.
        if found is None or found.pid != os.getpid():
            with _exhausting():
                found = _held[executor_id] = _take(executor_id, is_driver=is_driver)
        return found.folder


def held(executor_id: str) -> str | None:
    """Give the executor's folder on this machine if this process keeps it."""
    with _lock:
        found = _held.get(executor_id)
    return None if found is None else found.folder


def release(executor_id: str) -> None:
    """Let the folder go. A driver waits until it has gone, unless others need it; in all others this is quick."""
    with _lock:
        found = _held.pop(executor_id, None)
        _late[:] = [janitor for janitor in _late if janitor.poll() is None]
    if found is None or found.pid != os.getpid():
        return
    os.close(found.lock)
    if found.janitor is not None:
        import shutil
        import subprocess

        try:
            if found.janitor.wait(_PATIENCE) != 0:
                # Somebody has killed it; the workers have ended.
                shutil.rmtree(found.folder, ignore_errors=True)
        except subprocess.TimeoutExpired:
            _late.append(found.janitor)


def unpacked(executor_id: str, digest: str, read: Callable[[], bytes], *, is_driver: bool) -> str:
    """Give the folder in which an archive is unpacked; the first who wants it unpacks it, for all of this machine.

    Args:
        executor_id: who has sent it.
        digest: identifies it.
        read: gives the archive.
        is_driver: see ``hold``.

    Returns:
        The folder.

    Raises:
        ResourceExhausted: no room is left.
        OSError: it cannot be written.
    """
    base = hold(executor_id, is_driver=is_driver)
    folder = os.path.join(base, digest)
    if not os.path.isdir(folder):
        with _exhausting():
            _unpack(read(), base, folder)
    return folder


def _unpack(archive: bytes, base: str, folder: str) -> None:
    import io
    import shutil
    import tempfile
    import zipfile

    temporary = tempfile.mkdtemp(prefix=".unpacking-", dir=base)
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            for info in opened.infolist():
                path = opened.extract(info, temporary)
                # Whatever the umask of this process is; the folder around keeps others out, too.
                os.chmod(path, 0o700 if info.is_dir() or info.external_attr >> 16 & 0o100 else 0o600)
        os.rename(temporary, folder)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        # Another may have been quicker.
        if not os.path.isdir(folder):
            raise


def _take(executor_id: str, *, is_driver: bool) -> _Held:
    import tempfile

    folder = os.path.join(tempfile.gettempdir(), f"polyexec-packages-{executor_id}")
    while True:
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o700)
        try:
            lock = os.open(os.path.join(folder, _LOCK_NAME), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            # A janitor has just taken it away.
            continue
        fcntl.lockf(lock, fcntl.LOCK_SH)
        if _is_in_place(lock, folder):
            return _Held(folder, lock, os.getpid(), _start_janitor(folder, is_driver=is_driver))
        os.close(lock)


def _is_in_place(lock: int, folder: str) -> bool:
    """Say whether a lock is that of a folder which has not been taken away meanwhile."""
    try:
        return os.path.samestat(os.fstat(lock), os.stat(os.path.join(folder, _LOCK_NAME)))
    except FileNotFoundError:
        return False


def _start_janitor(folder: str, *, is_driver: bool) -> subprocess.Popen[bytes] | None:
    """Start a janitor if none is there; it keeps its seat as long as it lives."""
    import subprocess

    seat = os.open(os.path.join(folder, _SEAT_NAME), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(seat, fcntl.LOCK_EX | fcntl.LOCK_NB)
        janitor = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _JANITOR, folder, str(seat), "" if is_driver else "detached"],
            pass_fds=(seat,),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )
    except BlockingIOError:
        return None
    finally:
        os.close(seat)
    if is_driver:
        return janitor
    janitor.wait()
    return None


@contextlib.contextmanager
def _exhausting() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        kind = {errno.ENOSPC: "disk", errno.EDQUOT: "disk", errno.EMFILE: "descriptors", errno.ENFILE: "descriptors"}
        if error.errno not in kind:
            raise
        raise ResourceExhausted(kind[error.errno], str(error)) from error

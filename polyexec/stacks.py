"""Python stacks: of the threads of this process, and of other processes on this machine that offer theirs.

A process that offers its stacks lets ``faulthandler`` write them into a file in memory when a signal comes. That needs
neither the interpreter's lock nor a thread of that process, so that it works while the process is in C code for ever.
Who asks finds the file in ``/proc``, and knows from there when the handler has done its work. All that needs Linux;
elsewhere nothing is offered, and nothing found.

State: ``_offered`` keeps the file open, and is written by whoever offers first; ``_asking`` is held by whoever asks,
because answers of one process to two would mix, and is waited for with a bound.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Collection, Iterable, Sequence
from types import FrameType

import attrs

SIGNAL: int = getattr(signal, "SIGRTMAX", 0) - 5
"""What a process is asked by; one of the highest, which programs rarely use."""

_BIT = 1 << (SIGNAL - 1)
_NAME = "polyexec-stacks"
_FRAMES = 100
"""Frames of a thread that are given at most; ``faulthandler`` has the same limit."""

_LONGEST = 1 << 20
_PAUSE = 0.002
_offered: list[int] = []
_asking = threading.Lock()

_THREAD = r"(?:Current t|T)hread 0x([0-9a-f]+)"
_FRAME = r'  File "(.*)", line (\d+|\?+) in (.*)$'


@attrs.frozen
class ThreadStack:
    """Where a thread is.

    Attributes:
        ident: as ``threading.get_ident`` gives it.
        name: of the thread, empty if it is not known.
        frames: where it is, the most recent call first, each as ``"FILE:LINE in FUNCTION"``.
        waits_for: in words, what of the executor it waits for; empty if it does not, or if that is not known.
        runs: in words, the task that it runs, if tasks run in threads; empty if it runs none.
    """

    ident: int
    name: str
    frames: tuple[str, ...]
    waits_for: str = ""
    runs: str = ""


@attrs.frozen
class ProcessStacks:
    """What could be found out about a process.

    Attributes:
        status: empty if it has answered; else in words why not.
        threads: where they are.
    """

    status: str
    threads: tuple[ThreadStack, ...] = ()


# For those who offer


def offer() -> None:
    """Let other processes of the same user ask for the stacks of this one from now on. Harmless when repeated."""
    if _offered or not hasattr(os, "memfd_create") or signal.getsignal(SIGNAL) is not signal.SIG_DFL:
        return
    try:
        descriptor = os.memfd_create(_NAME)
    except OSError:
        return
    _offered.append(descriptor)
    # The kernel makes them open to everybody who finds them in /proc.
    os.fchmod(descriptor, 0o600)
    # Whoever asks empties the file.
    fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_APPEND)
    faulthandler.register(SIGNAL, file=descriptor, all_threads=True)


# For those who ask


def here(skipped: Collection[int] = ()) -> tuple[tuple[ThreadStack, FrameType], ...]:
    """Give where the threads of this process are, with their innermost frames, but for some."""
    # Not by ``threading.enumerate``, whose lock a thread may hold that is being started.
    names = {ident: thread.name for ident, thread in dict(threading._active).items()}  # type: ignore[attr-defined]
    return tuple(
        (ThreadStack(ident, names.get(ident, ""), frames_of(frame)), frame)
        for ident, frame in sys._current_frames().items()
        if ident not in skipped
    )


def frames_of(frame: FrameType | None) -> tuple[str, ...]:
    """Describe a frame, and those that have called it."""
    found: list[str] = []
    while frame is not None and len(found) < _FRAMES:
        code = frame.f_code
        found.append(f"{code.co_filename}:{frame.f_lineno} in {code.co_qualname}")
        frame = frame.f_back
    return tuple(found)


def ask(pids: Iterable[int], timeout: float) -> dict[int, ProcessStacks]:
    """Ask processes of this machine for their stacks, all at the same time.

    A system call in which a process is may be interrupted and begun again, as by any signal that has a handler.

    Args:
        pids: the processes; whatever does not offer its stacks is not touched.
        timeout: seconds to wait for answers at most.

    Returns:
        What was found out, for each process.
    """
    end = time.monotonic() + timeout
    if not _asking.acquire(timeout=timeout):
        return {pid: ProcessStacks("somebody else is asking it") for pid in pids}
    try:
        questions = [_Question(pid) for pid in dict.fromkeys(pids)]
        try:
            for question in questions:
                question.begin()
            while not all(question.is_answered() for question in questions) and time.monotonic() < end:
                time.sleep(_PAUSE)
            return {question.pid: question.result() for question in questions}
        finally:
            for question in questions:
                question.close()
    finally:
        _asking.release()


class _Question:
    """One process that is asked; what has become of it is seen in ``/proc``."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._file = -1
        self._status = ""
        self._deaf: frozenset[str] = frozenset()

    def begin(self) -> None:
        """Ask, if the process can answer."""
        try:
            self._status = self._obstacle() or self._send()
        except ProcessLookupError:
            self._status = "it has ended"
        except OSError as error:
            self._status = f"it cannot be asked: {error.strerror}"

    def _obstacle(self) -> str:
        state = self._state()
        if state in "ZXx":
            return "it has ended"
        if state in "Tt":
            return "it has been stopped by a signal (SIGSTOP, or a debugger)"
        if not self._mask("SigCgt") & _BIT:
            return "it does not offer its stacks"
        return ""

    def _send(self) -> str:
        folder = f"/proc/{self.pid}/fd"
        for name in os.listdir(folder):
            with contextlib.suppress(FileNotFoundError):
                if os.readlink(f"{folder}/{name}").startswith(f"/memfd:{_NAME}"):
                    self._file = os.open(f"{folder}/{name}", os.O_RDWR | os.O_CLOEXEC)
                    os.ftruncate(self._file, 0)
                    # Threads of libraries often block all signals, and always will.
                    self._deaf = frozenset(one for one in self._threads() if self._mask("SigBlk", one) & _BIT)
                    os.kill(self.pid, SIGNAL)
                    return ""
        return "it does not offer its stacks"

    def is_answered(self) -> bool:
        """Say whether there is nothing more to wait for."""
        if self._status or self._file < 0:
            return True
        try:
            # In this order: when the handler has written, the signal has been taken and is blocked until it returns.
            return os.fstat(self._file).st_size > 0 and not self._is_busy()
        except OSError:
            self._status = "it has ended"
            return True

    def _is_busy(self) -> bool:
        threads = [one for one in self._threads() if one not in self._deaf]
        return any(self._mask(name, one) & _BIT for one in threads for name in ("SigPnd", "ShdPnd", "SigBlk"))

    def _threads(self) -> list[str]:
        return os.listdir(f"/proc/{self.pid}/task")

    def _mask(self, name: str, thread: str = "") -> int:
        return int(self._field(name, thread) or "0", 16)

    def _state(self) -> str:
        return self._field("State", "")[:1]

    def _field(self, name: str, thread: str) -> str:
        path = f"/proc/{self.pid}/task/{thread}/status" if thread else f"/proc/{self.pid}/status"
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                found = (line for line in file if line.startswith(f"{name}:"))
                return next(found, ":").partition(":")[2].strip()
        except (FileNotFoundError, ProcessLookupError):
            if thread:
                # That thread has ended.
                return ""
            raise ProcessLookupError(self.pid) from None

    def result(self) -> ProcessStacks:
        """Give what was found out."""
        if self._status or self._file < 0:
            return ProcessStacks(self._status)
        threads = parse(os.pread(self._file, _LONGEST, 0).decode(errors="replace"))
        return ProcessStacks("" if threads else self._silence(), threads)

    def _silence(self) -> str:
        try:
            state = self._state()
        except OSError:
            return "it has ended"
        why = {"D": "it is in a system call that cannot be interrupted", "T": "it has been stopped by a signal"}
        return why.get(state, "it has not answered in time")

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)


def parse(text: str) -> tuple[ThreadStack, ...]:
    """Read what ``faulthandler`` has written; the thread that took the signal comes first."""
    found: list[tuple[bool, int, list[str]]] = []
    for line in text.splitlines():
        thread, frame = re.match(_THREAD, line), re.match(_FRAME, line)
        if thread is not None:
            found.append((not line.startswith("Current"), int(thread[1], 16), []))
        elif frame is not None and found:
            found[-1][2].append(f"{frame[1]}:{frame[2]} in {frame[3]}")
    return tuple(ThreadStack(ident, "", tuple(frames)) for _, ident, frames in sorted(found, key=lambda one: one[0]))


# For those who show them


def shortened(frame: str, paths: Sequence[str] | None = None) -> str:
    """Give a frame with its file relative to where modules are found."""
    known = sys.path if paths is None else paths
    fitting = (path for path in known if path and frame.startswith(path.rstrip("/") + "/"))
    longest = max(fitting, key=len, default="")
    return frame[len(longest.rstrip("/")) + 1 :] if longest else frame

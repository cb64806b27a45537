"""A dump of all executors of this process on standard error, whenever a signal comes: ``POLYEXEC_DUMP_SIGNAL=USR1``.

``faulthandler`` takes the signal, whatever the main thread does, and writes into a pipe; a thread that waits there
makes the dump. A handler of Python's own would run only when the main thread comes back from C code.

State: ``_installed`` is written once, by whoever connects first.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import os
import signal
import threading

from polyexec import dumping
from polyexec.errors import SpecificationError

VARIABLE = "POLYEXEC_DUMP_SIGNAL"
_TIMEOUT = 2.0
_installed: list[int] = []


def install(name: str) -> None:
    """Dump from now on when a signal comes; once in a process.

    Args:
        name: of the signal, with or without ``SIG``.

    Raises:
        SpecificationError: there is no such signal, or the program has a handler for it already.
    """
    number = _number(name)
    if _installed:
        return
    if signal.getsignal(number) is not signal.SIG_DFL:
        raise SpecificationError(f"{VARIABLE}={name!r}: the program handles that signal itself")
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETFL, os.O_NONBLOCK)
    threading.Thread(target=_wait, args=(reader,), name="polyexec-on-signal", daemon=True).start()
    faulthandler.register(number, file=writer, all_threads=False)
    _installed.append(number)


def _number(name: str) -> int:
    text = name.strip().upper()
    try:
        found = signal.Signals[text if text.startswith("SIG") else f"SIG{text}"]
    except KeyError:
        raise SpecificationError(f"{VARIABLE}={name!r}: there is no such signal; USR1 is one") from None
    if found in (signal.SIGKILL, signal.SIGSTOP):
        raise SpecificationError(f"{VARIABLE}={name!r}: that signal cannot be handled; take USR1")
    return found


def _wait(reader: int) -> None:
    while os.read(reader, 1 << 16):
        write(dumping.all_as_text(_TIMEOUT))


def write(text: str, descriptor: int = 2) -> None:
    """Write to a descriptor; nothing is left half written, and an error is nobody's business."""
    data = memoryview(f"{text}\n".encode(errors="replace"))
    with contextlib.suppress(OSError):
        while data:
            data = data[os.write(descriptor, data) :]


def _let_go() -> None:
    """Run in a forked child, which has no thread that waits: the signal does again what it does by default."""
    while _installed:
        faulthandler.unregister(_installed.pop())


os.register_at_fork(after_in_child=_let_go)

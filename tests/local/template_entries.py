"""What the workers of the template's tests run, and what they start."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

__all__ = ["ctypes", "obey", "signal", "sys"]


def obey(connection: socket.socket) -> None:
    """Evaluate expressions and send what they give, until there are no more."""
    connection.setblocking(True)
    while code := connection.recv(1 << 16):
        connection.send(repr(eval(code, globals())).encode())


def child() -> int:
    """Start a process that does not end by itself."""
    return subprocess.Popen(["sleep", "infinity"]).pid


def daemon() -> int:
    """Start a process in a session of its own whose parent has ended."""
    read, write = os.pipe()
    middle = os.fork()
    if middle == 0:
        os.setsid()
        pid = os.fork()
        if pid == 0:
            signal.pause()
        os.write(write, str(pid).encode())
        os._exit(0)
    os.waitpid(middle, 0)
    return int(os.read(read, 100))


def hold_the_interpreter() -> None:
    """Never return from C code, and let no other thread of this process run."""
    ctypes.PyDLL(None).pause()


def descriptors() -> dict[int, str]:
    """Give what is open here."""
    folder = Path("/proc/self/fd")
    found = {int(entry): os.readlink(folder / entry) for entry in os.listdir(folder) if (folder / entry).is_symlink()}
    return {number: target for number, target in found.items() if not target.startswith("/proc/")}


def ignored() -> set[int]:
    """Give the signals that are ignored here."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("SigIgn:")]
    bits = int(line.split()[1], 16)
    return {number for number in range(1, 65) if bits >> (number - 1) & 1}

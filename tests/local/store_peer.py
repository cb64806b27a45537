"""A process that borrows from a store, and what tests see of memory from outside.

``python store_peer.py DESCRIPTOR`` is the process: it does what it is told on its socket, one thing at a time.
"""

from __future__ import annotations

import os
import pickle
import resource
import socket
import subprocess
import sys
import zlib
from collections.abc import Sequence
from typing import Any

from polyexec.spi import Stored
from polyexec_local.borrower import Borrower, Loan
from polyexec_local.memory import Layout
from polyexec_local.store import Account, Handle, Store

_LIMIT = 60.0


def made(seed: int, size: int, count: int = 1) -> Stored:
    """Make a value of some buffers, whose bytes all depend on the seed."""
    words = (seed * 2654435761 % (1 << 32)).to_bytes(4, "little")
    return Stored(b"head" + words, [(words * (size // 4 + 1))[:size] for _ in range(count)])


def sum_of(stored: Stored) -> int:
    """Give a checksum of all parts of a value."""
    found = zlib.crc32(stored.data)
    for buffer in stored.buffers:
        found = zlib.crc32(buffer, found)
    return found


def files(mark: str, pid: int | None = None) -> dict[int, str]:
    """Give the inodes of the open files whose path contains a mark, with their ``/proc`` paths."""
    folder = f"/proc/{pid or os.getpid()}/fd"
    found = {}
    for name in os.listdir(folder):
        path = f"{folder}/{name}"
        try:
            if mark in os.readlink(path):
                found[os.stat(path).st_ino] = path
        except FileNotFoundError:
            continue
    return found


def bytes_in(mark: str) -> int:
    """Give the bytes that those files take, of memory or of disk."""
    return sum(os.stat(path).st_blocks * 512 for path in files(mark).values())


def memory() -> int:
    """Give the bytes of memory that this process's segments take."""
    return bytes_in("memfd:polyexec")


def descriptor_count() -> int:
    """Count the open descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))


def mapping_count() -> int:
    """Count this process's mappings of segments."""
    with open("/proc/self/maps") as file:
        return sum("memfd:polyexec" in line for line in file)


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def trim_all(store: Store, clock: Clock) -> None:
    """Let a second pass, and trim whenever the store wants it."""
    end = clock.now + 1.0
    due = store.trim()
    while due is not None and due <= end:
        clock.now = max(clock.now, due)
        due = store.trim()
    clock.now = end


class Peer:
    """The driver's end: a process with an account."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.account = Account()
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(_LIMIT)
        with theirs:
            command = [sys.executable, __file__, str(theirs.fileno())]
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment)

    def ask(self, *message: Any, descriptors: Sequence[int] = ()) -> Any:
        """Tell the process to do something, and give its answer."""
        data = pickle.dumps(message)
        socket.send_fds(self._socket, [len(data).to_bytes(8, "little")], list(descriptors))
        self._socket.sendall(data)
        return pickle.loads(_read(self._socket, int.from_bytes(_read(self._socket, 8), "little")))

    def open(self, handle: Handle, *, private: bool = False) -> tuple[int, int]:
        """Let it open a value and keep it; give the loan's number and the checksum."""
        loans = self.store.lend([handle], self.account)
        assert loans is not None
        return loans[0].number, self.see(loans[0], private=private)

    def see(self, loan: Loan, *, private: bool = False) -> int:
        """Let it open a loan and keep what it sees; give the checksum."""
        self.introduce(loan)
        found: int = self.ask("open", loan, private)
        return found

    def write(self, loan: Loan, stored: Stored) -> None:
        """Let it write a value into a loan."""
        self.introduce(loan)
        self.ask("write", loan, stored.data, [bytes(buffer) for buffer in stored.buffers])

    def introduce(self, loan: Loan) -> None:
        """Tell it what it must know."""
        for segment in self.store.introduce(self.account, [loan]):
            self.ask("learn", segment.number, segment.size, descriptors=[segment.descriptor])

    def returned(self) -> list[int]:
        """Fetch what it does not see any more, and tell the store."""
        numbers: list[int] = self.ask("returned")
        self.store.give_back(self.account, numbers)
        return numbers

    def anonymous_memory(self) -> int:
        """Give the bytes of memory that are its own."""
        with open(f"/proc/{self.process.pid}/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))

    def kill(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.wait(_LIMIT)
        self._socket.close()
        self.store.forget(self.account)


def _read(connection: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        more = connection.recv(length - len(data))
        if not more:
            raise EOFError
        data += more
    return data


class _Process:
    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._borrower = Borrower()
        self._open: dict[int, Stored] = {}
        self._child: tuple[int, int] | None = None

    def serve(self) -> None:
        while True:
            length, descriptors, _, _ = socket.recv_fds(self._socket, 8, 1)
            if not length:
                return
            message = pickle.loads(_read(self._socket, int.from_bytes(length, "little")))
            data = pickle.dumps(getattr(self, message[0])(*message[1:], *descriptors))
            self._socket.sendall(len(data).to_bytes(8, "little") + data)

    def learn(self, number: int, size: int, descriptor: int) -> None:
        self._borrower.learn(number, size, descriptor)

    def open(self, loan: Loan, private: bool) -> int:
        self._open[loan.number] = self._borrower.open(loan, private=private)
        return self.sum(loan.number)

    def sum(self, number: int) -> int:
        return sum_of(self._open[number])

    def overwrite(self, number: int) -> str:
        try:
            memoryview(self._open[number].buffers[0])[:3] = b"new"
        except TypeError as error:
            return str(error)
        return ""

    def drop(self, number: int) -> None:
        del self._open[number]

    def returned(self) -> list[int]:
        return self._borrower.returned()

    def write(self, loan: Loan, data: bytes, buffers: list[bytes]) -> None:
        self._borrower.write(loan, Stored(data, buffers))

    def write_half(self, loan: Loan, data: bytes) -> None:
        self._borrower.write(Loan(loan.number, loan.segment, loan.offset, Layout(len(data), ())), Stored(data))

    def refuse(self, loan: Loan) -> None:
        self._borrower.refuse(loan)

    def limit_addresses(self, more: int) -> None:
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + more, resource.getrlimit(resource.RLIMIT_AS)[1]))

    def fork(self) -> None:
        """Make a child that sees what is open, until it is asked for its checksums."""
        ask_reading, ask_writing = os.pipe()
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(ask_writing)
            os.read(ask_reading, 1)
            sums = {number: sum_of(stored) for number, stored in self._open.items()}
            os.write(writing, pickle.dumps(sums))
            os._exit(0)
        os.close(ask_reading)
        os.close(writing)
        self._child = (ask_writing, reading)

    def end_child(self) -> dict[int, int]:
        assert self._child is not None
        asking, reading = self._child
        os.close(asking)
        with open(reading, "rb") as file:
            sums: dict[int, int] = pickle.loads(file.read())
        os.wait()
        return sums


if __name__ == "__main__":
    _Process(socket.socket(fileno=int(sys.argv[1]))).serve()

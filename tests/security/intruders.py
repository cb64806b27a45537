"""What somebody tries who is not asked in: run beside a program, with its address and a folder to leave a mark in.

Each function gives what it has got, empty if that is nothing.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

LIMIT = 60

_DASK = """if True:
    import logging, os, sys
    from distributed import Client, Security
    logging.disable()
    address, mark = sys.argv[1:]
    strangers = [None]
    if address.startswith("tls"):
        strangers += [Security.temporary()]
    for security in strangers:
        try:
            with Client(address, security=security, timeout=3) as client:
                client.run_on_scheduler(lambda: open(mark, "a").close())
                print("in")
        except Exception:
            pass
"""

_RAY = """if True:
    import sys
    from ray._raylet import GcsClient
    try:
        print(len(GcsClient(address=sys.argv[1]).internal_kv_keys(b"", None, timeout=10)))
    except Exception as error:
        if type(error).__name__ != "AuthenticationError":
            raise
"""


class Trap:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self._mark),)


def _run(program: str, arguments: list[str], **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "DASK_"))}
    command = [sys.executable, "-c", program, *arguments]
    ended = subprocess.run(
        command, env=environment | variables, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def dask_client(address: str, mark: Path) -> str:
    """Be a client of a scheduler without a key, and with one of one's own."""
    return _run(_DASK, [address, str(mark)])


def ray_client(address: str, token: str = "") -> str:
    """Ask Ray's control service something, without a token, with a wrong one, or with that in a file."""
    if token:
        return _run(_RAY, [address], RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=token)
    wrong = _run(_RAY, [address], RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="ab" * 32)
    return _run(_RAY, [address], RAY_AUTH_MODE="disabled") + wrong


def http_client(port: int) -> int:
    """Ask a server something, and give its status; 0 if it is no server for that."""
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT) as connection:
        connection.sendall(b"POST /get_or_create_runtime_env HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        line = connection.recv(100)
    return int(line.split()[1]) if line.startswith(b"HTTP/1.1 ") else 0


def send_pickles(port: int, mark: Path) -> None:
    """Send what leaves a mark if anybody unpickles it, as it is, and as Dask and our own channels frame messages."""
    data = pickle.dumps(Trap(mark))
    frames = [
        data,
        len(data).to_bytes(8, "little") + data,
        b"plex" + len(data).to_bytes(8, "little") + data,
        (24 + len(data)).to_bytes(8, "little") + b"\1" + b"\0" * 7 + len(data).to_bytes(8, "little") + data,
        b"\0" * 4096,
    ]
    for frame in frames:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=LIMIT) as connection:
            connection.sendall(frame)
            connection.shutdown(socket.SHUT_WR)
            connection.settimeout(1)
            connection.recv(1 << 16)

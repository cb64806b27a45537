"""What a program on each backend shows to others, seen from outside, with a umask that forbids nothing."""

from __future__ import annotations

from pathlib import Path

from .conftest import Seen
from .outside import others_may_use

WITHOUT_SOCKETS = ("serial", "threads", "process")


def test_nobody_can_connect_to_a_local_engine(seen: Seen) -> None:
    """serial, threads and process have no socket that waits for somebody, and none with an abstract name."""
    assert not (seen.sockets if seen.backend in WITHOUT_SOCKETS else ())


def test_only_this_machine_can_connect(seen: Seen) -> None:
    """Engines that listen do so on the loopback interface, or in a folder of this user's alone."""
    assert [socket for socket in seen.sockets if socket.table != "unix" and not socket.is_loopback] == []
    assert [socket for socket in seen.sockets if socket.table == "unix" and not socket.address.startswith("/")] == []


def test_nobody_else_gets_in(seen: Seen) -> None:
    """Without the token, or the key, of an engine nobody is told anything, and nothing that he sends is unpickled."""
    assert seen.owned == bool(seen.report["weaknesses"])
    assert bool(seen.intruders.pop("client", "")) == seen.owned
    assert seen.intruders.pop("member", "in") != ""
    assert set(seen.intruders.values()) <= {0, 401}


def test_other_users_reach_no_file(seen: Seen) -> None:
    assert seen.public_paths == []


def test_other_users_reach_no_memory(seen: Seen) -> None:
    """Shared memory has no name, and even who could open it by its process may not."""
    assert seen.public_memory == set()


def test_no_secret_is_in_the_list_of_processes(seen: Seen) -> None:
    assert seen.secret not in seen.commands


def test_no_secret_is_in_the_output(seen: Seen) -> None:
    """Not in logs at level DEBUG, events, statistics, errors, or any ``repr``."""
    assert [line for line in seen.output.splitlines() if seen.secret in line] == []
    assert "INFO:polyexec:backend" in seen.output


def test_no_secret_is_in_a_log_file(seen: Seen) -> None:
    """Not in those of the engine, and not in a trace."""
    assert [name for name, data in seen.files.items() if seen.secret.encode() in data] == []
    assert any(name.endswith("trace.json") for name in seen.files)


def test_the_report_tells_what_is_seen(seen: Seen) -> None:
    """``Executor.security``, looked at by another."""
    told = {listener["address"].rpartition("]:")[2] for listener in seen.report["listeners"]}
    told = {address if address.startswith("/") else address.rpartition(":")[2] for address in told}
    assert {socket.place for socket in seen.lasting} <= told <= {socket.place for socket in seen.sockets}
    weaknesses = seen.report["weaknesses"]
    assert bool(weaknesses) == (not seen.report["authentication"]), weaknesses
    assert all(path["is_private"] for path in seen.report["paths"])


def test_the_folder_for_this_test_is_open() -> None:
    """Otherwise others could reach nothing in any case."""
    assert others_may_use(Path("/tmp"))

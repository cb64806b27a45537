"""The report on who can reach an executor."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

import polyexec
from polyexec import sockets
from polyexec.connection import warn
from polyexec.security import is_private, report
from polyexec.session import NO_INFO
from polyexec.spi import Protection

from .stub import StubBackend, StubConfig, connect_stub

INSIDE = attrs.evolve(NO_INFO, backend="toy")
NEAR = attrs.evolve(INSIDE, address="tcp://127.0.0.1:1")
FAR = attrs.evolve(INSIDE, address="tcp://10.0.0.1:1")


def weaknesses(info: polyexec.Info = INSIDE, **protection: Any) -> str:
    return "\n".join(report(info, "nobody", Protection(**{"authentication": "a token", **protection})).weaknesses)


@pytest.fixture(params=["tcp", "tcp6", "udp", "unix"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """Open a socket that everybody can reach."""
    protocol = request.param
    families = {"tcp6": socket.AF_INET6, "unix": socket.AF_UNIX}
    kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
    with socket.socket(families.get(protocol, socket.AF_INET), kind) as opened:
        try:
            opened.bind(f"\0px-{os.getpid()}" if protocol == "unix" else ("", 0))
        except OSError as error:
            pytest.skip(f"this machine has no {protocol}: {error}")
        if protocol != "udp":
            opened.listen()
        yield protocol, opened


def mine() -> list[polyexec.Listener]:
    return list(sockets.listeners([os.getpid()]))


def test_sockets_that_wait_are_seen(listener: tuple[str, socket.socket]) -> None:
    protocol, opened = listener
    address = opened.getsockname()
    end = f"@px-{os.getpid()}" if protocol == "unix" else f":{address[1]}"
    found = [each for each in mine() if each.protocol == protocol and each.address.endswith(end)]
    assert [each.pid for each in found] == [os.getpid()]
    assert found[0].is_local == (protocol == "unix")


def test_they_are_weaknesses_if_nobody_is_asked_who_he_is(listener: tuple[str, socket.socket]) -> None:
    assert "can reach" in weaknesses(authentication="")
    # Other users of this machine are not kept out by what is asked of those who come over the network.
    assert ("can reach" in weaknesses()) == (listener[0] == "unix")


def test_sockets_that_do_not_wait_are_not_seen() -> None:
    before = len(mine())
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        assert len(mine()) == before + 1
    first, second = socket.socketpair()
    with first, second:
        assert len(mine()) == before


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("", True),
        ("127.0.0.1:1", True),
        ("tcp://127.0.0.1:8786", True),
        ("tls://localhost:8786", True),
        ("[::1]:1", True),
        ("::1", True),
        ("[::ffff:127.0.0.1]:1", True),
        ("ray://127.1.2.3:1", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("10.0.0.1:1", False),
        ("tcp://head:8786", False),
        ("localhost.example.org:1", False),
        ("tcp://127.0.0.1.example.org:1", False),
        ("tcp://127.0.0.1@example.org:1", False),
    ],
)
def test_what_is_this_machine_alone(address: str, expected: bool) -> None:
    assert sockets.is_loopback(address) == expected


def test_what_an_engine_does_not_ask() -> None:
    assert weaknesses(NEAR) == ""
    assert "every user of this machine" in weaknesses(NEAR, authentication="")
    assert "over the network" in weaknesses(FAR, authentication="")
    assert "does not say" in weaknesses(NEAR, authentication=None)
    assert "not encrypted" in weaknesses(FAR)
    assert weaknesses(FAR, is_encrypted=True) == ""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Make a folder that others may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def test_files_that_others_can_use(open_folder: Path) -> None:
    key = open_folder / "key"
    key.write_text("")
    key.chmod(0o640)
    assert f"can use {key} (640)" in weaknesses(paths=(str(key),))
    key.chmod(0o600)
    assert weaknesses(paths=(str(key), str(open_folder / "gone"))) == ""
    (open_folder / "link").symlink_to(key)
    assert not is_private(str(open_folder / "link"))


def test_it_is_the_drivers() -> None:
    def ask() -> str:
        try:
            polyexec.current().security()
        except polyexec.SpecificationError as error:
            return str(error)
        return "told"

    with polyexec.connect("threads?workers=1") as ex:
        assert "outside of tasks" in ex.submit(ask).result()
        found = ex.security()
        assert found.authentication
        assert "authentication: all runs in this process" in str(found)
    with pytest.raises(polyexec.ExecutorClosed):
        ex.security()


def test_a_backend_that_does_not_say() -> None:
    ex, _ = connect_stub(StubConfig())
    with ex:
        assert ex.security().authentication is None
        assert "authentication: unknown" in str(ex.security())


@attrs.frozen(kw_only=True)
class TrustedConfig(StubConfig):
    """What a user says of his network."""

    allow_insecure: bool = False


@pytest.mark.parametrize(
    ("info", "authentication", "trusted", "warns"),
    [
        (FAR, "", False, True),
        (FAR, "", True, False),
        (FAR, "a token", False, False),
        (FAR, None, False, False),
        (NEAR, "", False, False),
        (INSIDE, "", False, False),
    ],
)
def test_connect_warns_of_engines_that_ask_nobody(
    info: polyexec.Info, authentication: str | None, trusted: bool, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    class Backend(StubBackend):
        def protection(self) -> Protection:
            return Protection(authentication)

    warn(Backend(TrustedConfig(allow_insecure=trusted)), info)
    assert ["allow_insecure=1" in record.getMessage() for record in caplog.records] == [True] * warns

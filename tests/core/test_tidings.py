"""What running calls tell, from the session of a task to whoever listens."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from typing import Any

from polyexec.remote import RemoteSession
from polyexec.stored import Stored
from polyexec.tidings import Tidings


class Uplink:
    """Hands over what is told, as a backend does."""

    def __init__(self, tidings: Tidings) -> None:
        self._tidings = tidings

    def request(self, message: Stored) -> tuple[bytes, Sequence[Stored]]:
        raise AssertionError("nothing is asked")

    def tell(self, message: Stored) -> None:
        self._tidings.take(1, message)


def listening() -> tuple[Tidings, list[Any]]:
    tidings, heard = Tidings(), []
    tidings.listen("kind", lambda *told: heard.append(told))
    return tidings, heard


def test_listeners_hear_what_is_told_of_their_kind() -> None:
    tidings, heard = listening()
    session = RemoteSession("executor", Uplink(tidings), inline=False)
    session.tell("kind", "text", 2, buffers=(b"buffer",))
    session.tell("unknown", "text")
    session.tell("kind")
    assert heard == [(1, (b"buffer",), "text", 2), (1, ())]


def test_a_body_with_calls_of_its_own_tells_in_their_names() -> None:
    tidings, heard = listening()
    RemoteSession("executor", Uplink(tidings), inline=False, speaker=7).tell("kind")
    assert heard == [(7, ())]


def test_a_forked_process_tells_nothing() -> None:
    tidings, heard = listening()
    session = RemoteSession("executor", Uplink(tidings), inline=False)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        session.tell("kind")
        os.write(writer, pickle.dumps(heard))
        os._exit(0)
    os.waitpid(child, 0)
    assert pickle.loads(os.read(reader, 100)) == []
    os.close(reader)
    os.close(writer)

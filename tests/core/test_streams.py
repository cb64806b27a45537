from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

import polyexec
from polyexec.testing.tools import never

from .gates import LIMIT, Gate, pass_through
from .stream_world import World

STEPS = 60


def run(seed: int) -> None:
    world = World(seed)
    try:
        for _ in range(STEPS):
            world.step()
        world.drain()
        world.check_end()
    except BaseException as error:
        error.add_note(f"seed={seed}: run({seed}) reproduces this")
        raise


@pytest.mark.parametrize("block", range(20))
def test_random_interleavings(block: int) -> None:
    """G1, G2, G3: order, the bound on unread items, and that everything ends, however things interleave."""
    for seed in range(100 * block, 100 * block + 100):
        run(seed)


SAID: list[str] = []


def careful(gate: Gate) -> Iterator[int]:
    try:
        while True:
            yield 0
    finally:
        try:
            pass_through(gate)
            SAID.append("cleaned up")
        except BaseException:
            SAID.append("interrupted")
            raise


def test_an_executor_that_is_left_by_an_exception_lets_a_generator_clean_up(gate: Gate) -> None:
    """G3, F9: what runs in its ``finally`` is not interrupted in its turn."""
    SAID.clear()

    def open_late() -> None:
        gate.wait()
        never(lambda: SAID, during=0.1)
        gate.open()

    def leave() -> None:
        with polyexec.connect("threads?workers=1") as ex:
            stream = ex.options(buffer=1).stream(careful, gate)
            assert next(stream).result(LIMIT) == 0
            opener.start()
            raise KeyError

    opener = threading.Thread(target=open_late)
    with pytest.raises(KeyError):
        leave()
    assert SAID == ["cleaned up"]
    opener.join(LIMIT)

from __future__ import annotations

import pytest

from .express_events import drain, fail, step
from .express_world import ExpressWorld

SCHEDULES = 100


def run_schedule(seed: int, failing: bool = False) -> None:
    world = ExpressWorld(seed)
    steps = world.random.choice([5, 10, 20, 40])
    last = world.random.randrange(steps) if failing else -1
    try:
        for number in range(steps):
            step(world, *[fail] * (number == last))
        drain(world)
    except Exception as error:
        error.add_note(f"seed={seed}: run_schedule({seed}, {failing}) reproduces this")
        raise


@pytest.mark.parametrize("block", range(30))
def test_random_schedules(block: int) -> None:
    """R1, R4, R6, R7, R8, R9, C8, C9, F3, F5: the invariants of ``express_world`` hold in random schedules."""
    for seed in range(block * SCHEDULES, (block + 1) * SCHEDULES):
        run_schedule(seed)


@pytest.mark.parametrize("block", range(5))
def test_failure_of_everything(block: int) -> None:
    """F10: when the backend is lost, whatever else happens then, every call is settled and every cancel answered."""
    for seed in range(block * SCHEDULES, (block + 1) * SCHEDULES):
        run_schedule(seed, failing=True)

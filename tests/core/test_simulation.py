from __future__ import annotations

import pytest

from polyexec import outcome
from polyexec.records import DependencyFailed, Failed

from .events import EVENTS, check_quiet, drain
from .recorded import check_recorded
from .simulation import World

STEPS = 45
SCHEDULES = 100


def run_schedule(seed: int) -> None:
    world = World(seed)
    try:
        for _ in range(STEPS):
            world.step(EVENTS)
        drain(world)
        check_recorded(world)
    except Exception as error:
        error.add_note(f"seed={seed}: run_schedule({seed}) reproduces this")
        raise


@pytest.mark.parametrize("block", range(24))
def test_random_schedules(block: int) -> None:
    """R1, R4, R6, R8, C8, C9, F5, N2, E1: the invariants of ``simulation`` hold in random schedules."""
    for seed in range(block * SCHEDULES, (block + 1) * SCHEDULES):
        run_schedule(seed)


@pytest.mark.parametrize("seed", range(100))
def test_failure_of_everything(seed: int) -> None:
    """F10: when the backend is lost every task is settled at once, and nothing more is reported."""
    world = World(seed)
    for _ in range(STEPS // 2):
        world.step(EVENTS)
    left = set(world.scheduler.tasks)
    error = outcome.encode_error(RuntimeError("lost"))
    world.lose_all()
    world.scheduler.fail_all(error)
    world.settle()
    check_quiet(world)
    check_recorded(world)
    open_before = [story for story in world.stories.values() if story.task.id in left]
    assert all(isinstance(story.ending, Failed | DependencyFailed) for story in open_before)

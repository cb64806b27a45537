"""Actors in random schedules: the order of calls, at most one beginning of each, and an ending for all."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from polyexec.spi import Verdict
from polyexec.stored import Tag

from .actor_world import ActorWorld, Instance, Method

STEPS = 70
SCHEDULES = 60


def make_actor(world: ActorWorld) -> None:
    if sum(bool(story.task.width) for story in world.stories.values()) < 4:
        world.make_actor()


def call(world: ActorWorld) -> None:
    actor = _some_actor(world)
    if actor is not None and len(world.stories) < 40:
        world.call(actor, world.random.choice(["thread 1", "thread 2"]))


def announce_value(world: ActorWorld) -> None:
    """A value that is made outside is known, but is not there yet."""
    if len(world.missing) < 3:
        world.missing.append(world.number() * 16)
        world.scheduler.underway.add(world.missing[-1])


def arrive(world: ActorWorld) -> None:
    if world.missing:
        tag = world.random.choice([Tag.VALUE, Tag.VALUE, Tag.ERROR, Tag.CANCELLED])
        world.scheduler.arrive(world.missing.pop(0), tag)


def attach(world: ActorWorld) -> None:
    instance = _some(world, [one for one in world.instances.values() if not one.serves and not one.fate])
    if instance is not None:
        instance.serves = True
        world.scheduler.actors.attach(instance.call)


def fail_to_make(world: ActorWorld) -> None:
    instance = _some(world, [one for one in world.instances.values() if not one.serves])
    if instance is not None and world.random.random() < 0.1:
        world.end(instance.call, Tag.ERROR)


def begin(world: ActorWorld) -> None:
    instance = _some_serving(world)
    if instance is not None and instance.to_begin():
        world.begin(instance.to_begin()[0])


def act(world: ActorWorld) -> None:
    method = _some(world, _free_methods(world))
    if method is None:
        return
    chosen = world.random.choice(["finish", "finish", "call", "wait", "wait"])
    if chosen == "finish":
        world.end(method.call, world.random.choice([Tag.VALUE, Tag.ERROR]))
    elif chosen == "call" and len(world.stories) < 40:
        actor = _some_actor(world)
        assert actor is not None
        world.call(actor, ("task", method.task), method.task)
    elif chosen == "wait":
        wait(world, method)


def wait(world: ActorWorld, method: Method) -> None:
    calls = [key for key, story in world.stories.items() if story.task.actor is not None and key != method.task]
    if calls:
        values = set(world.random.sample(calls, min(len(calls), world.random.choice([1, 1, 2]))))
        world.wait(method, values, world.random.choice([None, None, None, 0.4]))


def die(world: ActorWorld) -> None:
    instance = _some(world, list(world.instances.values()))
    if instance is not None:
        world.lose(instance)


def cancel(world: ActorWorld) -> None:
    calls = [key for key, story in world.stories.items() if story.task.actor is not None]
    if calls:
        world.cancel(world.random.choice(calls))


def kill(world: ActorWorld) -> None:
    actor = _some_actor(world)
    if actor is not None:
        world.cancel(actor, kill=True)


def answer_halt(world: ActorWorld) -> None:
    if not world.halts:
        return
    halt = world.halts.pop(world.random.randrange(len(world.halts)))
    method, instance = world.method(halt.call), world.instances.get(halt.call)
    if method is not None and not method.begun:
        world.verdict(halt.call, Verdict.REVOKED)
    elif method is not None:
        late = world.random.random() < 0.3
        method.fate = method.fate or ("late" if late else "stopped")
        world.verdict(halt.call, Verdict.LATE if late else Verdict.DELIVERED)
    elif instance is not None:
        instance.fate = "killed" if halt.force else instance.fate or "stopped"
        world.verdict(halt.call, Verdict.DELIVERED)
    else:
        world.verdict(halt.call, Verdict.LATE)


def meet_fate(world: ActorWorld) -> None:
    methods = [one for instance in world.instances.values() for one in instance.methods.values() if one.fate]
    for method in methods[:1]:
        world.end(method.call, Tag.CANCELLED if method.fate == "stopped" else Tag.VALUE)
    instance = next((one for one in world.instances.values() if one.fate), None)
    if instance is None:
        return
    if instance.fate == "killed":
        world.lose(instance) if world.random.random() < 0.7 else end_in_threads(world, instance)
    elif instance.fate == "stopped":
        world.end(instance.call, Tag.CANCELLED)
    elif not instance.methods:
        world.end(instance.call, Tag.VALUE)


def end_in_threads(world: ActorWorld, instance: Instance) -> None:
    """End an instance that has no process: its calls are interrupted first."""
    for method in tuple(instance.methods.values()):
        if method.begun and method.call in world.scheduler.running:
            world.end(method.call, Tag.CANCELLED)
            world.settle()
    world.end(instance.call, Tag.CANCELLED)


def drop_handle(world: ActorWorld) -> None:
    actor = _some_actor(world)
    if actor is not None and all(
        world.is_over(key) or story.task.actor != actor for key, story in world.stories.items()
    ):
        world.left.add(actor)
        world.scheduler.actors.leave(actor)


def pass_time(world: ActorWorld) -> None:
    world.now += world.random.choice([0.05, 0.3, 1.2])


WEIGHTS: dict[Callable[[ActorWorld], None], int] = {
    make_actor: 3,
    call: 12,
    announce_value: 1,
    arrive: 2,
    attach: 6,
    fail_to_make: 1,
    begin: 12,
    act: 14,
    die: 1,
    cancel: 3,
    kill: 1,
    answer_halt: 4,
    meet_fate: 4,
    drop_handle: 1,
    pass_time: 3,
}
EVENTS = [event for event, weight in WEIGHTS.items() for _ in range(weight)]


def _some(world: ActorWorld, items: list) -> object:  # type: ignore[type-arg]
    return world.random.choice(items) if items else None


def _some_actor(world: ActorWorld) -> int | None:
    found = [key for key, story in world.stories.items() if story.task.width and key not in world.left]
    return world.random.choice(found) if found else None


def _some_serving(world: ActorWorld) -> Instance | None:
    found = [one for one in world.instances.values() if one.serves and one.fate != "killed"]
    return world.random.choice(found) if found else None


def _free_methods(world: ActorWorld) -> list[Method]:
    methods = [one for instance in world.instances.values() for one in instance.methods.values()]
    return [one for one in methods if one.begun and not one.waits and not one.fate]


def drain(world: ActorWorld) -> None:
    """Let everything come to its end: what can go on does, and nothing new begins."""
    for _ in range(2000):
        while world.missing:
            arrive(world)
        for event in (attach, begin, answer_halt, meet_fate):
            event(world)
        for method in _free_methods(world):
            if method.call in world.scheduler.running:
                world.end(method.call, Tag.VALUE)
        world.now += 0.7
        world.settle()
        world.scheduler.actors.leave_idle()
        world.settle()
        if not world.scheduler.tasks:
            return


def check_quiet(world: ActorWorld) -> None:
    world.now += 100
    world.settle()
    scheduler = world.scheduler
    assert not scheduler.tasks, f"never settled: {list(scheduler.tasks.values())}"
    assert all(story.ending is not None for story in world.stories.values())
    assert not scheduler.running
    assert not world.instances
    assert not world.open_waits
    assert not world.tokens, "cancels that were never answered"
    assert all(state.available == state.total for state in scheduler.ledger._nodes.values()), "R4: something is held"
    for actor in scheduler.actors.actors.values():
        assert not actor.lines
        assert not actor.handed
        assert not actor.open


def run_schedule(seed: int) -> None:
    world = ActorWorld(seed)
    try:
        for _ in range(STEPS):
            world.random.choice(EVENTS)(world)
            world.settle()
        drain(world)
        check_quiet(world)
    except Exception as error:
        error.add_note(f"seed={seed}: run_schedule({seed}) reproduces this")
        raise


@pytest.mark.parametrize("block", range(20))
def test_random_schedules(block: int) -> None:
    """A1, A5, A6, A7, C8, F5, R1, N2: the invariants of ``actor_world`` hold in random schedules."""
    for seed in range(block * SCHEDULES, (block + 1) * SCHEDULES):
        run_schedule(seed)

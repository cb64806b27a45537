"""What may happen in the random world, one thing at a time."""

from __future__ import annotations

from collections.abc import Callable

from polyexec.records import Halt
from polyexec.spi import Verdict
from polyexec.stored import Tag

from .simulation import World
from .stories import Body

TASKS = 24


def submit(world: World) -> None:
    """The driver submits."""
    if len(world.stories) < TASKS:
        world.submit()


def reserve(world: World) -> None:
    """The driver reserves."""
    if len(world.stories) < TASKS:
        world.reserve()


def close(world: World) -> None:
    """Somebody closes a reservation, or stops waiting for it."""
    reservations = world.scheduler.reservations
    known = [*reservations.held, *reservations.waiting]
    if known:
        world.scheduler.reservations.close(world.random.choice(known))


def close_all(world: World) -> None:
    """The driver closes all that it has reserved."""
    for reservation, held in tuple(world.scheduler.reservations.held.items()):
        if held.owner is None:
            world.scheduler.reservations.close(reservation)


def act(world: World) -> None:
    """A body begins, or does something."""
    body = _some_body(world)
    if body is None or body.fate:
        return
    if not body.begun:
        world.begin(body)
    elif body.free:
        _act_free(world, body)


def _act_free(world: World, body: Body) -> None:
    chosen = world.random.choice(["submit", "submit", "wait", "wait", "wait", "wait", "finish", "finish", "reserve"])
    if chosen == "submit" and len(world.stories) < TASKS:
        world.submit(body.task)
    elif chosen == "wait":
        world.wait(body)
    elif chosen == "reserve" and len(world.stories) < TASKS:
        world.reserve(body)
    else:
        finish(world, body)


def finish(world: World, body: Body) -> None:
    """A body returns or raises."""
    tag = world.random.choice([Tag.VALUE, Tag.VALUE, Tag.VALUE, Tag.ERROR])
    world.end(body, tag, retryable=tag is Tag.ERROR and world.random.random() < 0.5)


def die(world: World) -> None:
    """A worker dies, whatever it does."""
    body = _some_body(world)
    if body is not None:
        world.die(body)


def refuse(world: World) -> None:
    """A worker would not start."""
    body = _some_body(world)
    if body is not None and not body.begun:
        world.refuse(body)


def cancel(world: World) -> None:
    """The driver cancels any task, also one that has ended."""
    if world.stories:
        task = world.random.choice(list(world.stories))
        world.cancel(task, force=world.random.random() < 0.3, recursive=world.random.random() < 0.5)


def answer_halt(world: World) -> None:
    """The backend has tried to stop a call."""
    if not world.halts:
        return
    halt = world.halts.pop(world.random.randrange(len(world.halts)))
    body = world.bodies.get(halt.call)
    if body is None:
        world.scheduler.stopped(halt.call, Verdict.LATE)
    elif not body.begun and not body.fate and world.random.random() < 0.6:
        world.revoke(body)
    else:
        _stop(world, halt, body)


def _stop(world: World, halt: Halt, body: Body) -> None:
    late = body.fate == "late" or (body.begun and not body.fate and world.random.random() < 0.3)
    body.fate = "late" if late and not halt.force else "killed" if halt.force else body.fate or "interrupted"
    world.scheduler.stopped(halt.call, Verdict.LATE if body.fate == "late" else Verdict.DELIVERED)


def meet_fate(world: World) -> None:
    """A call that was stopped ends."""
    body = next((body for body in world.bodies.values() if body.fate), None)
    if body is None:
        return
    if body.fate == "killed":
        world.die(body) if world.random.random() < 0.8 else finish(world, body)
    elif body.fate == "interrupted":
        world.end(body, Tag.CANCELLED)
    else:
        finish(world, body)


def decide(world: World) -> None:
    """A caller's hook has answered."""
    if world.consults:
        consult = world.consults.pop()
        refused = world.random.random() < 0.3
        world.scheduler.decided(consult.task, consult.ending if refused else None)


def pass_time(world: World) -> None:
    """Some time passes."""
    world.now += world.random.choice([0.05, 0.3, 1.2])


def change_nodes(world: World) -> None:
    """A node goes, and its calls with it; or all are back."""
    if len(world.nodes) < 2 or world.random.random() < 0.5:
        world.take_nodes(world.nodes)
        return
    gone = world.random.choice(world.nodes)
    for body in tuple(world.bodies.values()):
        if world.scheduler.ledger.node_of(world.scheduler.running[body.call].grant.node) == gone.id:
            world.die(body)
    world.take_nodes([node for node in world.nodes if node is not gone])


def _some_body(world: World) -> Body | None:
    return world.random.choice(list(world.bodies.values())) if world.bodies else None


WEIGHTS: dict[Callable[[World], None], int] = {
    submit: 10,
    reserve: 2,
    close: 1,
    act: 24,
    die: 1,
    refuse: 1,
    cancel: 3,
    answer_halt: 3,
    meet_fate: 3,
    decide: 2,
    pass_time: 3,
    change_nodes: 1,
}
EVENTS = [event for event, weight in WEIGHTS.items() for _ in range(weight)]


def drain(world: World) -> None:
    """Let everything come to its end; nothing new begins but what was submitted."""
    world.take_nodes(world.nodes)
    for _ in range(60 * TASKS):
        if not world.scheduler.tasks:
            break
        for event in (answer_halt, meet_fate, decide, close_all):
            event(world)
        for body in tuple(world.bodies.values()):
            _bring_on(world, body)
        world.now += 0.7
        world.settle()
    check_quiet(world)


def _bring_on(world: World, body: Body) -> None:
    if body.call not in world.bodies or body.fate:
        return
    if not body.begun:
        world.begin(body)
    elif body.free:
        finish(world, body)


def check_quiet(world: World) -> None:
    """Check what must hold when there are no tasks left."""
    while world.halts:
        answer_halt(world)
    close_all(world)
    world.now += 10
    world.settle()
    scheduler = world.scheduler
    assert not scheduler.tasks, f"never settled: {[(task.id, task.state) for task in scheduler.tasks.values()]}"
    assert all(story.ending is not None for story in world.stories.values())
    assert not scheduler.running
    assert not world.undropped, "calls that were never dropped"
    assert not world.open_waits, "waits that never ended"
    assert not world.answers, "cancels that were never answered"
    assert len(scheduler.ready) == 0
    assert not scheduler.reservations.held
    assert not scheduler.reservations.waiting
    assert all(state.available == state.total for state in scheduler.ledger._nodes.values()), "R4: something is held"

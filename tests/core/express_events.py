"""What may happen in the random world of plain calls, one thing at a time, and how it all comes to its end."""

from __future__ import annotations

from collections.abc import Callable

from polyexec.options import Resources
from polyexec.stored import Tag

from .express_pool import Story, Worker
from .express_world import FAILURE, ExpressWorld, make_spec

_ROUNDS = 2000


def submit_many(world: ExpressWorld) -> None:
    """The driver submits plain calls."""
    if not world.closing and len(world.stories) < world.most:
        for _ in range(world.random.choice([1, 1, 2, 5, 12])):
            world.submit_plain()


def submit_task(world: ExpressWorld) -> None:
    """The driver submits something that is not plain."""
    if not world.closing and len(world.stories) < world.most:
        world.submit_task()


def work(world: ExpressWorld) -> None:
    """A worker gets on with what it does, or comes up."""
    worker = _some_worker(world)
    if worker is None:
        return
    if not worker.ready:
        world.pool.start(worker)
        world.dirty = True
    elif worker.body is not None and worker.body.story.asks and not worker.body.asking:
        _ask(world, worker, worker.body.story)
    else:
        world.pool.work(worker)


def _ask(world: ExpressWorld, worker: Worker, story: Story) -> None:
    kind = story.asks.pop()
    if kind == "submit":
        world.pool.ask(worker, ("submit", True, (), (make_spec(Resources(1)), None), b""))
        return
    values = [value for value, other in world.stories.items() if other.parent in (None, story) and other is not story]
    chosen = world.random.sample(values, min(len(values), 2))
    for value in chosen:
        world.runtime.expose(world.stories[value].entry)
    chosen = [value for value in chosen if value in world.runtime.objects.entries]
    if chosen:
        timeout = world.random.choice([None, None, 0.3])
        world.pool.ask(worker, ("wait", True, (), (tuple(chosen), len(chosen), timeout), None))


def hear(world: ExpressWorld) -> None:
    """The listener of a worker gets on."""
    worker = _some_worker(world)
    if worker is not None and worker.heard:
        world.pool.hear(worker)


def take(world: ExpressWorld) -> None:
    """Something of a worker arrives."""
    workers = [worker for worker in world.pool.workers if worker.ends or worker.line or worker.dead]
    if workers:
        _take_from(world, world.random.choice(workers))


def _take_from(world: ExpressWorld, worker: Worker) -> None:
    world.dirty = True
    chance = world.random.random()
    if worker.ends and (chance < 0.5 or not (worker.line or worker.dead)):
        world.pool.take_ends(worker, world.random.randint(1, len(worker.ends)))
    elif worker.line:
        world.pool.take_line(worker)
    elif worker.dead:
        world.pool.bury(worker)


def cancel(world: ExpressWorld) -> None:
    """Somebody cancels any call, also one that has ended."""
    if world.stories:
        story = world.stories[world.random.choice(list(world.stories))]
        world.cancel(story, force=world.random.random() < 0.3, recursive=world.random.random() < 0.5)


def die(world: ExpressWorld) -> None:
    """A worker dies, whatever it does."""
    worker = _some_worker(world)
    if worker is not None and world.kills and world.pool.refusals < 2:
        world.kills -= 1
        world.pool.kill(worker)


def some_time(world: ExpressWorld) -> None:
    """Some time passes."""
    pass_time(world, world.random.choice([1e-5, 1e-4, 1e-3, 0.004, 0.015, 0.06]))


def pass_time(world: ExpressWorld, seconds: float) -> None:
    """Let time pass; what is due meanwhile happens."""
    end = world.now + seconds
    while world.now < end:
        world.now = min(end, max(world.now, min(world.due, next_limit(world))))
        if world.now >= next_limit(world):
            world.pool.lose_patience()
            world.dirty = True
        if world.dirty or world.now >= world.due:
            world.advance()


def next_limit(world: ExpressWorld) -> float:
    """Give when the pool loses its patience with a worker."""
    return min(world.pool.recalls.values(), default=float("inf"))


def close(world: ExpressWorld) -> None:
    """The executor is closed."""
    if world.closing or world.random.random() < 0.6:
        return
    world.closing = True
    world.meddling = 0.0
    world.post(world.runtime.drain)
    if world.random.random() < 0.5:
        world.cancel_all(world.random.random() < 0.5)


def fail(world: ExpressWorld) -> None:
    """The backend is lost, in the middle of whatever else happens."""
    world.closing = True
    world.meddling = 0.0
    world.post(world.runtime.fail, FAILURE)


def _some_worker(world: ExpressWorld) -> Worker | None:
    workers = [worker for worker in world.pool.workers if not worker.dead]
    return world.random.choice(workers) if workers else None


WEIGHTS: dict[Callable[[ExpressWorld], None], int] = {
    submit_many: 6,
    submit_task: 2,
    work: 26,
    hear: 4,
    take: 16,
    cancel: 2,
    die: 1,
    some_time: 8,
    close: 1,
}
EVENTS = [event for event, weight in WEIGHTS.items() for _ in range(weight)]


def step(world: ExpressWorld, *extra: Callable[[ExpressWorld], None]) -> None:
    """Let some things happen before the runtime gets its turn, if it knows that there is something to do."""
    for event in extra:
        event(world)
    for _ in range(world.random.choice([1, 1, 2, 4])):
        world.random.choice(EVENTS)(world)
    if world.dirty:
        world.advance()


def drain(world: ExpressWorld) -> None:
    """Let everything come to its end; nothing new begins but what was submitted."""
    world.meddling = 0.0
    for _ in range(_ROUNDS):
        moved = _bring_on(world)
        if world.dirty:
            world.advance()
        elif not moved:
            if all(story.settled for story in world.stories.values()) and not _next_time(world):
                break
            later = _next_time(world)
            assert later, f"never settled: {[value for value, story in world.stories.items() if not story.settled]}"
            pass_time(world, max(later - world.now, 1e-9))
    check_quiet(world)


def _bring_on(world: ExpressWorld) -> bool:
    """Let each worker do what it can; say whether anything has happened."""
    moved = False
    for worker in tuple(world.pool.workers):
        body = worker.body
        if worker.ends or worker.line or worker.dead:
            _take_from(world, worker)
        elif not worker.ready:
            world.pool.start(worker)
            world.dirty = True
        elif worker.heard:
            world.pool.hear(worker)
        elif (body is None and worker.items) or (body is not None and _can_end(world, worker)):
            world.pool.work(worker)
        else:
            continue
        moved = True
    return moved


def _can_end(world: ExpressWorld, worker: Worker) -> bool:
    body = worker.body
    return body is not None and body.ends <= world.now and (body.interrupted or not body.asking)


def _next_time(world: ExpressWorld) -> float:
    """Give when something happens next, 0 if nothing ever will."""
    ends = [worker.body.ends for worker in world.pool.workers if worker.body is not None and not worker.body.asking]
    times = [time for time in (world.due, next_limit(world), *ends) if time > world.now and time < float("inf")]
    return min(times, default=0.0)


def check_quiet(world: ExpressWorld) -> None:
    """Check what must hold when nothing happens any more."""
    runtime, scheduler = world.runtime, world.scheduler
    assert all(story.settled for story in world.stories.values()), "never settled"
    if runtime.failure is None:
        resources = runtime.resources()
        assert resources.available == resources.total, "R4: something is held"
        assert not world.pool.by_seat
    assert not scheduler.running
    assert not scheduler.tasks
    assert not scheduler.underway
    assert not world.express.seats
    assert not world.express.pending
    for story in world.stories.values():
        assert not story.unanswered, "a cancel was never answered"
        if any(story.answers) and runtime.failure is None:
            assert story.entry.tag is Tag.CANCELLED, "C8: answered True, and not cancelled"
        if not (story.asked or story.killed or story.needs or runtime.failure is not None):
            assert story.entry.tag is (Tag.ERROR if story.fails else Tag.VALUE)
    if world.closing and runtime.failure is not FAILURE:
        assert runtime.drained.is_set(), "F9: closing never ends"

"""What must hold of the events of each task, whatever happens to it."""

from __future__ import annotations

from polyexec import Event, EventKind
from polyexec.events import ENDS, EventStream
from polyexec.records import Ended
from polyexec.scheduler import FREE_RESTARTS

from .simulation import World


def check_story(story: list[Event]) -> None:
    """Check that the events of one task make sense."""
    following: dict[EventKind | None, set[EventKind]] = {
        None: {EventKind.SUBMITTED},
        EventKind.SUBMITTED: {EventKind.READY, EventKind.FAILED, EventKind.CANCELLED},
        EventKind.READY: {EventKind.READY, EventKind.RUNNING, EventKind.FAILED, EventKind.CANCELLED},
        EventKind.RUNNING: {EventKind.READY, EventKind.RETRIED, *ENDS},
        EventKind.RETRIED: {EventKind.READY, EventKind.FAILED, EventKind.CANCELLED},
    }
    before: EventKind | None = None
    for event in story:
        assert event.kind in following[before], story
        before = event.kind
    times = [event.time for event in story]
    assert times == sorted(times), story
    assert before in ENDS


def check_recorded(world: World) -> None:
    """Check that each task of a random world has a story, that attempts are counted, and how often it was retried."""
    stories: dict[int, list[Event]] = {}
    for event in EventStream(world.recorder, 0):
        stories.setdefault(event.task_id, []).append(event)
    assert stories.keys() == {task_id for task_id, story in world.stories.items() if story.task.gang is None}
    for task_id, events in stories.items():
        check_story(events)
        story = world.stories[task_id]
        assert events[-1].attempt == story.counted
        # What ends because no worker would start has not been retried.
        if isinstance(story.ending, Ended) and story.task.refusals < FREE_RESTARTS:
            assert sum(event.kind is EventKind.RETRIED for event in events) == story.counted - 1

"""S8, W6: whatever is posted is done, whoever is the loop."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue

import pytest

from polyexec.errors import DeadlockError
from polyexec.loop import Loop, QueuePoller
from polyexec.mailbox import Mailbox

LIMIT = 20.0


class Ground:
    """A loop, and what it does."""

    def __init__(self) -> None:
        self.done: list[object] = []
        self.failed: list[Exception] = []
        self.poller = QueuePoller()
        self.loop = Loop("loop", lambda: None, lambda: None, self.failed.append)
        self.loop.wait_with(self.poller, lambda: False)

    def in_threads(self, count: int, body: Callable[[int], None]) -> None:
        threads = [threading.Thread(target=body, args=(number,)) for number in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT)
            assert not thread.is_alive()


@pytest.fixture
def ground() -> Iterator[Ground]:
    made = Ground()
    made.loop.start()
    yield made
    made.loop.stop()


def test_posts_of_many_threads_are_all_done(ground: Ground) -> None:
    def body(number: int) -> None:
        for item in range(500):
            ground.loop.post(ground.done.append, (number, item))
            if item % 7 == 0:
                ground.loop.visit(poll=bool(item % 2))

    ground.in_threads(8, body)
    ground.loop.stop()
    assert len(ground.done) == 4000
    for number in range(8):
        assert [item for found, item in ground.done if found == number] == list(range(500))  # type: ignore[misc]  # pairs


def test_who_waits_gets_answers_from_whoever_is_the_loop(ground: Ground) -> None:
    def body(number: int) -> None:
        for item in range(200):
            mailbox: Mailbox[int] = Mailbox(ground.loop)
            ground.loop.post(mailbox.put, item)
            assert mailbox.take(LIMIT) == item

    ground.in_threads(6, body)


def test_what_is_posted_at_the_end_is_done() -> None:
    for _ in range(100):
        ground = Ground()
        ground.loop.start()
        begin = threading.Barrier(3)

        def post(number: int, ground: Ground = ground, begin: threading.Barrier = begin) -> None:
            begin.wait(LIMIT)
            if number == 2:
                ground.loop.stop()
            else:
                ground.loop.post(ground.done.append, number)

        ground.in_threads(3, post)
        assert sorted(ground.done) == [0, 1]  # type: ignore[type-var]  # numbers


def test_the_loops_thread_comes_back_after_visits(ground: Ground) -> None:
    for _ in range(20):
        ground.loop.visit(poll=False)
    answers: SimpleQueue[bool] = SimpleQueue()
    ground.loop.post(lambda: answers.put(ground.loop.is_current()))
    assert answers.get(timeout=LIMIT)


def test_a_visit_ends_when_its_time_is_over(ground: Ground) -> None:
    mailbox: Mailbox[int] = Mailbox(ground.loop)
    threading.Timer(0.05, ground.loop.post, (mailbox.put, 1)).start()
    ground.loop.visit_until(lambda: False, 0.01)
    assert mailbox.take(LIMIT) == 1


def test_what_fails_is_reported_and_harms_nothing(ground: Ground) -> None:
    mailbox: Mailbox[int] = Mailbox(ground.loop)

    def fail() -> None:
        raise ValueError("posted")

    ground.loop.post(fail)
    ground.loop.post(mailbox.put, 1)
    assert mailbox.take(LIMIT) == 1
    assert [str(error) for error in ground.failed] == ["posted"]


def test_the_loop_cannot_wait_for_itself(ground: Ground) -> None:
    errors: SimpleQueue[Exception] = SimpleQueue()

    def wait() -> None:
        try:
            Mailbox[int](ground.loop).take()
        except DeadlockError as error:
            errors.put(error)

    ground.loop.post(wait)
    assert "in the middle" in str(errors.get(timeout=LIMIT))

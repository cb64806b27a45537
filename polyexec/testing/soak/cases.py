"""The cases: each does one thing very often, checks all that comes back, and says how much it has done."""

from __future__ import annotations

import random
import threading
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import attrs

import polyexec
from polyexec import Executor
from polyexec.testing.soak import work
from polyexec.testing.soak.kill import kill_relative
from polyexec.testing.soak.measure import Sampler
from polyexec.testing.soak.records import Sizes
from polyexec.testing.soak.work import LIMIT
from polyexec.testing.target import Target
from polyexec.testing.tools import Marks, eventually

_TASKS_A_KILL = 24
_BLOCKS = 4
"""Megabytes that are there at the same time."""

_ITEMS = 12


@attrs.frozen
class Site:
    """Where a case works.

    Attributes:
        target: the backend.
        specification: what an executor is opened with.
        sizes: how much of everything.
        chance: what is drawn.
        folder: for marks.
        sampler: to be told how far it has got.
        executor: the one to use; None in a case that opens its own.
    """

    target: Target
    specification: str
    sizes: Sizes
    chance: random.Random
    folder: Path
    sampler: Sampler
    executor: Executor | None = None

    @property
    def ex(self) -> Executor:
        """The executor."""
        assert self.executor is not None
        return self.executor


Case: TypeAlias = Callable[[Site], dict[str, int]]


def tasks(site: Site) -> dict[str, int]:
    """Many calls that do nothing, a bounded number of them unread at any time."""
    ex, total, most = site.ex, site.sizes.tasks, site.sizes.outstanding
    unread = deque([ex.submit(work.give, number) for number in range(min(most, total))])
    for number in range(total):
        site.sampler.at(number)
        assert unread.popleft().result(LIMIT) == number, number
        if number + most < total:
            unread.append(ex.submit(work.give, number + most))
    return {"tasks": total}


def kills(site: Site) -> dict[str, int]:
    """Workers that die in every way and at any moment, each with one task at most; no body starts twice."""
    lost = 0
    for number in range(site.sizes.kills):
        site.sampler.at(number)
        marks = Marks(str(site.folder / "starts"))
        how = site.chance.choice([*work.WAYS_TO_DIE, None])
        lost += _round_of_one_death(site, marks, how)
        Path(marks.path).unlink(missing_ok=True)
    return {"kills": site.sizes.kills, "tasks lost": lost, "tasks": site.sizes.kills * _TASKS_A_KILL}


def _round_of_one_death(site: Site, marks: Marks, how: str | None) -> int:
    """Let one of some tasks die, or the worker of whichever has started last; give how many were lost."""
    ex, victim = site.ex, site.chance.randrange(_TASKS_A_KILL)
    killer = threading.Thread(target=_kill_last, args=(marks, victim + 1))
    if how is None:
        killer.start()
    futures = [
        ex.submit(work.start_and_die, marks, number, how if number == victim else None)
        for number in range(_TASKS_A_KILL)
    ]
    errors = {n: error for n, future in enumerate(futures) if (error := future.exception(LIMIT)) is not None}
    if how is None:
        killer.join()
    started = Counter(map(int, (line.split()[1] for line in marks.lines())))
    story = (how, victim, errors, started)
    assert all(isinstance(error, polyexec.WorkerDied) for error in errors.values()), story
    assert len(errors) <= 1 if how is None else set(errors) == {victim}, story
    assert all(started[n] == 1 and future.result() == n for n, future in enumerate(futures) if n not in errors), story
    # One that was killed from outside may have been just before its first line.
    assert all(started[n] <= 1 and futures[n].attempts == 1 for n in errors), story
    return len(errors)


def _kill_last(marks: Marks, after: int) -> None:
    """Kill the worker of the task that has started last, once so many have started."""
    marks.wait_for("start", after, LIMIT)
    kill_relative(int(marks.lines()[-1].split()[2]))


def executors(site: Site) -> dict[str, int]:
    """Executors that are opened, used for one call and closed, all in one process."""
    for number in range(site.sizes.executors):
        site.sampler.at(number)
        with polyexec.connect(site.specification) as ex:
            assert ex.submit(work.give, number).result(LIMIT) == number
    return {"executors": site.sizes.executors}


def objects(site: Site) -> dict[str, int]:
    """Megabytes that are stored, read by a task and here, and dropped; half of them are made by tasks."""
    ex, kept = site.ex, deque[tuple[int, polyexec.Future[bytearray], polyexec.Future[tuple[int, int, int]]]]()

    def read() -> None:
        number, made, looked = kept.popleft()
        assert looked.result(LIMIT) == work.seen(number), number
        assert work.look(made.result(LIMIT)) == work.seen(number), number

    for number in range(site.sizes.objects):
        site.sampler.at(number)
        made = ex.put(work.block(number)) if number % 2 else ex.submit(work.block, number)
        kept.append((number, made, ex.submit(work.look, made)))
        if len(kept) == _BLOCKS:
            read()
    while kept:
        read()
    return {"megabytes": site.sizes.objects}


def actors(site: Site) -> dict[str, int]:
    """Many calls of one actor, in order; then many actors, half of which are killed, and half dropped."""
    ex, sizes = site.ex, site.sizes
    counter = ex.actor(work.Counter)
    calls = deque[polyexec.Future[int]]()
    for number in range(sizes.calls):
        calls.append(counter.next())
        if len(calls) == 100 or number == sizes.calls - 1:
            first = number + 2 - len(calls)
            assert [call.result(LIMIT) for call in calls] == list(range(first, number + 2)), number
            calls.clear()
    ex.kill(counter)
    for number in range(sizes.actors):
        site.sampler.at(number)
        handle = ex.actor(work.Counter)
        assert handle.next().result(LIMIT) == 1, number
        if number % 2:
            assert ex.kill(handle), number
        del handle
    return {"calls": sizes.calls, "actors": sizes.actors}


def streams(site: Site) -> dict[str, int]:
    """Streams that are left before their end: closed, dropped, or by an error; each generator's ``finally`` runs."""
    marks = Marks(str(site.folder / "generators"))
    for number in range(site.sizes.streams):
        site.sampler.at(number)
        _leave_stream(site, marks, number)

    def all_ended() -> bool:
        # One may be stopped just before it leaves its first mark.
        return set(marks.values("begin")) <= set(marks.values("end"))

    eventually(all_ended, lambda: f"{marks.count('begin')} begun, {marks.count('end')} ended", LIMIT)
    Path(marks.path).unlink(missing_ok=True)
    return {"streams": site.sizes.streams}


def _leave_stream(site: Site, marks: Marks, number: int) -> None:
    stream = site.ex.options(buffer=4).stream(work.count_up, marks, number, _ITEMS)
    for expected in range(site.chance.randrange(_ITEMS)):
        assert next(stream).result(LIMIT) == expected, number
    if number % 3 == 0:
        stream.close()
    elif number % 3 == 1:
        try:
            with stream:
                raise LookupError(number)
        except LookupError:
            pass

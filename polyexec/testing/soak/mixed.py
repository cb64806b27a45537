"""The last case: everything at once for some time, while workers are killed; all results must be right.

With ``POLYEXEC_CHAOS`` set, backends that know it add faults of their own.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from typing import TypeAlias

import polyexec
from polyexec.testing.soak import work
from polyexec.testing.soak.cases import Site
from polyexec.testing.soak.kill import Killer
from polyexec.testing.soak.work import LIMIT

RETRIES = 100
_OUTSTANDING = 40
_MEAN = 0.5
"""Seconds between two kills."""

_Check: TypeAlias = Callable[[], object]
_DIED = (polyexec.ActorDied, polyexec.WorkerDied)


def _expect(future: polyexec.Future[object], value: object) -> _Check:
    def check() -> None:
        found = future.result(LIMIT)
        assert found == value, f"{found!r} instead of {value!r}"

    return check


def _task(site: Site, ex: polyexec.Executor) -> _Check:
    number = site.chance.randrange(1000)
    return _expect(ex.submit(work.give, number), number)


def _error(site: Site, ex: polyexec.Executor) -> _Check:
    number = site.chance.randrange(1000)
    future = ex.submit(work.fail, number)

    def check() -> None:
        error = future.exception(LIMIT)
        assert isinstance(error, LookupError), repr(error)
        assert error.args == (number,)

    return check


def _chain(site: Site, ex: polyexec.Executor) -> _Check:
    length = site.chance.randrange(1, 8)
    future = ex.submit(work.give, 0)
    for _ in range(length):
        future = ex.submit(work.add, future, 1)
    return _expect(future, length)


def _nested(site: Site, ex: polyexec.Executor) -> _Check:
    count = site.chance.randrange(1, 6)
    return _expect(ex.submit(work.sum_of_tasks, count, RETRIES), sum(range(1, count + 1)))


def _object(site: Site, ex: polyexec.Executor) -> _Check:
    number = site.chance.randrange(256)
    made = ex.put(work.block(number)) if number % 2 else ex.submit(work.block, number)
    return _expect(ex.submit(work.look, made), work.seen(number))


def _map(site: Site, ex: polyexec.Executor) -> _Check:
    count = site.chance.randrange(50)
    assert list(ex.map(work.add, range(count), range(count))) == [2 * number for number in range(count)]
    return _nothing


def _stream(site: Site, ex: polyexec.Executor) -> _Check:
    length, wanted = site.chance.randrange(20), site.chance.randrange(20)
    found = []
    with ex.options(buffer=4).stream(work.numbers, length) as stream:
        try:
            for item in stream:
                found.append(item.result(LIMIT))
                if len(found) >= wanted:
                    break
            else:
                assert len(found) == length
        except polyexec.WorkerDied:
            pass
    assert found == list(range(len(found)))
    return _nothing


def _actor(site: Site, ex: polyexec.Executor) -> _Check:
    handle = site.ex.options(restarts=RETRIES).actor(work.Counter)
    calls = [handle.next() for _ in range(site.chance.randrange(1, 10))]

    def check() -> None:
        last = 0
        for call in calls:
            error = call.exception(LIMIT)
            assert error is None or isinstance(error, _DIED), repr(error)
            # A new life counts from one again.
            assert error is not None or call.result() in (last + 1, 1), (call.result(), last)
            last = call.result() if error is None else last
        ex.kill(handle)

    return check


def _cancel(site: Site, ex: polyexec.Executor) -> _Check:
    futures = [ex.submit(work.give, number) for number in range(5)]
    victim = site.chance.randrange(5)
    ex.cancel(futures[victim], force=site.chance.random() < 0.3)

    def check() -> None:
        for number, future in enumerate(futures):
            try:
                assert future.result(LIMIT) == number
            except polyexec.TaskCancelled:
                assert number == victim

    return check


def _nothing() -> None:
    """Check nothing: it was checked at once."""


_KINDS = {_task: 8, _error: 2, _chain: 3, _nested: 3, _object: 3, _map: 1, _stream: 2, _actor: 1, _cancel: 2}


def mixed(site: Site) -> dict[str, int]:
    """Everything at once for some time, while workers are killed."""
    done: Counter[str] = Counter()
    checks: deque[_Check] = deque()
    first = deque(_KINDS)
    killer = Killer(site.chance.__class__(site.chance.random()), _MEAN)
    if site.target.capabilities.processes:
        killer.start()
    began = time.monotonic()
    ex = site.ex.options(retries=RETRIES)
    try:
        while (elapsed := time.monotonic() - began) < site.sizes.seconds or first:
            site.sampler.at(int(elapsed))
            if done.total() % 20 == 0:
                killer.know([future.result(LIMIT) for future in [ex.submit(work.pid, n) for n in range(4)]])
            # Each kind once, so that the warm-up has made whatever is made when it is first needed.
            kind = first.popleft() if first else site.chance.choices(tuple(_KINDS), tuple(_KINDS.values()))[0]
            checks.append(kind(site, ex))
            done[kind.__name__.strip("_")] += 1
            if len(checks) >= _OUTSTANDING:
                checks.popleft()()
        while checks:
            checks.popleft()()
    finally:
        if site.target.capabilities.processes:
            killer.stop()
    return {"steps": done.total(), "kills": killer.count}

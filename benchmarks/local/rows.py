"""The rows of the benchmark as data: what runs, on which systems, how much of it, and what is aimed at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import attrs

from local import arrays, cases, references
from local.bench import Bench, Round
from local.systems import OPENERS

Scale: TypeAlias = Literal["full", "quick", "tiny"]
SCALES: tuple[Scale, ...] = ("full", "quick", "tiny")
MEGABYTE = 1_000_000


@attrs.frozen
class Entrant:
    """One column of a row.

    Attributes:
        name: identifies it in its row.
        title: what the report calls it.
        case: prepares a round.
        system: which system the case opens, nothing for a reference, which has none.
    """

    name: str
    title: str
    case: Callable[[Bench], Round]
    system: str = ""


@attrs.frozen
class Goal:
    """What polyexec should reach.

    Attributes:
        bound: the ratio, or the value if there is nothing to compare with.
        against: the entrant of the same round to compare with.
        metric: which figure, that of the row by default.
    """

    bound: float
    against: str = ""
    metric: str = ""


@attrs.frozen(kw_only=True)
class Row:
    """One row.

    Attributes:
        name: for the command line.
        what: one sentence; sizes stand in braces.
        metric: the figure that is reported.
        unit: ``/s``, ``B/s``, ``s``, ``B`` or nothing for a plain number.
        more: whether more of it is better.
        sizes: each for the three scales.
        entrants: who takes part.
        goals: what is aimed at.
        fresh: every round has a new interpreter.
        limit: seconds that a round may take.
    """

    name: str
    what: str
    metric: str
    unit: str
    more: bool
    sizes: dict[str, tuple[int, int, int]]
    entrants: tuple[Entrant, ...]
    goals: tuple[Goal, ...] = ()
    fresh: bool = False
    limit: float = 120.0

    def at(self, scale: Scale) -> dict[str, int]:
        """Give the sizes of a scale."""
        return {name: values[SCALES.index(scale)] for name, values in self.sizes.items()}

    def entrant(self, name: str) -> Entrant:
        """Find an entrant."""
        return next(entrant for entrant in self.entrants if entrant.name == name)


def on(case: Callable[[Bench], Round], *systems: str) -> tuple[Entrant, ...]:
    """Let systems run a case."""
    return tuple(Entrant(name, OPENERS[name].title, case, name) for name in systems)


WITH_HANDLES = ("polyexec", "processpool", "pool", "pebble", "mpire", "loky")
ALL = (*WITH_HANDLES, "joblib")
BY_VALUE = ("processpool", "pool", "pebble", "mpire", "loky")
SERIAL = Entrant("serial", "a loop in one process", references.serial)
LAMBDA = Entrant("lambda", "polyexec, a lambda", cases.bulk_lambda, "polyexec")
SOCKET_PAIR = Entrant("socketpair", "a byte over a socket pair", references.socket_pair)
BARE = Entrant("bare", "two bare processes", references.bare_processes)
MEMCPY = Entrant("memcpy", "memcpy", references.memcpy)
FRESH = Entrant("fresh", "fresh shared memory", references.fresh_memory)
ARRAY = (100 * MEGABYTE, 100 * MEGABYTE, MEGABYTE)

_ROWS = (
    Row(
        name="bulk",
        what="{count} no-op tasks submitted one by one, then all results taken",
        metric="rate", unit="/s", more=True,
        sizes={"count": (20_000, 4_000, 40)},
        entrants=(*on(cases.bulk, *ALL), LAMBDA, SERIAL),
        goals=(Goal(4, "pool"), Goal(8, "processpool")),
    ),
    Row(
        name="single",
        what="{count} no-op tasks, each result taken before the next task is submitted",
        metric="rate", unit="/s", more=True,
        sizes={"count": (2_000, 500, 20)},
        entrants=(*on(cases.single, *WITH_HANDLES), SOCKET_PAIR),
        goals=(Goal(3, "processpool"), Goal(1 / 3, "socketpair")),
    ),
    Row(
        name="map",
        what="a map of a no-op over {count} integers; 100 in a chunk where the system does not choose by itself",
        metric="rate", unit="/s", more=True,
        sizes={"count": (100_000, 20_000, 500)},
        entrants=(*on(cases.mapped, *ALL), SERIAL),
        goals=(Goal(1, "processpool"), Goal(3, "joblib")),
    ),
    Row(
        name="ms",
        what="{count} tasks of 1 ms of processor time; 1 is what two processors could do",
        metric="efficiency", unit="", more=True,
        sizes={"count": (1_000, 200, 10)},
        entrants=(*on(cases.milliseconds, *ALL), BARE),
        goals=(Goal(0.95), Goal(0.95, "bare")),
    ),
    Row(
        name="flat",
        what="tasks per second of {many} tasks at once, divided by that of {few}",
        metric="flatness", unit="", more=True,
        sizes={"few": (1_000, 1_000, 10), "repeats": (20, 5, 2), "many": (1_000_000, 50_000, 200)},
        entrants=on(cases.flat, "polyexec"),
        goals=(Goal(0.8),),
        limit=400,
    ),
    Row(
        name="memory",
        what="memory of the driver for a pending no-op task, its Future and its argument among it ({count} tasks)",
        metric="bytes", unit="B", more=False,
        sizes={"count": (100_000, 10_000, 100), "before": (1_000, 1_000, 10)},
        entrants=on(cases.memory, "polyexec"),
        goals=(Goal(1024),),
        fresh=True,
    ),
    Row(
        name="memory-peers",
        what="the same for {count} tasks",
        metric="bytes", unit="B", more=False,
        sizes={"count": (20_000, 10_000, 100), "before": (1_000, 1_000, 10)},
        # mpire ties a task to a worker when it is submitted, so that its workers cannot all be held for sure.
        entrants=on(cases.memory, *(name for name in WITH_HANDLES if name != "mpire")),
        fresh=True,
    ),
    Row(
        name="put",
        what="an array of {bytes} bytes put and dropped, again and again",
        metric="rate", unit="B/s", more=True,
        sizes={"bytes": ARRAY, "puts": (7, 5, 3)},
        entrants=(*on(arrays.put, "polyexec"), MEMCPY, FRESH),
        goals=(Goal(0.5, "memcpy"),),
    ),
    Row(
        name="read",
        what="an array of {bytes} bytes that was put, from `future.result()` in a task to its first element, "
        "the second time on the same worker",
        metric="again", unit="s", more=False,
        sizes={"bytes": ARRAY},
        entrants=on(arrays.read, "polyexec"),
        goals=(Goal(1e-3),),
    ),
    Row(
        name="share",
        what="time for each of {count} tasks that take the same array of {bytes} bytes; by value {by_value} tasks",
        metric="seconds", unit="s", more=False,
        sizes={"bytes": ARRAY, "count": (100, 50, 6), "by_value": (5, 3, 2)},
        entrants=(*on(arrays.share_put, "polyexec"), *on(arrays.share_value, *BY_VALUE),
                  *on(arrays.share_joblib, "joblib")),
        goals=(Goal(50, "processpool"),),
    ),
    Row(
        name="return",
        what="a task that returns an array of {bytes} bytes, one element of each page read",
        metric="seconds", unit="s", more=False,
        sizes={"bytes": ARRAY, "count": (3, 3, 2)},
        entrants=on(arrays.give_back, *ALL),
        goals=(Goal(5, "processpool"),),
    ),
    Row(
        name="kill",
        what="from the forced cancel of a blocked task to the result of the next, with one worker",
        metric="seconds", unit="s", more=False,
        sizes={"kills": (5, 3, 2)},
        entrants=on(cases.kill, "polyexec", "pebble"),
        goals=(Goal(0.05),),
    ),
    Row(
        name="completed",
        what="`as_completed` over {most} futures: its time divided by that for half as many",
        metric="growth", unit="", more=False,
        sizes={"most": (100_000, 20_000, 400), "doublings": (3, 1, 1)},
        entrants=on(cases.completed, "polyexec", "processpool"),
        goals=(Goal(2.5),),
        limit=300,
    ),
    Row(
        name="loop",
        what="`wait` for one of those that remain, until none of {most} futures does",
        metric="seconds", unit="s", more=False,
        sizes={"most": (4_000, 1_000, 40), "doublings": (2, 1, 1)},
        entrants=on(cases.loop, "polyexec", "processpool"),
    ),
    Row(
        name="start",
        what="from opening the executor to the first result, in a fresh interpreter",
        metric="seconds", unit="s", more=False,
        sizes={},
        entrants=on(cases.start, *ALL),
        goals=(Goal(0.1),),
        fresh=True,
    ),
    Row(
        name="line",
        what="{count} tasks of 1 ms and a long one before them, on two workers: until the short ones are done",
        metric="first", unit="s", more=False,
        sizes={"count": (200, 200, 10), "before": (1_000, 1_000, 10)},
        entrants=on(cases.line, *WITH_HANDLES),
        goals=(Goal(1), Goal(1, metric="among")),
    ),
)  # fmt: skip

ROWS = {row.name: row for row in _ROWS}

"""A workload of the user's own: a function that takes an executor, run on several backends with the same rules."""

from __future__ import annotations

import hashlib
import importlib
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from time import perf_counter
from typing import Any

import polyexec
from polyexec_bench.bench import Bench, Figures, Round
from polyexec_bench.player import company, in_turn
from polyexec_bench.results import Measurement

CASE = f"{__name__}:own"
BENCH = "own"


class WrongWorkload(Exception):
    """What was named is not a function that takes an executor."""


def find(target: str) -> Callable[[polyexec.Executor], Any]:
    """Import the function that ``module:function`` names.

    Raises:
        WrongWorkload: there is no such function, or the text has another form.
    """
    module, colon, path = target.partition(":")
    if not (module and colon and path):
        raise WrongWorkload(f"{target!r} is not of the form MODULE:FUNCTION")
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != module.partition(".")[0]:
            raise
        raise WrongWorkload(f"there is no module {module!r} in the current folder or among those installed") from error
    for name in path.split("."):
        found = getattr(found, name, None)
    if not callable(found):
        raise WrongWorkload(f"module {module!r} has no function {path!r}")
    function: Callable[[polyexec.Executor], Any] = found
    return function


def own(bench: Bench) -> Round:
    """Open the backend, with all workers started, and call the function in each round."""
    system = bench.open()

    def run(target: str) -> Figures:
        function = find(target)
        began = perf_counter()
        value = function(system.native)
        seconds = perf_counter() - began
        return {"seconds": seconds, "value": _short(value), "digest": _digest(value)}

    return run


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _digest(value: object) -> str:
    """Tell values apart; nothing for one that cannot be pickled."""
    try:
        return hashlib.sha256(pickle.dumps(value, 5)).hexdigest()[:16]
    except Exception as error:
        print(f"the value cannot be compared, because it cannot be pickled: {error}", file=sys.stderr)
        return ""


def compare(
    target: str, names: Sequence[str], workers: int, rounds: int, limit: float, tell: Callable[[str], object]
) -> Iterator[Measurement]:
    """Run a workload on several backends, in turn.

    Args:
        target: the function, as ``module:function``.
        names: specifications of the backends.
        workers: how many each gets.
        rounds: how often it runs on each, after one round to warm up that does not count.
        limit: seconds that a round may take.
        tell: takes a line that says how far this is.

    Yields:
        What came of each backend and round: seconds, processor time and peak memory of all processes, and a digest of
        what the function returned.
    """
    params = {"workload": target, "workers": workers}
    with company([(CASE, name) for name in names], workers) as players:
        tell(f"{target}: warming up")
        for player in in_turn(players, 0):
            player.play(limit, target=target)
        for number in range(rounds):
            tell(f"{target}: round {number + 1} of {rounds}")
            for player in in_turn(players, number):
                figures = player.play(limit, memory=True, target=target)
                if figures is not None:
                    yield Measurement(bench=BENCH, params=params, system=player.name, repeat=number, figures=figures)
        for player in players:
            if player.trouble is not None:
                yield Measurement(
                    bench=BENCH, params=params, system=player.name, repeat=rounds, figures={},
                    status=player.trouble.status, error=player.trouble.error,
                )  # fmt: skip

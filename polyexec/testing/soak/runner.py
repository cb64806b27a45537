"""Runs cases, each in a process of its own, so that one does not hide what another has left."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import attrs

import polyexec
from polyexec import Executor
from polyexec.testing.executors import idle
from polyexec.testing.soak import cases
from polyexec.testing.soak.cases import Case, Site
from polyexec.testing.soak.measure import Sampler
from polyexec.testing.soak.mixed import mixed
from polyexec.testing.soak.records import Result, Sizes, load, save
from polyexec.testing.soak.standing import standing
from polyexec.testing.soak.work import LIMIT
from polyexec.testing.target import Target
from polyexec.testing.tools import eventually
from polyexec.testing.watch import LeakError, Snapshot, marked_environment

_WORKERS = 2
_TEXT = 2000
"""Characters of an error that are kept."""

_PATIENCE = 5.0
"""Seconds that are left for what is no more needed to go."""

_NEVER = 1 << 62
"""So many units that a sampler looks once."""

CASES: dict[str, Case] = {
    "tasks": cases.tasks,
    "kills": cases.kills,
    "executors": cases.executors,
    "objects": cases.objects,
    "actors": cases.actors,
    "streams": cases.streams,
    "mixed": mixed,
}
_OWN = frozenset({"executors"})
"""Cases that open executors by themselves."""

_COUNTED = {"mixed": "seconds"}
"""The size that says how long a case is, if its name is another."""


def cases_for(specification: str) -> list[str]:
    """Give the cases that make sense on a backend: workers that share this process cannot be killed."""
    return [name for name in CASES if name != "kills" or Target.of(specification).capabilities.processes]


def soak(
    specification: str,
    sizes: Sizes,
    *,
    names: Sequence[str] = (),
    seed: int | None = None,
    note: Callable[[Result], object] = str,
    timeout: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> list[Result]:
    """Run cases on a backend. Blocks.

    Args:
        specification: of the backend, ``NAME[?key=value&...]``.
        sizes: how much of everything.
        names: of the cases; all that make sense by default.
        seed: of what is drawn by chance; drawn itself by default.
        note: called with each result as it comes.
        timeout: seconds for each case; by default none.
        environment: of the processes in which they run; by default this one's.

    Returns:
        One result for each case.
    """
    chosen = random.randrange(2**32) if seed is None else seed
    results = []
    for name in names or cases_for(specification):
        results.append(_run_apart(specification, name, sizes, chosen, timeout, environment))
        note(results[-1])
    return results


def _run_apart(
    specification: str, name: str, sizes: Sizes, seed: int, timeout: float | None, environment: Mapping[str, str] | None
) -> Result:
    with tempfile.TemporaryDirectory(prefix="polyexec-soak-") as folder:
        path = Path(folder) / "result.json"
        orders = json.dumps([specification, name, attrs.asdict(sizes), seed, str(path)])
        command = [sys.executable, "-m", "polyexec.testing.soak.runner", orders]
        try:
            done = subprocess.run(command, stderr=subprocess.PIPE, timeout=timeout, check=False, env=environment)
            end = f"the process ended with {done.returncode}: {done.stderr.decode(errors='replace')[-_TEXT:]}"
        except subprocess.TimeoutExpired as error:
            end = f"it did not end within {timeout} s: {(error.stderr or b'').decode(errors='replace')[-_TEXT:]}"
        if path.exists():
            return load(path)[0]
        return Result(specification, "", name, {}, 0.0, {}, {}, (), failure=end, seed=seed)


def run_case(specification: str, name: str, sizes: Sizes, seed: int) -> Result:
    """Run a case here. It should be the first thing that is done in a process."""
    target = Target.of(specification)
    chosen = target.with_keys(workers=_WORKERS) if target.own_cluster else specification
    sampler = Sampler(getattr(sizes, _COUNTED.get(name, name)))
    result = Result(chosen, "", name, {}, 0.0, {}, {}, (), seed=seed)
    with marked_environment(), tempfile.TemporaryDirectory() as folder:
        with polyexec.connect(chosen) as ex:
            result = attrs.evolve(result, engine=ex.info.engine)
        del ex
        site = Site(target, chosen, sizes, random.Random(seed), Path(folder), sampler)
        before = Snapshot.take(objects=True)
        began = time.monotonic()
        try:
            done, grown = (_without_executor if name in _OWN else _with_executor)(CASES[name], site)
            result = attrs.evolve(result, done=done, grown=grown)
        except Exception as error:
            text = "".join(traceback.format_exception(error, limit=-3))
            result = attrs.evolve(result, failure=text[-_TEXT:])
        seconds = round(time.monotonic() - began, 1)
        return attrs.evolve(result, seconds=seconds, slopes=sampler.slopes(), left=tuple(_left(before, target)))


def _without_executor(case: Case, site: Site) -> tuple[dict[str, int], dict[str, int]]:
    case(attrs.evolve(site, sizes=site.sizes.warm_up(), sampler=Sampler(_NEVER)))
    warm = standing()
    return case(site), _grown(warm)


def _with_executor(case: Case, site: Site) -> tuple[dict[str, int], dict[str, int]]:
    with polyexec.connect(site.specification) as ex:
        site = attrs.evolve(site, executor=ex)
        case(attrs.evolve(site, sizes=site.sizes.warm_up(), sampler=Sampler(_NEVER)))
        eventually(lambda: idle(ex), "everything is available", LIMIT)
        warm = standing()
        return case(site), _grown(warm, ex)


def _grown(warm: Counter[str], ex: Executor | None = None) -> dict[str, int]:
    """Say what there is more of than there was."""
    more: Counter[str] = Counter()

    def is_flat() -> bool:
        nonlocal more
        more = standing() - warm
        return (ex is None or idle(ex)) and not more

    with contextlib.suppress(AssertionError):
        eventually(is_flat, limit=_PATIENCE)
    return dict(more)


def _left(before: Snapshot, target: Target) -> list[str]:
    try:
        before.check(descriptors=target.declared("F9") is None)
    except LeakError as error:
        return [str(error)]
    return []


def main() -> None:
    """Do what the argument says, in JSON."""
    specification, name, sizes, seed, path = json.loads(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    result = run_case(specification, name, Sizes(**sizes), seed)
    save([result], Path(path))
    if result.failure:
        # What has failed may hang at the end, too.
        os._exit(0)


if __name__ == "__main__":
    main()

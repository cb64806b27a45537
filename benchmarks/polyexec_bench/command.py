"""The command: ``polyexec bench``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from polyexec_bench import compare as comparison
from polyexec_bench import tables, workload
from polyexec_bench.machine import facts
from polyexec_bench.results import Measurement, Run
from polyexec_bench.systems import UnknownSystem, find_missing
from polyexec_bench.taskbench.kernels import KERNELS
from polyexec_bench.taskbench.patterns import PATTERNS
from polyexec_bench.taskbench.sweep import GRAPH, Plan, sweep

BACKENDS = "process,dask,ray"
NATIVES = ("native:processpool", "native:dask", "native:ray")
QUICK = ("trivial", "stencil_1d")
WRONG = 2
"""Exit status if what was asked for makes no sense."""


def main(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: what stands behind ``polyexec bench``.

    Returns:
        The exit status: 0; 1 if a system has hung, failed or given a wrong value, or if ``compare`` has found that
        something became slower; 2 if what was asked for makes no sense.
    """
    options = _parser().parse_args(_with_verb(arguments))
    # As an exception, so that no process is left behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        status: int = options.verb(options)
    except (UnknownSystem, workload.WrongWorkload, ValueError, OSError) as error:
        print(f"polyexec bench: error: {error}", file=sys.stderr)
        return WRONG
    return status


def _with_verb(arguments: Sequence[str]) -> list[str]:
    """Let the whole set be what runs when no verb is given."""
    verbs = {"run", "set", "compare", "show", "-h", "--help"}
    return list(arguments) if arguments and arguments[0] in verbs else ["set", *arguments]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="polyexec bench", description="Compare backends on the same workload.")
    verbs = parser.add_subparsers(required=True, metavar="[run | compare | show | set]")

    run = verbs.add_parser("run", help="run a workload of your own on several backends")
    run.add_argument("target", metavar="MODULE:FUNCTION", help="a function that takes an executor")
    run.add_argument("--backends", default=BACKENDS, metavar="SPEC,...", help=f"default: {BACKENDS}")
    run.add_argument("--limit", type=_positive, default=300.0, metavar="SECONDS", help="for a round; default: 300")
    _common(run)
    run.set_defaults(verb=_run_own)

    whole = verbs.add_parser("set", help="run the benchmarks that come with polyexec (the default)")
    whole.add_argument("--backends", default=BACKENDS, metavar="SPEC,...", help=f"default: {BACKENDS}")
    whole.add_argument("--natives", default=",".join(NATIVES), metavar="NAME,...", help="engines without polyexec")
    whole.add_argument("--patterns", default="", metavar="NAME,...", help="graphs; default: all")
    whole.add_argument("--kernel", choices=KERNELS, default="compute", help="what the tasks do; default: compute")
    whole.add_argument("--quick", action="store_true", help="less of everything, to see how it looks")
    _common(whole)
    whole.set_defaults(verb=_run_set)

    compared = verbs.add_parser("compare", help="show what has changed between two runs beyond noise")
    compared.add_argument("before", type=Path, metavar="BEFORE.json")
    compared.add_argument("after", type=Path, metavar="AFTER.json")
    compared.set_defaults(verb=_compare)

    shown = verbs.add_parser("show", help="print the tables of a run")
    shown.add_argument("run", type=Path, metavar="RUN.json")
    shown.set_defaults(verb=lambda options: _print(Run.read(options.run)))
    return parser


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=_count, default=len(os.sched_getaffinity(0)), metavar="N", help="of each")
    parser.add_argument("--rounds", type=_count, default=5, metavar="N", help="default: 5")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write run.json there")


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("it must be at least 1")
    return value


def _positive(text: str) -> float:
    value = float(text)
    if value <= 0:
        raise argparse.ArgumentTypeError("it must be above 0")
    return value


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _split(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _run_own(options: argparse.Namespace) -> int:
    names = _split(options.backends)
    sys.path.insert(0, os.getcwd())
    workload.find(options.target)
    there, rows = _present(names, workload.BENCH)
    measured = workload.compare(options.target, there, options.workers, options.rounds, options.limit, _tell)
    return _finish(options, names, [*rows, *measured])


def _run_set(options: argparse.Namespace) -> int:
    patterns = _split(options.patterns) or list(QUICK if options.quick else PATTERNS)
    if unknown := [name for name in patterns if name not in PATTERNS]:
        raise ValueError(f"there is no pattern {unknown[0]!r}; there are {', '.join(PATTERNS)}")
    names = [*_split(options.backends), *_split(options.natives)]
    there, rows = _present(names, GRAPH)
    sweeps = min(options.rounds, 2) if options.quick else options.rounds
    plan = Plan(
        patterns, options.kernel, options.workers, 2 * options.workers, sweeps, target=0.15 if options.quick else 0.3
    )
    return _finish(options, names, [*rows, *sweep(plan, there, _tell)])


def _present(names: Sequence[str], bench: str) -> tuple[list[str], list[Measurement]]:
    """Tell systems that can be opened from those whose engine is not installed."""
    missing = {name: find_missing(name) for name in names}
    rows = [
        Measurement(bench=bench, params={}, system=name, repeat=0, figures={}, status="missing", error=reason)
        for name, reason in missing.items()
        if reason
    ]
    return [name for name in names if not missing[name]], rows


def _finish(options: argparse.Namespace, names: Sequence[str], rows: Sequence[Measurement]) -> int:
    run = Run({**facts(names), "load_after": os.getloadavg()[0]}, rows)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        run.write(options.out / "run.json")
        _tell(f"written: {options.out / 'run.json'}")
    return _print(run)


def _print(run: Run) -> int:
    for title, head, lines in tables.tables(run):
        print(f"{title}\n{tables.markdown(head, lines)}\n")
    return int(any(row.status not in ("ok", "missing") for row in run.rows))


def _compare(options: argparse.Namespace) -> int:
    found = list(comparison.changes(Run.read(options.before), Run.read(options.after)))
    head, lines = tables.changed(found)
    if lines:
        print(tables.markdown(head, lines))
    print(f"{len(found)} figures compared, {len(lines)} changed beyond noise")
    return int(any(change.verdict == "slower" for change in found))

"""The local engine against its peers and against what the machine can do, side by side in one run.

Every system of a row has a process of its own that is kept warm; the systems run their rounds in turn, and who begins
changes from round to round, so that whatever else the machine does hits all. Ratios are of figures of the same round;
the medians over the rounds are reported, with the smallest and the largest. All results are checked.

    python benchmarks/local_engine.py --json run.json --table docs/benchmarks/local-engine.md
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from local.machine import facts, single_threaded
from local.report import SCHEMA, document, row_report
from local.rows import ROWS, Scale
from local.runner import run_row
from local.show import goals, show, write_page
from local.systems import OPENERS


def names(known: Mapping[str, object]) -> Any:
    """Make a parser of comma-separated names."""

    def parse(text: str) -> list[str]:
        found = text.split(",")
        if unknown := [name for name in found if name not in known]:
            raise argparse.ArgumentTypeError(f"no such name: {', '.join(unknown)}; there are {', '.join(known)}")
        return found

    return parse


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each row; default: 5")
    parser.add_argument("--rows", type=names(ROWS), default=list(ROWS), metavar="NAME,...", help="default: all")
    parser.add_argument("--systems", type=names(OPENERS), default=[], metavar="NAME,...", help="default: all")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", dest="scale", action="store_const", const="quick", help="smaller numbers")
    size.add_argument("--tiny", dest="scale", action="store_const", const="tiny", help="only to see that all works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the tables into a page")
    parser.add_argument("--from", type=Path, metavar="FILE", dest="source", help="take the figures from a file")
    parser.set_defaults(scale="full")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds takes a number that is at least 1")
    return options


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run the rows, telling what comes out."""
    single_threaded()
    about, scale, rows = facts(), options.scale, []
    for name in options.rows:
        rows.append(measure_row(name, scale, options))
    return document(about, scale, options.rounds, os.getloadavg()[0], rows)


def measure_row(name: str, scale: Scale, options: argparse.Namespace) -> dict[str, Any]:
    """Run one row."""
    row = ROWS[name]
    report = row_report(row, scale, run_row(row, scale, options.rounds, systems=options.systems))
    print(f"{name}: {report['what']}", file=sys.stderr)
    for system in report["systems"].values():
        found = system["summary"].get(row.metric)
        figure = show(found["median"], row.unit) if found else ""
        trouble = "" if system["status"] == "ok" else f"{system['status']}: {system['error']}"
        print(f"  {system['title']:28}{figure:>14}  {trouble}", file=sys.stderr)
    return report


def load(path: Path) -> dict[str, Any]:
    """Read the figures of an earlier run."""
    run: dict[str, Any] = json.loads(path.read_text())
    if run.get("schema") != SCHEMA:
        raise SystemExit(f"{path} has not the schema {SCHEMA}; run the benchmark again")
    return run


def main() -> int:
    """Measure, and print or write what was found; 1 if polyexec gave a wrong value, hung or failed."""
    options = arguments()
    # As an exception, so that no process is left behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    run = load(options.source) if options.source else measure(options)
    if options.json:
        options.json.write_text(json.dumps(run, indent=1) + "\n")
    if options.table:
        write_page(options.table, run)
    print(goals(run))
    ours = [row["systems"]["polyexec"]["status"] for row in run["rows"] if "polyexec" in row["systems"]]
    return int(any(status != "ok" for status in ours))


if __name__ == "__main__":
    sys.exit(main())

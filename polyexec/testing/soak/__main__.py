"""``python -m polyexec.testing.soak SPECIFICATION [--size tasks=1000]... [--case NAME]... [--json FILE]``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import attrs

from polyexec.testing.soak.records import Result, Sizes, save
from polyexec.testing.soak.runner import CASES, soak
from polyexec.testing.soak.table import line


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a soak, print a line for each case, and write all as JSON if asked to.

    Args:
        arguments: of the command; those of this process by default.

    Returns:
        0 if everything was right and nothing was left, else 1.
    """
    options = _parser().parse_args(arguments)
    results: list[Result] = []

    def note(result: Result) -> None:
        results.append(result)
        print(line(result), flush=True)
        if options.json is not None:
            save(results, options.json)

    soak(options.specification, Sizes(**dict(options.size)), names=options.case, seed=options.seed, note=note)
    return 0 if all(result.is_clean for result in results) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m polyexec.testing.soak", description=__doc__)
    parser.add_argument("specification", help="of the backend, NAME[?key=value&...]")
    parser.add_argument(
        "--case", action="append", default=[], choices=list(CASES), help="run only this; may be repeated"
    )
    parser.add_argument("--size", action="append", default=[], type=_size, metavar="NAME=NUMBER", help=str(Sizes()))
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the results go")
    parser.add_argument("--seed", type=int, help="of what is drawn by chance")
    return parser


def _size(text: str) -> tuple[str, int]:
    name, _, number = text.partition("=")
    if name not in attrs.fields_dict(Sizes) or not number.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(attrs.fields_dict(Sizes))} with a number")
    return name, int(number)


if __name__ == "__main__":
    sys.exit(main())

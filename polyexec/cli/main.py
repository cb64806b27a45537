"""Parsing of the command line, and errors in one line."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence

import polyexec
from polyexec.cli.commands import WrongUse, extensions, find_extension, list_backends, run_script, show_info
from polyexec.errors import PolyexecError

BACKEND_HELP = 'for example "process?workers=4"; by default POLYEXEC_BACKEND, else "process"'
EXIT_STATUS = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: what stands behind ``polyexec`` on the command line; by default that of this process.

    Returns:
        The exit status: 0; or 2 if no executor or no script can be had, which one line on the standard error explains.

    Raises:
        SystemExit: the command line is wrong, help was asked for, or the script that was run has exited.
        Exception: whatever else the script that was run raises.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given and (extension := find_extension(given[0])):
        return extension(given[1:])
    parsed = _parser().parse_args(given)
    try:
        parsed.command(parsed)
    except (PolyexecError, WrongUse) as error:
        if isinstance(error, PolyexecError) and not _concerns_connect(error):
            raise
        if parsed.traceback or os.environ.get("POLYEXEC_TRACEBACK") == "1":
            traceback.print_exception(error)
        else:
            print(f"polyexec: error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_STATUS
    return 0


def _concerns_connect(error: PolyexecError) -> bool:
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_code is polyexec.connect.__code__ for frame, _ in frames)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="polyexec", description="One executor on many backends.")
    parser.add_argument("--version", action="version", version=f"polyexec {polyexec.__version__}")
    parser.add_argument(
        "--traceback", action="store_true", help="show the whole traceback of an error; so does POLYEXEC_TRACEBACK=1"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    backends = commands.add_parser("backends", help="list the installed backends, without importing any")
    backends.set_defaults(command=lambda parsed: list_backends())

    info = commands.add_parser("info", help="start or join a backend and show what it offers")
    info.add_argument("--backend", metavar="SPEC", help=BACKEND_HELP)
    info.set_defaults(command=lambda parsed: show_info(parsed.backend))

    run = commands.add_parser("run", help="run a Python script with POLYEXEC_BACKEND set")
    run.add_argument("--backend", metavar="SPEC", help=BACKEND_HELP)
    run.add_argument("script", metavar="SCRIPT", help="the file")
    run.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="its own arguments")
    run.set_defaults(command=lambda parsed: run_script(parsed.script, parsed.arguments, parsed.backend))

    for name in extensions():
        commands.add_parser(name, help=f"see polyexec {name} --help", add_help=False)
    return parser

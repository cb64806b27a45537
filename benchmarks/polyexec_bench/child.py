"""One system in one case, in a process of its own: ``python -m polyexec_bench.child CASE NAME WORKERS FOLDER FD``.

Over the descriptor it says that it is ready, runs a round whenever it is told to, and says what came out. Every
message is a JSON object: with the arguments of the round in one direction; in the other with one of the keys
``ready``, ``figures``, ``wrong`` (a value was not the right one), and ``failed`` (an exception).
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from polyexec_bench.bench import Bench, Round
from polyexec_bench.checks import WrongResult


def attempt(function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Give what a function gives, or the message that says why it did not."""
    try:
        return function()
    except WrongResult as error:
        return {"wrong": str(error)}
    except Exception as error:
        traceback.print_exc()
        return {"failed": " ".join(f"{type(error).__name__}: {error}".split())[:500]}


def serve(connection: Connection, bench: Bench, case: str) -> None:
    """Run rounds until the other side has enough of it."""
    rounds: list[Round] = []

    def prepare() -> dict[str, Any]:
        module, _, function = case.partition(":")
        rounds.append(getattr(importlib.import_module(module), function)(bench))
        return {"ready": True, "notes": bench.notes}

    def run(arguments: dict[str, Any]) -> dict[str, Any]:
        gc.collect()
        return {"figures": rounds[0](**arguments)}

    message = attempt(prepare)
    while True:
        connection.send_bytes(json.dumps(message).encode())
        if not rounds:
            return
        arguments = json.loads(connection.recv_bytes())
        message = attempt(partial(run, arguments))


def main(case: str, name: str, workers: str, folder: str, descriptor: str) -> None:
    """Serve one case."""
    bench = Bench(name, int(workers), Path(folder))
    # What the user's modules are found by, as with ``python -m``.
    sys.path.insert(0, os.getcwd())
    with Connection(int(descriptor)) as connection:
        try:
            with contextlib.suppress(EOFError):
                serve(connection, bench, case)
        finally:
            bench.close()


if __name__ == "__main__":
    main(*sys.argv[1:])

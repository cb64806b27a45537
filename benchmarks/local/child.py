"""One system in one row, in a process of its own: ``python -m local.child MODULE ROW ENTRANT SCALE FOLDER DESCRIPTOR``.

Over the descriptor it says that it is ready, runs a round whenever it is told to, and says what came out. Every
message is a JSON object with one of the keys ``ready``, ``metrics``, ``wrong`` (a value was not the right one), and
``failed`` (an exception).
"""

from __future__ import annotations

import gc
import importlib
import json
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from local.bench import Bench, Round, WrongResult
from local.rows import Row, Scale


def attempt(function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Give what a function gives, or the message that says why it did not."""
    try:
        return function()
    except WrongResult as error:
        return {"wrong": str(error)}
    except Exception as error:
        traceback.print_exc()
        return {"failed": f"{type(error).__name__}: {error}"[:500]}


def prepare(bench: Bench, row: Row, entrant: str, rounds: list[Round]) -> dict[str, Any]:
    """Open the system."""
    rounds.append(row.entrant(entrant).case(bench))
    return {"ready": True, "notes": bench.notes}


def run(bench: Bench, one_round: Round) -> dict[str, Any]:
    """Run a round."""
    bench.warm_up()
    gc.collect()
    return {"metrics": one_round()}


def serve(connection: Connection, bench: Bench, row: Row, entrant: str) -> None:
    """Run rounds until the other side has enough of it."""
    rounds: list[Round] = []
    message = attempt(lambda: prepare(bench, row, entrant, rounds))
    while True:
        connection.send_bytes(json.dumps(message).encode())
        if not rounds or connection.recv_bytes() != b"round":
            return
        message = attempt(lambda: run(bench, rounds[0]))


def main(module: str, row_name: str, entrant: str, scale: Scale, folder: str, descriptor: str) -> None:
    """Find the row, and serve."""
    row: Row = importlib.import_module(module).ROWS[row_name]
    bench = Bench(row.entrant(entrant).system, row.at(scale), Path(folder))
    with Connection(int(descriptor)) as connection:
        try:
            serve(connection, bench, row, entrant)
        except EOFError:
            pass
        finally:
            bench.close()


if __name__ == "__main__":
    main(*sys.argv[1:])  # type: ignore[arg-type]  # the scale is text here

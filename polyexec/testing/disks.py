"""Stores and disks that are soon full, and what is put there; imported by workers, too."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from polyexec.testing.target import Target

STORE = 80 * 2**20
SIZE = 16 * 2**20


def keys_of_small_store(target: Target, folder: Path) -> dict[str, Any] | None:
    """Give the configuration of a store that holds five values; None if the backend's store cannot be told."""
    if not {"store_limit", "spill_folder"} <= {field.name for field in attrs.fields(target.backend.Config)}:
        return None
    return {"workers": 2, "store_limit": STORE, "spill_folder": str(folder)}


def made(number: int) -> Any:
    """Make an array that differs from all others."""
    return np.full(SIZE // 8, number, dtype=float)


def numbers_of(*arrays: Any) -> list[float]:
    """Say which arrays these are, having read all of them."""
    assert all(array.shape == (SIZE // 8,) and (array == array[0]).all() for array in arrays)
    return [float(array[0]) for array in arrays]


SMALL_DISK = """
    import json, os, sys
    import numpy as np
    import polyexec
    from polyexec.testing.disks import made, numbers_of, started_on_small_disk

    started_on_small_disk()
    _, _, how, specification = sys.argv

    def kept(number):
        if how == "put":
            return ex.put(made(number))
        future = ex.submit(made, number)
        # Asked through a task, because a Future holds the value that its caller has asked for.
        ex.submit(numbers_of, future).result(40)
        return future

    with polyexec.connect(specification) as ex:
        stored, error = [], None
        while error is None and len(stored) < 60:
            try:
                stored.append(kept(len(stored)))
            except polyexec.ResourceExhausted as found:
                error = [found.kind, str(found)]
        print(json.dumps([len(stored), error]), flush=True)
        # Reading takes some room too, and some stores have none left by now.
        del stored[-2:]
        print(json.dumps([ex.submit(numbers_of, future).result(40) for future in stored]), flush=True)
        print(json.dumps([numbers_of(stored.pop(0).result(40)) for _ in range(len(stored))]), flush=True)
        print(json.dumps(numbers_of(kept(99).result(40))), flush=True)
"""

DISK = 96 * 2**20
_MOUNT = 'mount -t tmpfs -o size="$0",mode=0700 none "$1" && shift && exec "$@"'


def on_small_disk(folder: str, *command: str) -> list[str]:
    """Give the command that runs another with a disk of its own, which is full after a few values, at a folder."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", "--mount", *user, "sh", "-c", _MOUNT, str(DISK), folder, *command]


def started_on_small_disk() -> None:
    """Start this script once more, with a small disk at the folder that the environment names."""
    folder = os.environ.pop("POLYEXEC_TESTING_DISK", "")
    if folder:
        command = on_small_disk(folder, sys.executable, *sys.argv)
        os.execvp(command[0], command)

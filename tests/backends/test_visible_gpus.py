"""R5: where ``CUDA_VISIBLE_DEVICES`` leaves the driver some GPUs, those are what tasks get, by their names."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_SCRIPT = """
import os, sys
import polyexec

if __name__ == "__main__":
    with polyexec.connect(f"{sys.argv[1]}?workers=2&gpus=2") as ex:
        for gpus in (2, 1, 0.5):
            print(ex.options(gpus=gpus).submit(os.getenv, "CUDA_VISIBLE_DEVICES").result(60))
"""


@pytest.mark.parametrize("backend", ["serial", "threads", "process", "dask", "ray"])
def test_tasks_get_what_the_driver_may_use(backend: str) -> None:
    command = [sys.executable, "-c", _SCRIPT, backend]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "7,GPU-2"}
    ended = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=110)
    assert ended.stdout.splitlines() == ["7,GPU-2", "7", "7"], ended.stderr

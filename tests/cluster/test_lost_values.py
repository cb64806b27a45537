"""Values that are lost with a node of a real Ray cluster."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytest.importorskip("ray")


@pytest.mark.timeout(300)
def test_what_is_lost_with_a_node() -> None:
    """O7 It is made again if its task may run again, from what is lost too, or is an error that names the task."""
    settings = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_IGNORE_UNHANDLED_ERRORS": "1"}
    # Nodes of such a cluster listen on the loopback interface.
    settings["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    with tempfile.TemporaryDirectory(prefix="ray-") as folder, tempfile.TemporaryDirectory() as marks:
        command = [sys.executable, str(Path(__file__).with_name("ray_cluster.py")), folder, marks]
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=280, env={**os.environ, **settings}, check=False
        )
    stories = [line.removeprefix("story: ") for line in ended.stdout.splitlines() if line.startswith("story: ")]
    assert stories == [
        "read True 2 2",
        "used True 2",
        "asked True 2",
        "chain True 2 2",
        "dependent ObjectLost once",
        "once ObjectLost once 1",
        "twice True 2",
        "again ObjectLost twice 2",
    ], ended.stderr

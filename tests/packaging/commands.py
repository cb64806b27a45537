"""Running commands as a user would, without what the environment of the tests adds."""

from __future__ import annotations

import os
import subprocess


def run_quietly(command: list[str], **options: object) -> str:
    """Run a command that must succeed, and give what it prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "POLYEXEC_"))}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return str(done.stdout)

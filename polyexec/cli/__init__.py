"""The command ``polyexec``: which backends there are, what one offers, and running a script on one."""

from polyexec.cli.main import main

__all__ = ["main"]

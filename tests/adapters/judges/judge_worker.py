"""What workers do first while a judge is at work."""

import multiprocessing

AUTHKEY = b"judged"


def prepare() -> None:
    """Let a worker reach what a ``multiprocessing`` manager of the judge holds."""
    multiprocessing.current_process().authkey = AUTHKEY

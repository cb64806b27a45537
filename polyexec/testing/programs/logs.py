"""What tasks print and log comes to the driver, each line whole and before the task's result."""

from __future__ import annotations

import contextlib
import io
import logging

import polyexec
from polyexec import Executor


def work(number: int) -> int:
    """Print something, log something, and give a number."""
    print("working on", number)
    if number % 2:
        logging.getLogger("work").warning("number %d is odd", number)
    return number * number


def text_of(line: str) -> str:
    """Take the mark off a line: the task's name and process id, where it has a process of its own."""
    return line.rpartition(") ")[2] if line.startswith("(") else line


def main(ex: Executor) -> None:
    """Catch what three tasks print, as any program may, and show it."""
    with contextlib.redirect_stdout(io.StringIO()) as caught:
        results = [ex.submit(work, number).result() for number in range(3)]
    print("results:", results)
    for line in caught.getvalue().splitlines():
        print("printed:", text_of(line))


if __name__ == "__main__":
    with polyexec.connect() as executor:
        main(executor)

"""A pipeline of three stages: a stream that reads, tasks that transform, an actor that writes.

The reader is paused when the later stages lag, so that only a few items exist at any time.
"""

from __future__ import annotations

from collections.abc import Iterator

import polyexec
from polyexec import ActorHandle, Executor

BUFFER = 3
ITEMS = 20


class Gauge:
    """Counts the items that exist."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def change(self, by: int) -> None:
        """Note that some have come or gone."""
        self.now += by
        self.most = max(self.most, self.now)

    def highest(self) -> int:
        """Give the highest count so far."""
        return self.most


class Writer:
    """The last stage."""

    def __init__(self, gauge: ActorHandle) -> None:
        self.gauge = gauge
        self.lines: list[str] = []

    def write(self, line: str) -> int:
        """Write a line, and give the number of lines."""
        self.lines.append(line)
        self.gauge.change(-1)
        return len(self.lines)

    def text(self) -> str:
        """Give what was written."""
        return " ".join(self.lines)


def read(gauge: ActorHandle) -> Iterator[int]:
    """The first stage."""
    for number in range(ITEMS):
        gauge.change(+1).result()
        yield number


def transform(number: int) -> str:
    """The second stage."""
    return f"{number * number}"


def main(ex: Executor) -> None:
    """Move twenty items through the stages, a few at a time."""
    gauge = ex.actor(Gauge)
    writer = ex.actor(Writer, gauge)
    for item in ex.options(buffer=BUFFER).stream(read, gauge):
        writer.write(ex.submit(transform, item)).result()
    print("written:", writer.text().result())
    # Unread ones, the one that is on its way to be written, and the one that the reader holds.
    print("never more than", BUFFER + 2, "items:", gauge.highest().result() <= BUFFER + 2)


if __name__ == "__main__":
    with polyexec.connect() as executor:
        main(executor)

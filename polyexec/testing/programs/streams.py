"""A generator runs on a worker, and its items are used while it still runs."""

from __future__ import annotations

from collections.abc import Iterator

import polyexec
from polyexec import Executor


def read_parts(count: int) -> Iterator[list[int]]:
    """Give the parts of something large, one after the other."""
    for number in range(count):
        yield list(range(number * 10, number * 10 + 10))


def breaks_off() -> Iterator[str]:
    """Give two items, then fail."""
    yield "first"
    yield "second"
    raise OSError("the third part cannot be read")


def count_up() -> Iterator[int]:
    """Give numbers without an end."""
    number = 0
    while True:
        yield number
        number += 1


def main(ex: Executor) -> None:
    """Read three streams: to the end, to an error, and some items of one without an end."""
    sums = [ex.submit(sum, part) for part in ex.options(buffer=2).stream(read_parts, 5)]
    print("sums of parts:", [future.result() for future in sums])

    stream = ex.stream(breaks_off)
    print("items:", next(stream).result(), next(stream).result())
    try:
        next(stream)
    except OSError as error:
        print("then:", error)

    with ex.options(buffer=4).stream(count_up) as numbers:
        print("some of many:", [next(numbers).result() for _ in range(6)])


if __name__ == "__main__":
    with polyexec.connect() as executor:
        main(executor)

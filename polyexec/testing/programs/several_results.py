"""A task gives several results, and each goes its own way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import polyexec
from polyexec import Executor


def split(numbers: list[int]) -> tuple[list[int], list[int]]:
    """Give the even numbers and the odd ones."""
    return [n for n in numbers if n % 2 == 0], [n for n in numbers if n % 2]


def letters() -> Iterator[str]:
    """Yield what shall become several results."""
    yield from "xyz"


def main(ex: Executor) -> None:
    """Use the parts of a result, and see what becomes of a wrong number of them."""
    numbers: Any = ex.options(num_returns=2).submit(split, list(range(10)))
    even, odd = numbers
    print("sums:", ex.submit(sum, even).result(), ex.submit(sum, odd).result())
    several: Any = ex.options(num_returns=3).submit(letters)
    print("of a generator:", [future.result() for future in several])
    wrong: Any = ex.options(num_returns=2, name="letters").submit(letters)
    print("both fail:", [type(future.exception()).__name__ for future in wrong])


if __name__ == "__main__":
    with polyexec.connect() as executor:
        main(executor)

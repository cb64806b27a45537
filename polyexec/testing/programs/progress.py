"""A function is applied to many items; a bar, or lines where there is no terminal, show how far it is."""

from __future__ import annotations

import itertools

import polyexec
from polyexec import Executor


def inverse(number: int) -> float:
    """Fail for one of all numbers."""
    return 1 / number


def main(ex: Executor) -> None:
    """Map over a range, over something endless, in any order, and over an item that fails."""
    print("sum:", round(sum(ex.map(inverse, range(1, 41), progress=True)), 6))
    endless = ex.map(inverse, itertools.count(1), buffer=8)
    print("three of an endless map:", [round(value, 3) for value in itertools.islice(endless, 3)])
    endless.close()
    print("in any order:", len(set(ex.map(inverse, range(1, 41), ordered=False))), "values")
    results = ex.map(inverse, [2, 1, 0, 1])
    print("before the error:", next(results), next(results))
    try:
        next(results)
    except ZeroDivisionError as error:
        print("at its place:", error)


if __name__ == "__main__":
    with polyexec.connect() as executor:
        main(executor)

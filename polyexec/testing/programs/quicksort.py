"""Quicksort whose halves are sorted by tasks that start tasks themselves."""

from __future__ import annotations

import random

import polyexec
from polyexec import Executor

SMALL = 400


def partition(items: list[int]) -> tuple[list[int], list[int], list[int]]:
    """Split items into those below, at and above a pivot."""
    pivot = items[len(items) // 2]
    return (
        [item for item in items if item < pivot],
        [item for item in items if item == pivot],
        [item for item in items if item > pivot],
    )


def quicksort(items: list[int]) -> list[int]:
    """Sort in tasks, until there is little left. While one waits for its halves it holds no cpu."""
    if len(items) <= SMALL:
        return sorted(items)
    below, equal, above = partition(items)
    ex = polyexec.current()
    left, right = ex.submit(quicksort, below), ex.submit(quicksort, above)
    return left.result() + equal + right.result()


def main(ex: Executor) -> None:
    """Sort numbers, and compare."""
    numbers = random.Random(8).sample(range(100_000), 3000)
    result = ex.submit(quicksort, numbers).result()
    print("sorted:", result == sorted(numbers), "first:", result[:3], "last:", result[-1])


if __name__ == "__main__":
    with polyexec.connect() as executor:
        main(executor)

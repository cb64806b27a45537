"""A program with many tasks keeps only a few of them waiting, so that neither its memory nor the queue grows."""

from __future__ import annotations

import polyexec
from polyexec import Executor, Future

LIMIT = 8


def work(number: int) -> int:
    """Do something with an item."""
    return number * number


def main(ex: Executor) -> None:
    """Submit many tasks, at most eight ahead of the results."""
    pending: list[Future[int]] = []
    total = most = 0
    for number in range(100):
        if len(pending) >= LIMIT:
            done, pending = ex.wait(pending, num_returns=1)
            total += sum(future.result() for future in done)
        pending.append(ex.submit(work, number))
        most = max(most, len(pending))
    total += sum(future.result() for future in pending)
    print("sum of squares:", total)
    print("most at a time:", most)
    # The same in one line, for whoever has nothing else to do meanwhile.
    print("with map:", sum(ex.map(work, range(100), buffer=LIMIT)))


if __name__ == "__main__":
    with polyexec.connect() as executor:
        main(executor)

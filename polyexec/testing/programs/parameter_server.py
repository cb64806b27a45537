"""A parameter server: workers compute gradients on their own data, one actor keeps the weights.

All numbers are fractions of integers, so that the result is the same to the last digit everywhere.
"""

from __future__ import annotations

from fractions import Fraction

import polyexec
from polyexec import Executor

WORKERS = 2
ROUNDS = 6


class Server:
    """Keeps the weights of a line."""

    def __init__(self, rate: Fraction) -> None:
        self.rate = rate
        self.slope = self.offset = Fraction(0)

    def apply(self, *gradients: tuple[Fraction, Fraction]) -> tuple[Fraction, Fraction]:
        """Take a step against the mean of some gradients, and give the new weights."""
        self.slope -= self.rate * sum((gradient[0] for gradient in gradients), Fraction(0)) / len(gradients)
        self.offset -= self.rate * sum((gradient[1] for gradient in gradients), Fraction(0)) / len(gradients)
        return self.weights()

    def weights(self) -> tuple[Fraction, Fraction]:
        """Give slope and offset."""
        return self.slope, self.offset


class Worker:
    """Has a part of the data, and never gives it away."""

    def __init__(self, number: int) -> None:
        self.data = [(Fraction(x, 4), 3 * Fraction(x, 4) + 1) for x in range(number, 8, WORKERS)]

    def gradient(self, weights: tuple[Fraction, Fraction]) -> tuple[Fraction, Fraction]:
        """Give the gradient of the squared error."""
        slope, offset = weights
        errors = [(slope * x + offset - y, x) for x, y in self.data]
        return 2 * sum((e * x for e, x in errors), Fraction(0)) / len(errors), 2 * sum(
            (e for e, _ in errors), Fraction(0)
        ) / len(errors)


def main(ex: Executor) -> None:
    """Fit a line to points that lie on one."""
    server = ex.actor(Server, Fraction(1, 4))
    workers = [ex.actor(Worker, number) for number in range(WORKERS)]
    weights = server.weights()
    for _ in range(ROUNDS):
        # Futures are arguments: the weights go from the server to the workers, the gradients back, and the driver
        # waits for nothing.
        weights = server.apply(*[worker.gradient(weights) for worker in workers])
    slope, offset = weights.result()
    print(f"after {ROUNDS} rounds: slope {float(slope):.6f}, offset {float(offset):.6f}")


if __name__ == "__main__":
    with polyexec.connect() as executor:
        main(executor)

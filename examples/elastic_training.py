"""Data-parallel training that survives the death of a member of its gang.

    POLYEXEC_BACKEND=process python examples/elastic_training.py
    POLYEXEC_BACKEND=ray     python examples/elastic_training.py

A gang of actors trains a logistic regression: each has a shard of the data, and all their gradients are averaged in
each step. Half-way through one member is killed from outside. There are two ways to go on:

- *by hand*: ``train`` fails with ``ActorDied``; whoever runs it calls it again, and it resumes from the last
  checkpoint;
- *by itself*: ``train_elastically`` makes a new gang and resumes, a bounded number of times.

Both end with the very weights of a run that nobody has disturbed, because a checkpoint holds all that a step depends
on.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import attrs
import numpy as np
import numpy.typing as npt

import polyexec
from polyexec import ActorDied, ActorHandle, Executor

Array: TypeAlias = npt.NDArray[np.float64]
AfterStep: TypeAlias = Callable[[int, "list[int]"], None]
"""Called after each step with its number and the process ids of the members."""


@attrs.frozen
class Plan:
    """What is trained.

    Attributes:
        members: size of the gang.
        steps: number of steps.
        every: steps between two checkpoints.
        rows: of data in all.
        features: of each row.
        rate: length of a step.
    """

    members: int = 2
    steps: int = 30
    every: int = 5
    rows: int = 4000
    features: int = 20
    rate: float = 0.5


@attrs.frozen
class Checkpoint:
    """All that the next step depends on.

    Attributes:
        step: number of steps taken.
        weights: after them.
    """

    step: int
    weights: Array

    def save(self, path: Path) -> None:
        """Write it so that a reader sees the old one or the new one, never a part."""
        fresh = path.with_suffix(".new.npz")
        np.savez(fresh, step=self.step, weights=self.weights)
        fresh.replace(path)

    @staticmethod
    def load(path: Path, plan: Plan) -> Checkpoint:
        """Read the last one; the beginning if there is none."""
        if not path.exists():
            return Checkpoint(0, np.zeros(plan.features))
        with np.load(path) as data:
            return Checkpoint(int(data["step"]), data["weights"])


class Member:
    """One of the gang: a shard of the data in a process of its own."""

    def __init__(self, plan: Plan, number: int) -> None:
        # The data is the same for all; each keeps its part.
        random = np.random.default_rng(5)
        truth = random.normal(size=plan.features)
        rows = random.normal(size=(plan.rows, plan.features))
        labels = (rows @ truth + random.normal(size=plan.rows) > 0).astype(np.float64)
        self.rows, self.labels = rows[number :: plan.members], labels[number :: plan.members]

    def process(self) -> int:
        """Give the process id."""
        return os.getpid()

    def gradient(self, weights: Array) -> tuple[Array, float]:
        """Give gradient and loss of the shard."""
        odds = 1 / (1 + np.exp(-(self.rows @ weights)))
        loss = -np.mean(self.labels * np.log(odds) + (1 - self.labels) * np.log(1 - odds))
        return self.rows.T @ (odds - self.labels) / len(self.labels), float(loss)


def train(ex: Executor, plan: Plan, path: Path, after_step: AfterStep | None = None) -> tuple[Checkpoint, float]:
    """Train from the last checkpoint to the end.

    Args:
        ex: where the gang runs.
        plan: what is trained.
        path: of the checkpoint.
        after_step: called after each step.

    Returns:
        The last checkpoint, and the loss.

    Raises:
        ActorDied: a member has died; the checkpoint is good, and the next call resumes from it.
    """
    last = Checkpoint.load(path, plan)
    loss = float("nan")
    with ex.reserve([{"cpus": 1}] * plan.members, strategy="pack") as gang:
        members = [gang[i].options(cpus=1).actor(Member, plan, i) for i in range(plan.members)]
        try:
            pids = [member.process().result() for member in members]
            for step in range(last.step + 1, plan.steps + 1):
                last, loss = _step(ex, plan, members, last)
                if step % plan.every == 0 or step == plan.steps:
                    last.save(path)
                if after_step is not None:
                    after_step(step, pids)
        finally:
            # Those that live on must not hold what the next gang needs.
            for member in members:
                ex.kill(member)
    return last, loss


def _step(ex: Executor, plan: Plan, members: list[ActorHandle], last: Checkpoint) -> tuple[Checkpoint, float]:
    weights = ex.put(last.weights)
    results = [future.result() for future in [member.gradient(weights) for member in members]]
    mean = sum(gradient for gradient, _ in results) / plan.members
    return Checkpoint(last.step + 1, last.weights - plan.rate * mean), sum(one for _, one in results) / plan.members


def train_elastically(
    ex: Executor, plan: Plan, path: Path, after_step: AfterStep | None = None, *, restarts: int = 3
) -> tuple[Checkpoint, float]:
    """Train, and make a new gang from the last checkpoint when a member dies, a bounded number of times."""
    for left in range(restarts, -1, -1):
        try:
            return train(ex, plan, path, after_step)
        except ActorDied as error:
            if not left:
                raise
            print(f"  a member died ({type(error).__name__}); a new gang resumes")
    raise AssertionError("the loop returns or raises")


class Killer:
    """Kills a member once, when a step has been taken."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.killed = False

    def __call__(self, step: int, pids: list[int]) -> None:
        """Look whether it is time."""
        if step == self.step and not self.killed:
            self.killed = True
            os.kill(pids[-1], signal.SIGKILL)


def main(ex: Executor, plan: Plan) -> bool:
    """Train three times, and say whether all have come to the same weights."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        calm, loss = train(ex, plan, folder / "calm.npz")
        print(f"undisturbed: {calm.step} steps, loss {loss:.4f}")

        by_hand, kill = folder / "by_hand.npz", Killer(plan.steps // 2 + 2)
        try:
            train(ex, plan, by_hand, kill)
        except ActorDied as error:
            print(f"by hand: failed with {type(error).__name__} after step {kill.step};", end=" ")
            print(f"the checkpoint has step {Checkpoint.load(by_hand, plan).step}")
        resumed, loss = train(ex, plan, by_hand)
        print(f"by hand: resumed, {resumed.step} steps, loss {loss:.4f}")

        kill = Killer(plan.steps // 2 + 2)
        elastic, loss = train_elastically(ex, plan, folder / "elastic.npz", kill)
        print(f"by itself: {elastic.step} steps, loss {loss:.4f}")
        same = all(np.array_equal(calm.weights, other.weights) for other in (resumed, elastic))
        print("same weights:", same)
        return same and kill.killed


if __name__ == "__main__":
    with polyexec.connect() as executor:
        sys.exit(0 if main(executor, Plan()) else 1)

"""What the injections of the matrix work with: one case on one executor, and what is noted about it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import attrs

import polyexec
from polyexec import Executor, Future
from polyexec.testing import bodies
from polyexec.testing.executors import end, until_idle
from polyexec.testing.faults import stacks
from polyexec.testing.faults.report import CaseResult
from polyexec.testing.target import Target
from polyexec.testing.tools import PATIENCE, Gate, Marks

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)


class HungError(AssertionError):
    """Something that had to come has not come."""


@attrs.define(eq=False)
class Trial:
    """One case while it runs.

    Attributes:
        target: the backend.
        folder: for whatever the case writes; empty at its begin.
        result: what is noted.
        marks: where the victim marks its start and its fault.
    """

    target: Target
    folder: Path
    result: CaseResult
    marks: Marks
    _executor: Executor | None = None
    _gates: list[Gate] = attrs.field(factory=list)

    @staticmethod
    def of(target: Target, folder: Path, name: str, executor: Executor | None) -> Trial:
        """Begin a case."""
        folder.mkdir(parents=True)
        return Trial(target, folder, CaseResult(name), Marks(str(folder / "victim")), executor)

    @property
    def ex(self) -> Executor:
        """The executor that the case was given."""
        assert self._executor is not None, "the case says that it opens its own"
        return self._executor

    @contextmanager
    def opened(self, **keys: Any) -> Iterator[Executor]:
        """Open an executor with some keys in its specification, and close it."""
        executor = polyexec.connect(self.target.with_keys(**keys))
        try:
            yield executor
        finally:
            end(executor)

    def gate(self, name: str) -> Gate:
        """Give a gate that is closed, but open already where a task runs before ``submit`` returns."""
        gate = Gate(str(self.folder / f"gate-{name}"))
        self._gates.append(gate)
        if self.target.capabilities.inline:
            gate.open()
        return gate

    def open_gates(self) -> None:
        """Open all gates, so that no task waits on."""
        for gate in self._gates:
            gate.open()

    def error(self, future: Future[Any]) -> BaseException | None:
        """Give the error of a Future, that of a cancelled one too; note it as what the user saw.

        Raises:
            HungError: it does not end.
        """
        try:
            found = self.within(lambda: future.exception(PATIENCE), f"the end of {future!r}")
        except polyexec.TaskCancelled as error:
            found = error
        self.saw(found)
        return found

    def value(self, future: Future[T]) -> T:
        """Give the value of a Future; raises ``HungError`` if it does not end."""
        return self.within(lambda: future.result(PATIENCE), f"the end of {future!r}")

    def within(self, wait: Callable[[], T], what: str) -> T:
        """Do what waits for ``PATIENCE`` seconds at most.

        Args:
            wait: it.
            what: what is waited for, for the error.

        Raises:
            HungError: that was not enough; where everybody was is noted.
        """
        begun = time.monotonic()
        try:
            return wait()
        except TimeoutError as error:
            if isinstance(error, polyexec.PolyexecError) or time.monotonic() - begun < 0.9 * PATIENCE:
                raise
            executor = "" if self._executor is None else str(self._executor.dump())
            self.result.stacks = executor + stacks.collect(Path(os.environ[stacks.FOLDER]))
            raise HungError(f"{what} did not come within {PATIENCE:g} s") from error

    def raises(self, kind: type[E], function: Callable[[], object]) -> E:
        """Call a function that must raise an error, and give that; note it as what the user saw."""
        try:
            found = self.within(function, "the end of a call")
        except kind as error:
            self.saw(error)
            return error
        raise AssertionError(f"it gives {found!r}, and does not raise {kind.__name__}")

    def saw(self, outcome: BaseException | str | None) -> None:
        """Note what the user saw."""
        text = outcome if isinstance(outcome, str) else "a value" if outcome is None else _describe(outcome)
        if text not in self.result.outcome.split("; "):
            self.result.outcome = "; ".join(filter(None, [self.result.outcome, text]))

    def injected(self, since: float | None = None, count: int = 1) -> None:
        """Note that the fault was done, and its error or recovery seen now.

        Args:
            since: monotonic time of the fault; by default the last one that the victim has marked, if it has.
            count: number of times.
        """
        self.result.injected += count
        times = self.marks.values("fault")
        begun = since if since is not None else float(times[-1]) if times else None
        if begun is not None:
            self.result.detected.append(round(time.monotonic() - begun, 4))

    def starts(self, allowed: int, exactly: int | None = None) -> None:
        """Check how often the victim's body has started.

        Args:
            allowed: the largest number that the options allow.
            exactly: the number that it must be; by default any up to ``allowed``.
        """
        found = self.marks.count("start")
        self.result.starts = (self.result.starts or 0) + found
        self.result.duplicates += max(0, found - allowed)
        assert found <= allowed, f"the body started {found} times, {allowed} are allowed"
        assert exactly is None or found == exactly, f"the body started {found} times, not {exactly}"

    def bystanders(self) -> Bystanders:
        """Start a peer, if there is a second worker; see ``Bystanders``."""
        return Bystanders.beside(self)

    def usable(self) -> None:
        """Check that one more task runs, and that what was held is available again."""
        found = self.value(self.ex.submit(bodies.add, 20, 22))
        assert found == 42, f"a task that runs afterwards gives {found!r}"
        until_idle(self.ex)

    def strike(
        self, function: Callable[..., Any], *arguments: Any, starts: int | None = 1, **options: Any
    ) -> BaseException | None:
        """Do a fault in a task, with a peer beside it and a task behind it, and see what comes of all three.

        Args:
            function: the victim's body.
            *arguments: its arguments.
            starts: number of times that it must start, None if it leaves no marks.
            **options: of the victim.

        Returns:
            The victim's error, None if it gave a value.
        """
        others = self.bystanders()
        begun = time.monotonic()
        victim = self.ex.options(name="victim", **options).submit(function, *arguments)
        others.queue()
        error = self.error(victim)
        self.injected(None if self.marks.values("fault") else begun)
        others.check()
        if starts is not None:
            self.starts(starts, starts)
        self.usable()
        return error


@attrs.define(eq=False)
class Bystanders:
    """Tasks that have nothing to do with a fault: a peer that runs meanwhile, and one that waits behind the victim."""

    trial: Trial
    gate: Gate
    marks: Marks
    futures: dict[str, Future[Any]]

    @staticmethod
    def beside(trial: Trial) -> Bystanders:
        """Start the peer, if there is a second worker; gives the two when it runs."""
        number = len(list(trial.folder.glob("bystanders-*")))
        marks = Marks(str(trial.folder / f"bystanders-{number}"))
        marks.add("bystanders")
        found = Bystanders(trial, trial.gate(f"bystanders-{number}"), marks, {})
        if trial.ex.resources().total.cpus > 1:
            found.futures["peer"] = trial.ex.submit(bodies.pass_gate, marks, found.gate, "peer")
            marks.wait_for("start peer")
        return found

    def queue(self) -> None:
        """Submit the task that waits behind the victim."""
        self.futures["pending"] = self.trial.ex.submit(bodies.mark, self.marks, "pending")

    def check(self) -> None:
        """Let the peer end, and check that both gave their results and ran once."""
        self.gate.open()
        result = self.trial.result
        result.innocents += len(self.futures)
        bad = {name: text for name, future in self.futures.items() if (text := self._harm(name, future))}
        result.lost += len(bad)
        assert not bad, f"innocents were lost: {bad}"
        for name, start in (("peer", "start peer"), ("pending", "pending")):
            count = self.marks.count(start)
            result.duplicates += max(0, count - 1)
            assert count == (name in self.futures), f"the {name} started {count} times"

    def _harm(self, name: str, future: Future[Any]) -> str:
        try:
            found = self.trial.value(future)
        except HungError:
            self.trial.result.lost += 1
            raise
        except BaseException as error:
            return _describe(error)
        return "" if found == name else f"gave {found!r}"


def _describe(error: BaseException) -> str:
    """Name an error with what tells faults apart."""
    parts = [str(getattr(error, name)) for name in ("stage", "kind", "type_name") if hasattr(error, name)]
    if (number := getattr(error, "signal", None)) is not None:
        parts.append(f"signal {number:d}")
    if (code := getattr(error, "exit_code", None)) is not None:
        parts.append(f"exit code {code}")
    return type(error).__name__ + (f"({', '.join(parts)})" if parts else "")

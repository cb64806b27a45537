"""Races of interrupts with the ends of bodies; run as a script it does so with signals, in its main thread."""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Iterator
from queue import SimpleQueue

import attrs

from polyexec.errors import Interrupted
from polyexec.interrupts import SignalInterrupts, ThreadInterrupts
from polyexec.spi import Verdict


@attrs.define(eq=False)
class Race:
    """One call, and what its body and the one who interrupts it have seen."""

    call: int
    spins: int
    raised: int = 0
    interrupted: bool = False
    verdict: Verdict | None = None

    def check(self) -> None:
        """C8, C9: both sides agree, and nothing was raised twice or for nothing."""
        assert self.verdict in (Verdict.DELIVERED, Verdict.LATE)
        assert self.interrupted == (self.verdict is Verdict.DELIVERED), self
        assert self.raised <= self.interrupted, self


def run_body(interrupts: ThreadInterrupts | SignalInterrupts, race: Race) -> None:
    """Do as the envelope does: whatever happens up to the end of ``end`` is caught."""
    try:
        try:
            interrupts.begin(race.call)
            for _ in range(race.spins):
                pass
        except Interrupted:
            race.raised += 1
        race.interrupted = interrupts.end(race.call)
    except Interrupted:
        race.raised += 1
        race.interrupted = interrupts.end(race.call)
    for _ in range(20):
        # An exception that came now would be one for nothing: it would fail the test.
        pass


def races(count: int) -> Iterator[Race]:
    """Give races in which the body is shorter, or longer, than the way of the interrupt."""
    lengths = itertools.cycle([0, 1, 10, 100, 1000, 5000])
    return (Race(call, spins) for call, spins in zip(range(1, count + 1), lengths, strict=False))


def run_races(interrupts: ThreadInterrupts | SignalInterrupts, count: int) -> list[Race]:
    """Run bodies in this thread, each against an interrupt from another."""
    orders: SimpleQueue[Race | None] = SimpleQueue()
    done: SimpleQueue[None] = SimpleQueue()

    def interrupt() -> None:
        while (race := orders.get()) is not None:
            race.verdict = interrupts.deliver(race.call)
            done.put(None)

    thread = threading.Thread(target=interrupt)
    thread.start()
    found = list(races(count))
    for race in found:
        orders.put(race)
        run_body(interrupts, race)
        done.get()
    orders.put(None)
    thread.join()
    return found


def main() -> None:
    """Check races with signals, and say how many of each kind there were."""
    sys.setswitchinterval(1e-5)
    found = run_races(SignalInterrupts(), int(sys.argv[1]))
    for race in found:
        race.check()
    print(sum(race.interrupted for race in found), sum(race.raised for race in found), len(found))


if __name__ == "__main__":
    main()

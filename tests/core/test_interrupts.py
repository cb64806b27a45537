from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from polyexec.errors import Interrupted
from polyexec.interrupts import SignalInterrupts, ThreadInterrupts, _Bodies
from polyexec.spi import Verdict

from . import races

COUNT = 4000


@pytest.fixture
def quick_switches() -> Iterator[None]:
    """Let threads change places as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("quick_switches")
def test_verdict_and_end_agree_in_random_races() -> None:
    """C2, C8, C9: with exceptions raised between two bytecodes of a thread."""
    found: list[races.Race] = []
    interrupts = ThreadInterrupts()
    thread = threading.Thread(target=lambda: found.extend(races.run_races(interrupts, COUNT)))
    thread.start()
    thread.join()
    assert len(found) == COUNT, "an exception came after the end of a body"
    for race in found:
        race.check()


def test_verdict_and_end_agree_in_random_races_with_signals() -> None:
    """C2, C8, C9: with SIGINT in the main thread of a process of its own."""
    command = [sys.executable, "-m", races.__name__, str(COUNT)]
    folder = races.__file__.rsplit("/", 2)[0]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    interrupted, raised, count = map(int, done.stdout.split())
    assert raised <= interrupted <= count == COUNT


def test_several_bodies_at_the_same_time() -> None:
    """C2: the interrupt reaches the thread of its own call, and no other."""
    interrupts = ThreadInterrupts()
    begun = threading.Barrier(3)
    release = threading.Event()
    seen: dict[int, str] = {}

    def body(call: int) -> None:
        try:
            interrupts.begin(call)
            begun.wait()
            while not release.is_set():
                pass
            seen[call] = "finished"
        except Interrupted:
            seen[call] = "interrupted"
        interrupts.end(call)

    threads = [threading.Thread(target=body, args=(call,)) for call in (1, 2)]
    for thread in threads:
        thread.start()
    begun.wait()
    assert interrupts.deliver(2) is Verdict.DELIVERED
    threads[1].join()
    release.set()
    threads[0].join()
    assert seen == {1: "finished", 2: "interrupted"}


def start_threads(interrupts: ThreadInterrupts, call: int, begun: threading.Event) -> None:
    try:
        try:
            interrupts.begin(call)
            begun.set()
            while True:
                threading.Thread(target=int).start()
        except Interrupted:
            interrupts.end(call)
    except Interrupted:
        interrupts.end(call)


def test_a_body_that_starts_threads() -> None:
    """C2: the exception never hits a new thread, which has the identity of the one that starts it for a while."""
    interrupts = ThreadInterrupts()
    for call in range(60):
        begun = threading.Event()
        body = threading.Thread(target=start_threads, args=(interrupts, call, begun), daemon=True)
        body.start()
        assert begun.wait(30)
        assert interrupts.deliver(call) is Verdict.DELIVERED
        body.join(30)
        assert not body.is_alive()


def test_an_interrupt_before_the_body_is_remembered() -> None:
    """C1, C8: the body never runs."""
    interrupts = ThreadInterrupts()
    assert interrupts.deliver(5) is Verdict.DELIVERED
    with pytest.raises(Interrupted):
        interrupts.begin(5)
    assert interrupts.end(5)


def test_an_interrupt_after_the_end_is_late() -> None:
    """C4, C8."""
    interrupts = ThreadInterrupts()
    interrupts.begin(5)
    assert not interrupts.end(5)
    assert interrupts.deliver(5) is Verdict.LATE


def test_a_second_interrupt_raises_nothing() -> None:
    """C4: cancelling twice is harmless."""
    interrupts = ThreadInterrupts()
    verdicts = [interrupts.deliver(5) for _ in range(3)]
    with pytest.raises(Interrupted):
        interrupts.begin(5)
    verdicts.append(interrupts.deliver(5))
    assert interrupts.end(5)
    assert set(verdicts) == {Verdict.DELIVERED}
    assert interrupts.deliver(5) is Verdict.DELIVERED


class Scripted(_Bodies):
    """Notes what is raised and settled; a test says what happens between two steps."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []
        self.while_raising: Callable[[], None] = lambda: None

    def _raise_in(self, ident: int) -> None:
        self.while_raising()
        self.events.append("raised")

    def _settle(self) -> None:
        self.events.append("settled")


class Noticed(dict[int, int]):
    """Interrupts a call in the very moment in which it begins."""

    def __init__(self, interrupts: Scripted) -> None:
        super().__init__()
        self.interrupts = interrupts

    def __setitem__(self, call: int, ident: int) -> None:
        super().__setitem__(call, ident)
        assert self.interrupts.deliver(call) is Verdict.DELIVERED


def test_an_interrupt_in_the_midst_of_the_beginning() -> None:
    """C2: either the one who interrupts raises, or the body itself, never both."""
    interrupts = Scripted()
    interrupts._running = Noticed(interrupts)
    interrupts.begin(5)
    assert interrupts.events == ["raised"]
    assert interrupts.end(5)


def test_the_end_waits_for_an_exception_that_is_on_its_way() -> None:
    """C2: and lets it come, so that it does not hit the next call."""
    interrupts = Scripted()
    raising = threading.Event()

    def until_the_body_has_ended() -> None:
        raising.set()
        while 5 in interrupts._running:
            pass

    interrupts.while_raising = until_the_body_has_ended
    interrupts.begin(5)
    thread = threading.Thread(target=interrupts.deliver, args=(5,))
    thread.start()
    assert raising.wait(30)
    assert interrupts.end(5)
    thread.join()
    assert interrupts.events == ["raised", "settled"]


def test_what_is_remembered_of_calls_is_bounded() -> None:
    """A worker that lives long keeps no trace of each of its calls."""
    interrupts = ThreadInterrupts()
    for call in range(10_000):
        interrupts.begin(call)
        interrupts.end(call)
    assert len(interrupts._claims) < 5000


def test_a_signal_from_outside_is_a_keyboard_interrupt() -> None:
    """W7: only an interrupt of the call's own raises ``Interrupted``."""
    interrupts = SignalInterrupts()
    interrupts._running[1] = threading.get_ident()
    with pytest.raises(KeyboardInterrupt):
        interrupts._on_signal(2, None)
    del interrupts._running[1]
    interrupts._on_signal(2, None)

from __future__ import annotations

from polyexec import outcome
from polyexec.objects import ObjectTable
from polyexec.session import Entry
from polyexec.stored import Head, Tag


class Table:
    """An object table, and what it has told."""

    def __init__(self) -> None:
        self.freed: list[object] = []
        self.forgotten: list[int] = []
        self.reported: list[tuple[str, str]] = []
        self.thinned: list[Entry] = []
        self.objects = ObjectTable(
            self.freed.append,
            self.forgotten.append,
            lambda entry, text: self.reported.append((entry.name, text)),
            self.thinned.append,
        )

    def add(self, entry_id: int, item: int | None = None) -> Entry:
        entry = Entry(entry_id, f"task {entry_id}", item)
        self.objects.add(entry)
        return entry

    def settle(self, *entries: Entry, inner: tuple[int, ...] = (), handle: object = None) -> None:
        self.objects.settle(list(entries), Head(references=inner), None, handle)

    def fail(self, *entries: Entry) -> None:
        stored = outcome.encode_error(ValueError("text"))
        self.objects.settle(list(entries), Head.decode(stored.data)[0], stored, None)

    def drop(self, *entry_ids: int) -> None:
        for entry_id in entry_ids:
            self.objects.note(entry_id, -1)
        self.objects.settle_notes()


def test_a_value_is_freed_with_its_last_future() -> None:
    """O5."""
    table = Table()
    table.settle(table.add(1), handle="kept by the engine")
    table.objects.note(1, 1)
    table.drop(1)
    assert table.freed == []
    table.drop(1)
    assert table.freed == ["kept by the engine"]
    assert table.forgotten == [1]
    assert table.objects.entries == {}


def test_a_future_that_goes_before_the_value_comes() -> None:
    """O5, S16: the task runs on, and what it gives is freed at once."""
    table = Table()
    entry = table.add(1)
    table.drop(1)
    assert 1 in table.objects.entries
    table.settle(entry, handle="handle")
    assert table.freed == ["handle"]
    assert table.objects.entries == {}


def test_notes_are_taken_in_their_order() -> None:
    """O5, N3: a Future that is copied and then dropped never lets the value go between."""
    table = Table()
    table.settle(table.add(1), handle="handle")
    for change in (1, -1, 1, -1):
        table.objects.note(1, change)
    table.objects.settle_notes()
    assert table.freed == []
    for change in (-1, 1):
        table.objects.note(1, change)
    table.objects.settle_notes()
    assert table.freed == ["handle"]


def test_values_inside_a_value_live_with_it() -> None:
    """N3: a Future inside a result is good as long as the result is."""
    table = Table()
    table.settle(table.add(1), handle="inner")
    table.settle(table.add(2), inner=(1, 1), handle="outer")
    table.drop(1)
    assert table.freed == []
    table.drop(2)
    assert table.freed == ["outer", "inner"]


def test_the_items_of_one_outcome_share_it() -> None:
    """S11, O5: it is freed with the last of its values."""
    table = Table()
    table.settle(table.add(9), handle="inner")
    entries = [table.add(1 + item, item) for item in range(3)]
    table.settle(*entries, inner=(9,), handle="shared")
    table.drop(9, 2, 1)
    assert table.freed == []
    table.drop(3)
    assert table.freed == ["shared", "inner"]


def test_a_long_chain_of_values_inside_values() -> None:
    """O5: however long it is."""
    table = Table()
    length = 20_000
    table.settle(table.add(1), handle=1)
    for number in range(2, length):
        table.settle(table.add(number), inner=(number - 1,), handle=number)
        table.drop(number - 1)
    assert table.freed == []
    table.drop(length - 1)
    assert table.freed == list(range(length - 1, 0, -1))


def test_an_error_that_nobody_has_seen_is_reported_once() -> None:
    """S12: with its text, when the last Future goes."""
    table = Table()
    table.fail(table.add(1))
    assert table.reported == []
    table.drop(1)
    table.drop(1)
    assert table.reported == [("task 1", "ValueError: text")]


def test_an_error_without_futures_is_reported_when_it_comes() -> None:
    """S12."""
    table = Table()
    entry = table.add(1)
    table.drop(1)
    table.fail(entry)
    assert table.reported == [("task 1", "ValueError: text")]


def test_an_error_that_was_seen_is_not_reported() -> None:
    """S12."""
    table = Table()
    entry = table.add(1)
    table.fail(entry)
    entry.retrieved = True
    table.drop(1)
    assert table.reported == []


def test_who_waits_is_told_once_and_after_the_value_is_there() -> None:
    """W6: a waiter sees the tag that it was told about."""
    table = Table()
    entry = table.add(1)
    seen: list[Tag | None] = []
    for _ in range(2):
        entry.add_waiter(lambda told: seen.append(told.tag))
    table.settle(entry)
    assert seen == [Tag.VALUE, Tag.VALUE]
    assert entry.waiters == []


def test_an_outcome_that_says_broken_is_an_error() -> None:
    """F14: for those who hold its Future."""
    table = Table()
    entry = table.add(1)
    table.objects.settle([entry], Head(Tag.BROKEN), None, None)
    assert entry.tag is Tag.ERROR

"""Tables and footnotes of the pages that are made from reports."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class Footnotes:
    """Numbers texts in the order in which they come, the same text once."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def mark(self, text: str) -> str:
        """Give the mark that refers to a text, nothing for no text."""
        if not text:
            return ""
        return f"[^{self._numbers.setdefault(text, len(self._numbers) + 1)}]"

    def lines(self) -> list[str]:
        """Give the notes."""
        return [f"[^{number}]: {text}" for text, number in self._numbers.items()]


def code(text: str) -> str:
    """Give a text as code."""
    return f"`{text}`"


def line(cells: Iterable[str]) -> str:
    """Give a line of a table."""
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def table(head: str, columns: int, rows: Sequence[str]) -> str:
    """Give a table, from the lines of its head and its rows."""
    return "\n".join([head, "|" + "---|" * columns, *rows, ""])

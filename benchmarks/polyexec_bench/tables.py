"""The figures of a run as text: a table for a terminal, the same as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from polyexec_bench.compare import Change
from polyexec_bench.results import Group, Run, Spread, groups
from polyexec_bench.systems import title_of

UNITS = {
    "seconds": "s",
    "metg50": "s",
    "metg90": "s",
    "cpu_seconds": "s",
    "peak_bytes": "B",
    "rate": "/s",
}
"""Figures that tables show, in this order, with their units."""

_STEPS = {
    "s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")),
    "B": ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "B")),
    "/s": ((1e6, "M/s"), (1e3, "k/s"), (1.0, "/s")),
}
_TITLES = {"metg50": "METG(50%)", "metg90": "METG(90%)", "cpu_seconds": "processor time", "peak_bytes": "peak memory"}


def number(value: float) -> str:
    """Write a number with three digits that count."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def show(value: float, unit: str) -> str:
    """Write a value with its unit, in a size that suits it."""
    steps = _STEPS[unit]
    size, name = next((step for step in steps if abs(value) >= step[0]), steps[-1])
    return f"{number(value / size)} {name}"


def figure_title(figure: str) -> str:
    """Give what readers call a figure."""
    return _TITLES.get(figure, figure)


def _cell(group: Group, figure: str) -> str:
    values = group.values(figure)
    if not values:
        return ""
    found, unit = Spread.of(values), UNITS[figure]
    if found.count == 1:
        return show(found.median, unit)
    return f"{show(found.median, unit)} ({show(found.low, unit)} - {show(found.high, unit)})"


def tables(run: Run) -> Iterable[tuple[str, list[str], list[list[str]]]]:
    """Give a table for each benchmark and its parameters: title, head and lines.

    A system that has hung, or given a wrong value, is in it as such.
    """
    labels: dict[str, list[Group]] = {}
    for group in groups(run.rows):
        labels.setdefault(group.label, []).append(group)
    for label, rows in labels.items():
        notes = [_note(group, rows[0]) for group in rows]
        figures = [figure for figure in UNITS if any(group.values(figure) for group in rows)]
        lines = [
            [title_of(group.system), *(_cell(group, figure) for figure in figures), *([note] if any(notes) else [])]
            for group, note in zip(rows, notes, strict=True)
        ]
        yield label, ["system", *map(figure_title, figures), *(["remark"] if any(notes) else [])], lines


def _note(group: Group, first: Group) -> str:
    if group.trouble is not None:
        return f"{group.trouble.status}: {group.trouble.error}"
    texts, others = ({row.figures.get("digest", "") for row in one.rows} for one in (group, first))
    return "" if texts == others else f"returned {group.rows[0].figures['value']}, another value than the first"


def changed(found: Sequence[Change]) -> tuple[list[str], list[list[str]]]:
    """Give the table of what has changed between two runs: head and lines, the largest change first."""
    lines = [
        [
            change.verdict,
            f"{change.ratio:.2f}",
            change.label,
            title_of(change.system),
            figure_title(change.figure),
            show(change.before, UNITS[change.figure]),
            show(change.after, UNITS[change.figure]),
            f"{change.chance:.3f}",
            f"beside {title_of(change.against)}" if change.against else "",
        ]
        for change in sorted(found, key=lambda change: max(change.ratio, 1 / change.ratio), reverse=True)
        if change.verdict != "same"
    ]
    return ["", "ratio", "benchmark", "system", "figure", "before", "after", "chance", ""], lines


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Write a table as Markdown, which reads well in a terminal too."""
    rows = [list(head), *map(list, lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    written = [[cell.replace("|", "/").ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    rule = ["-" * max(3, width) for width in widths]
    return "\n".join(f"| {' | '.join(row)} |" for row in [written[0], rule, *written[1:]])

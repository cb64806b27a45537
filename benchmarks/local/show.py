"""Numbers and tables for readers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

BEGIN = "<!-- begin: written by benchmarks/local_engine.py -->"
END = "<!-- end -->"
_STEPS = {
    "s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")),
    "B": ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "B")),
    "B/s": ((1e9, "GB/s"), (1e6, "MB/s")),
}
_VERDICTS = {True: "yes", False: "**no**", None: "unknown"}


def number(value: float) -> str:
    """Write a number with three digits that count, and with spaces between thousands."""
    if abs(value) >= 1000:
        digits = len(str(int(abs(value)))) - 3
        return f"{round(value, -digits):,.0f}".replace(",", " ")
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) >= 1e-3 or value == 0 else f"{value:.1e}"


def show(value: float, unit: str) -> str:
    """Write a value with its unit, in a size that suits it."""
    if unit in _STEPS:
        steps = _STEPS[unit]
        size, name = next((step for step in steps if abs(value) >= step[0]), steps[-1])
        return f"{number(value / size)} {name}"
    return f"{number(value)}{unit}"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join([_line(head), _line(["---"] * len(head)).replace(" ", ""), *map(_line, rows)])


def _cell(system: Mapping[str, Any], row: Mapping[str, Any], metric: str = "") -> str:
    found = system["summary"].get(metric or row["metric"])
    figure = show(found["median"], row["unit"]) if found else ""
    trouble = "" if system["status"] == "ok" else f"**{system['status']}**"
    return ", then ".join(filter(None, [figure, trouble]))


def _measured(goal: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    found = goal["measured"]
    if found is None:
        return str(goal["why"])
    ratio = bool(goal["against"])
    median, low, high = (found[name] for name in ("median", "min", "max"))
    if ratio:
        return f"{number(median)} x ({number(low)} - {number(high)})"
    return f"{show(median, row['unit'])} ({show(low, row['unit'])} - {show(high, row['unit'])})"


def goals(run: Mapping[str, Any]) -> str:
    """Render the table of goals."""
    lines = []
    for row in run["rows"]:
        for goal in row["goals"]:
            sides = [row["systems"].get(name) for name in ("polyexec", goal["against"])]
            medians = [_cell(side, row, goal["metric"]) if side else "" for side in sides]
            verdict = _VERDICTS[goal["reached"]]
            lines.append([f"`{row['name']}`", goal["goal"], _measured(goal, row), verdict, *medians])
    return _table(["row", "goal", "measured", "reached", "polyexec", "the other"], lines)


def figures(run: Mapping[str, Any]) -> str:
    """Render the medians of all systems; rows without a common column show theirs in the last one."""
    columns = {
        name: system["title"]
        for row in run["rows"]
        for name, system in row["systems"].items()
        if name in run["starts"]
    }  # fmt: skip
    lines = []
    for row in run["rows"]:
        systems = row["systems"]
        cells = [_cell(systems[name], row) if name in systems else "" for name in columns]
        others = [f"{system['title']} {_cell(system, row)}" for name, system in systems.items() if name not in columns]
        lines.append([f"`{row['name']}`", *cells, "; ".join(others)])
    return _table(["row", *columns.values(), "for comparison"], lines)


def _machine(run: Mapping[str, Any]) -> str:
    machine = run["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    memory = show(machine["memory"], "B")
    return (
        f"{machine['cpu']}, {machine['cpus']} processors, {memory} of memory, {machine['kernel']}; "
        f"{run['python']}; {versions}. {run['time'][:10]}, {run['rounds']} rounds, sizes `{run['scale']}`; "
        f"load of the machine {machine['load']:.1f} before and {run['load_after']:.1f} after."
    )


def _meanings(run: Mapping[str, Any]) -> str:
    return "\n".join(f"- `{row['name']}`: {row['what']}." for row in run["rows"])


def _troubles(run: Mapping[str, Any]) -> str:
    found = [
        f"- `{row['name']}`, {system['title']}: {system['status']}: {' '.join(system['error'].split())[:200]}"
        for row in run["rows"]
        for system in row["systems"].values()
        if system["status"] != "ok"
    ]
    return "\n".join(["", "What did not end well:", "", *found, ""]) if found else ""


def render(run: Mapping[str, Any]) -> str:
    """Render a run as Markdown.

    Args:
        run: the document.

    Returns:
        The block between the marks of the page, with them.
    """
    parts = [
        BEGIN, _machine(run), "## Goals", goals(run), "## What runs", _meanings(run),
        "## Medians of all systems", figures(run) + _troubles(run), END,
    ]  # fmt: skip
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def write_page(path: Path, run: Mapping[str, Any]) -> None:
    """Put a run into a page: in place of what stands between the marks, or as all of it."""
    block = render(run)
    page = path.read_text() if path.exists() else ""
    if BEGIN in page and END in page:
        before, _, rest = page.partition(BEGIN)
        block = before + block.rstrip("\n") + rest.partition(END)[2]
    path.write_text(block)

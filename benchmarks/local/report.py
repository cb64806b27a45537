"""What the figures amount to: goals reached or not, and the document that is written as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from local.rows import Goal, Row, Scale
from local.runner import Result
from local.show import show

SCHEMA = 1


def spread(values: Sequence[float]) -> dict[str, float]:
    """Give median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def medians(result: Result) -> dict[str, dict[str, float]]:
    """Give the spread of each figure over the rounds."""
    if not result.rounds:
        return {}
    return {name: spread([figures[name] for figures in result.rounds]) for name in result.rounds[0]}


def wording(row: Row, goal: Goal) -> str:
    """Say a goal in words."""
    if goal.against:
        factor = f"{goal.bound:.3g}" if goal.bound >= 1 else f"{goal.bound:.2g}"
        return f"{factor} x {row.entrant(goal.against).title}"
    name = f"{goal.metric}: " if goal.metric else ""
    return f"{name}{'at least' if row.more else 'under'} {show(goal.bound, row.unit)}"


def measured(row: Row, goal: Goal, results: Mapping[str, Result]) -> list[float]:
    """Give the figure that a goal is about, for each round in which it is known.

    Against another system it is a ratio that is above 1 where polyexec is better, of figures of the same round.
    """
    metric = goal.metric or row.metric
    ours = [figures[metric] for figures in results["polyexec"].rounds]
    if not goal.against:
        return ours
    theirs = [figures[metric] for figures in results[goal.against].rounds] if goal.against in results else []
    pairs = zip(ours, theirs, strict=False)
    return [our / their if row.more else their / our for our, their in pairs]


def judge(row: Row, goal: Goal, results: Mapping[str, Result]) -> dict[str, Any]:
    """Say whether a goal is reached: None if that is not known, because the other side has no figures."""
    metric = goal.metric or row.metric
    verdict: dict[str, Any] = {**attrs.asdict(goal), "metric": metric, "goal": wording(row, goal)}
    ours = results["polyexec"]
    if ours.status != "ok":
        return {**verdict, "measured": None, "reached": False, "why": f"polyexec: {ours.status}"}
    values = measured(row, goal, results)
    if not values:
        other = results.get(goal.against)
        why = f"{row.entrant(goal.against).title}: {other.status}" if other else "not compared"
        return {**verdict, "measured": None, "reached": None, "why": why}
    found = spread(values)
    more = row.more or bool(goal.against)
    reached = found["median"] >= goal.bound if more else found["median"] <= goal.bound
    return {**verdict, "measured": found, "reached": reached}


def row_report(row: Row, scale: Scale, results: Mapping[str, Result]) -> dict[str, Any]:
    """Give the part of the document that is about one row."""
    sizes = row.at(scale)
    shown = {name: f"{size:,}".replace(",", " ") for name, size in sizes.items()}
    return {
        "name": row.name,
        "what": row.what.format(**shown),
        "metric": row.metric,
        "unit": row.unit,
        "more_is_better": row.more,
        "sizes": sizes,
        "systems": {name: {**attrs.asdict(result), "summary": medians(result)} for name, result in results.items()},
        "goals": [judge(row, goal, results) for goal in row.goals] if "polyexec" in results else [],
    }


def document(
    facts: Mapping[str, Any], scale: Scale, rounds: int, load_after: float, rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Put a run together."""
    head = {"schema": SCHEMA, "scale": scale, "rounds": rounds, "load_after": load_after}
    return {**head, **facts, "rows": list(rows)}

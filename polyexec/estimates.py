"""Estimates of how long calls of a function take, to decide how many may be handed over ahead of their turn."""

from __future__ import annotations

AHEAD_SECONDS = 0.02
"""Work that may lie in an engine's queues: enough to hide a round trip, too little to matter for order or fairness."""

_WEIGHT = 0.2
_FUNCTIONS = 4096


class Estimates:
    """Moving averages of durations by function.

    Args:
        limit: the most calls that may be handed over ahead; 0 for none.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._seconds: dict[object, float] = {}

    def note(self, function: object, duration: float) -> None:
        """Learn how long a call took."""
        if not self.limit or function is None:
            return
        known = self._seconds.get(function)
        if known is None:
            if len(self._seconds) >= _FUNCTIONS:
                self._seconds.pop(next(iter(self._seconds)))
            self._seconds[function] = duration
        else:
            # Falls slowly and rises at once: one long call shows that more may follow.
            self._seconds[function] = max(duration, known + _WEIGHT * (duration - known))

    def allows(self, function: object, queued: int) -> bool:
        """Say whether one more call of a function may be handed over when so many are."""
        seconds = self._seconds.get(function) if self.limit else None
        if seconds is None or queued >= self.limit:
            return False
        return (queued + 1) * seconds <= AHEAD_SECONDS

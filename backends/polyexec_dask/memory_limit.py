"""How much memory a process uses by itself, and the words for a task that used too much."""

from __future__ import annotations

CHECK_SECONDS = 0.1
_SLACK = 16 * 2**20


def private_bytes(pid: int | str = "self") -> int | None:
    """Give the bytes that a process alone has, without what it maps or shares; None if that is not known."""
    try:
        with open(f"/proc/{pid}/status") as file:
            for line in file:
                if line.startswith("RssAnon:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def limit(used: int, allowance: int) -> int:
    """Give the bytes beyond which a task has outgrown its allowance.

    Args:
        used: what the process used when the task began.
        allowance: what the task asked for.
    """
    return used + allowance + _SLACK


def describe(used: int, allowance: int) -> str:
    """Say that a task used too much."""
    return f"out of memory: it used {used} bytes, but asked for memory={allowance}; ask for more, or use less"

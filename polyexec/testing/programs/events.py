"""What happens to each task is told as it happens, and summed up by function."""

from __future__ import annotations

import polyexec
from polyexec import Executor


def square(number: int) -> int:
    """Do some work."""
    return number * number


def broken() -> None:
    """Fail."""
    raise ValueError("broken")


def main(ex: Executor) -> None:
    """Follow two tasks from their submission to their end."""
    events = ex.events()
    good = ex.options(name="good").submit(square, 4)
    bad = ex.options(name="bad").submit(broken)
    print("result:", good.result(), "error:", bad.exception())
    told: dict[str, list[str]] = {"good": [], "bad": []}
    for event in events:
        if event.name in told:
            told[event.name].append(event.kind.value)
        if all(story and story[-1] in ("done", "failed") for story in told.values()):
            break
    for name, story in told.items():
        print(name, "was", ", ".join(dict.fromkeys(story)))


if __name__ == "__main__":
    with polyexec.connect() as executor:
        main(executor)

"""What threads of the driver wait for, read from their stacks, so that nobody need take it down while it waits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import CodeType, FrameType
from typing import Any, TypeAlias

from polyexec.driver import DriverSession
from polyexec.dump import label
from polyexec.inbox import Inbox
from polyexec.session import Entry

_NAMED = 5
_Reader: TypeAlias = Callable[[Mapping[str, Any]], str]


def what(frame: FrameType | None, session: DriverSession) -> str:
    """Say what of an executor a thread waits for.

    Args:
        frame: the innermost of the thread.
        session: of the executor.

    Returns:
        The words; empty if it waits for nothing of this executor.
    """
    words = ""
    while frame is not None:
        reader = _READERS.get(frame.f_code)
        if reader is not None:
            found = frame.f_locals
            owner = found.get("self")
            if owner is session or getattr(owner, "_session", None) is session:
                # The outermost says most: what waits for an item waits for an entry inside.
                words = reader(found)
        frame = frame.f_back
    return words


def _results(entries: Iterable[Entry]) -> str:
    missing = [label(entry.id, entry.name) for entry in entries if entry.tag is None]
    more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
    noun = "result" if len(missing) == 1 else "results"
    return f"the {noun} of {', '.join(missing[:_NAMED])}{more}" if missing else "nothing any more"


def _wait(found: Mapping[str, Any]) -> str:
    entries = found.get("entries", ())
    count = found.get("count", len(entries))
    some = f"{count} of {len(entries)}: " if count < len(entries) else ""
    return some + _results(entries)


def _one(words: str) -> _Reader:
    def read(found: Mapping[str, Any]) -> str:
        entry = found.get("entry") or found.get("actor")
        return words.format(label(entry.id, entry.name) if isinstance(entry, Entry) else "a task")

    return read


def _item(found: Mapping[str, Any]) -> str:
    end = found["self"].end
    return f"the next item of stream {label(end.id, end.name)}"


_READERS: Mapping[CodeType, _Reader] = {
    DriverSession.wait.__code__: _wait,
    DriverSession.completed.__code__: lambda found: _results(found.get("entries", ())),
    DriverSession.fetch.__code__: _one("the value of {}"),
    DriverSession.cancel.__code__: _one("the end of a cancel of {}"),
    DriverSession.kill.__code__: _one("the end of a kill of {}"),
    DriverSession.put.__code__: lambda found: "room for a value that is being put",
    DriverSession.submit.__code__: lambda found: "a task that it runs itself, in submit",
    DriverSession.resources.__code__: lambda found: "the loop to say what resources are left",
    DriverSession._in_loop.__code__: lambda found: "the loop to take or close a reservation",
    DriverSession.close.__code__: lambda found: "all tasks to end, in close()",
    DriverSession.close_at_exit.__code__: lambda found: "tasks to end, at the exit of the interpreter",
    Inbox.take.__code__: _item,
}

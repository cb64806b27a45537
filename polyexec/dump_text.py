"""A dump as text for people, in 80 columns."""

from __future__ import annotations

import itertools
import sysconfig
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from polyexec.dump import Dump, TaskDump, node_name, number
from polyexec.stacks import ThreadStack, shortened

WIDTH = 80
_SHOWN = 12
"""Tasks of one state, or holders of a node, that are written out."""

_FRAMES = 12
_OWN = ("polyexec/", "polyexec_", "<string>", "<frozen")
"""Where frames of polyexec's own threads are, and those of the interpreter."""

_STANDARD = tuple(f"{path}/" for path in {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")})
_INSTALLED = ("site-packages/", "dist-packages/")
_BODY = "polyexec/envelope.py"
"""What runs the bodies of tasks."""

_ORDER = ("stopping", "running", "blocked", "paused", "ready", "waiting", "resting", "serving")


def text_of(dump: Dump) -> str:
    """Write a dump."""
    parts = (_head, _tasks, _waiting, _actors, _streams, _reservations, _nodes, _workers, _threads)
    return "\n".join(line for part in parts for line in part(dump))


def _head(dump: Dump) -> Iterator[str]:
    at = time.strftime("%H:%M:%S", time.localtime(dump.taken_at))
    yield from _wrapped(f"polyexec: executor {dump.executor_id}, {dump.status}, at {at}", "", "  ")
    yield from _wrapped(f"{dump.backend}; asked in process {dump.pid} on {dump.host}", "  ", "  ")
    for reason in dump.unknown:
        yield from _wrapped(f"! {reason}", "", "  ")


def _tasks(dump: Dump) -> Iterator[str]:
    yield ""
    if not dump.counts:
        yield "TASKS: none" if not dump.unknown else "TASKS: not known"
        return
    states = sorted(dump.counts, key=lambda state: _ORDER.index(state) if state in _ORDER else len(_ORDER))
    yield from _wrapped("TASKS: " + ", ".join(f"{dump.counts[state]} {state}" for state in states), "", "  ")
    for state in states:
        groups = [list(group) for _, group in itertools.groupby(_in_state(dump, state), _likeness)]
        for group in groups[:_SHOWN]:
            yield from _task(group[0], len(group) - 1)
        left = dump.counts[state] - sum(map(len, groups[:_SHOWN]))
        if left:
            yield f"  ... and {left} more that are {state}"


def _in_state(dump: Dump, state: str) -> list[TaskDump]:
    return [task for task in dump.tasks if task.state == state]


def _likeness(task: TaskDump) -> tuple[object, ...]:
    """Give what tasks have in common that are shown as one; of those that have begun all are shown."""
    waits = task.state in ("ready", "waiting", "resting")
    return task.name, task.waits_for, task.node, task.attempt, 0 if waits else task.id


def _task(task: TaskDump, more: int) -> Iterator[str]:
    words = [f"{number(task.id)} {task.name}: {task.state}"]
    if task.seconds is not None:
        words.append(f"for {_duration(task.seconds)}")
    if task.pid is not None:
        words.append(f"in process {task.pid} on {node_name(task.node or '')}")
    elif task.node is not None:
        words.append(f"on {node_name(task.node)}")
    if task.attempt > 1:
        words.append(f"(attempt {task.attempt})")
    if more:
        words.append(f"(and {more} more like it)")
    yield from _wrapped(" ".join(words), "  ", "      ")
    for reason in task.waits_for:
        yield from _wrapped(f"waits for {reason}", "      ", "        ")


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _waiting(dump: Dump) -> Iterator[str]:
    waiting = [thread for thread in dump.threads if thread.waits_for]
    if waiting:
        yield from ("", "WHO WAITS IN THIS PROCESS")
    for thread in waiting:
        yield from _wrapped(f"thread {_name(thread)}: waits for {thread.waits_for}", "  ", "      ")


def _actors(dump: Dump) -> Iterator[str]:
    if dump.actors:
        yield from ("", "ACTORS")
    for actor in dump.actors[:_SHOWN]:
        runs = f"runs {', '.join(actor.running)}" if actor.running else "idle"
        where = f" on {node_name(actor.node)}" if actor.node else ""
        queue = f"; {actor.queued} calls wait for their turn" if actor.queued else ""
        yield from _wrapped(f"{number(actor.id)} {actor.name}: {actor.state}{where}, {runs}{queue}", "  ", "      ")
    yield from _rest(dump.actors)


def _streams(dump: Dump) -> Iterator[str]:
    if dump.streams:
        yield from ("", "STREAMS")
    for stream in dump.streams[:_SHOWN]:
        paused = "paused, " if stream.paused else ""
        text = f"{number(stream.id)} {stream.name}: {paused}{stream.unread} of at most {stream.buffer} items unread"
        yield from _wrapped(f"{text}, read by {stream.reader}", "  ", "      ")
    yield from _rest(dump.streams)


def _reservations(dump: Dump) -> Iterator[str]:
    if dump.reservations:
        yield from ("", "RESERVATIONS")
    for one in dump.reservations[:_SHOWN]:
        state = "held" if one.held else "waits for room"
        text = f"{number(one.id)} of {one.owner}: {state}: {'; '.join(one.bundles)}"
        yield from _wrapped(text, "  ", "      ")
    yield from _rest(dump.reservations)


def _nodes(dump: Dump) -> Iterator[str]:
    if dump.nodes:
        yield from ("", "WHAT IS LEFT, AND WHO HOLDS THE REST")
    for node in dump.nodes:
        lost = "" if node.alive else ", lost"
        yield from _wrapped(f"node {node.id} ({node.host}{lost}): {', '.join(node.left)}", "  ", "      ")
        for holder in node.holders[:_SHOWN]:
            yield from _wrapped(holder, "      ", "        ")
        yield from _rest(node.holders, "      ")


def _rest(items: Sequence[object], indent: str = "  ") -> Iterator[str]:
    if len(items) > _SHOWN:
        yield f"{indent}... and {len(items) - _SHOWN} more"


def _workers(dump: Dump) -> Iterator[str]:
    if dump.workers:
        yield from ("", "WORKERS (the most recent call comes first)")
    idle = [worker for worker in dump.workers if not worker.runs and not worker.status]
    for worker in dump.workers:
        if worker in idle:
            continue
        runs = f"runs {', '.join(worker.runs)}" if worker.runs else "idle"
        status = f"; {worker.status}" if worker.status else ""
        who = f"process {worker.pid}" if worker.pid is not None else "a process that has just been asked for"
        yield from _wrapped(f"{who} on {node_name(worker.node)}: {runs}{status}", "  ", "      ")
        yield from _stacks(worker.threads, "    ")
    if idle:
        pids = ", ".join(str(worker.pid) for worker in idle)
        yield from _wrapped(f"idle: process{'es' if len(idle) > 1 else ''} {pids}", "  ", "      ")


def _threads(dump: Dump) -> Iterator[str]:
    if not dump.threads:
        return
    yield ""
    yield f"THREADS OF PROCESS {dump.pid} (the most recent call comes first)"
    yield from _stacks(dump.threads, "  ")


def stacks_as_text(threads: Sequence[ThreadStack]) -> list[str]:
    """Write the stacks of the threads of one process."""
    return list(_stacks(threads, "  "))


def _stacks(threads: Sequence[ThreadStack], indent: str) -> Iterator[str]:
    for thread in threads:
        count = _interesting(thread)
        frames = [_shown(frame) for frame in thread.frames]
        runs = f" runs {thread.runs}" if thread.runs else ""
        if not count:
            yield _cut(f"{indent}thread {_name(thread)}{runs}: {_innermost(frames)}")
            continue
        yield f"{indent}thread {_name(thread)}{runs}"
        shown = min(count, _FRAMES)
        for frame in frames[:shown]:
            yield _cut(f"{indent}  {frame}")
        if len(frames) > shown:
            yield f"{indent}  ... {len(frames) - shown} outer calls"


def _name(thread: ThreadStack) -> str:
    return thread.name or f"{thread.ident:#x}"


def _shown(frame: str) -> str:
    short = shortened(frame)
    for folder in _INSTALLED:
        short = short.rpartition(folder)[2] or short
    return short


def _interesting(thread: ThreadStack) -> int:
    """Count the frames up to the outermost of the program's own; in threads that matter, those of libraries count."""
    own = _up_to_outermost(thread.frames, lambda frame: not (_is_ours(frame) or _is_installed(frame)))
    matters = thread.waits_for or thread.runs or any(_BODY in frame for frame in thread.frames)
    return own or (_up_to_outermost(thread.frames, lambda frame: not _is_ours(frame)) if matters else 0)


def _up_to_outermost(frames: Sequence[str], counts: Callable[[str], bool]) -> int:
    return next((index for index in range(len(frames), 0, -1) if counts(frames[index - 1])), 0)


def _is_installed(frame: str) -> bool:
    return any(folder in frame for folder in _INSTALLED)


def _is_ours(frame: str) -> bool:
    return (frame.startswith(_STANDARD) and not _is_installed(frame)) or _shown(frame).startswith(_OWN)


def _innermost(frames: Sequence[str]) -> str:
    """Give the place in polyexec where one of its own threads is."""
    return next((frame for frame in frames if frame.startswith(_OWN[:2])), frames[0] if frames else "no Python frame")


def _wrapped(text: str, first: str, later: str) -> Iterable[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=later, break_long_words=False, break_on_hyphens=False
    )


def _cut(line: str) -> str:
    """Shorten a line in the middle of its path, whose end says more than its beginning."""
    if len(line) <= WIDTH:
        return line
    indent = len(line) - len(line.lstrip())
    return f"{line[:indent]}...{line[len(line) - WIDTH + indent + 3 :]}"

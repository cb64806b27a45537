"""The clauses of the contract, by number and in short; ``docs/reference`` has them in full."""

from __future__ import annotations

import re

CHAPTERS = {
    "S": "Submit",
    "W": "Wait",
    "C": "Cancel",
    "R": "Resources and scheduling",
    "O": "Objects and memory",
    "F": "Failure",
    "N": "Nested work",
    "A": "Actors",
    "G": "Streams",
    "D": "Environment",
    "E": "Events",
    "M": "Map",
}

CLAUSES = {
    "S1": "submit returns at once with a Future",
    "S2": "arguments are taken as they are at submit",
    "S3": "lambdas, closures and what `__main__` defines can be submitted",
    "S4": "what cannot be serialised is refused by submit, culprit named",
    "S5": "a Future as an argument is replaced by its value",
    "S6": "a failed dependency fails its dependents, which never run",
    "S7": "options never collide with the function's keyword arguments",
    "S8": "submit is safe from threads, callbacks and tasks",
    "S9": "submit after close raises ExecutorClosed",
    "S10": "a task carries its name",
    "S11": "num_returns gives as many Futures",
    "S12": "an unawaited failure is reported once",
    "S13": "every call runs; a returned exception is a value",
    "S14": "any callable goes",
    "S15": "which backend runs, and who chose it, is said",
    "S16": "dropping a Future cancels nothing; a raising callback harms nothing",
    "W1": "wait splits its input, in order",
    "W2": "a wait's timeout returns what is done",
    "W3": "duplicates count once; foreign things raise",
    "W4": "as_completed yields in completion order, in O(n)",
    "W5": "result(timeout) leaves the task running",
    "W6": "waiting works from threads, callbacks, tasks and asyncio",
    "W7": "Ctrl-C interrupts any wait",
    "C1": "a cancelled task that has not started never runs",
    "C2": "a running task is interrupted, its finally blocks run",
    "C3": "force ends a task whatever it does, and no other",
    "C4": "cancelling a finished task changes nothing",
    "C5": "recursive cancels what the task had submitted",
    "C6": "dependents of a cancelled task are cancelled",
    "C7": "what a cancelled task held is available again",
    "C8": "cancel tells the truth",
    "C9": "a race of cancel and completion has one outcome",
    "R1": "running tasks never hold more than there is",
    "R2": "fractions work; cpus=0 takes none",
    "R3": "what no node could ever meet is refused by submit",
    "R4": "resources() gives total and available, in all and by node",
    "R5": "tasks on one node see disjoint GPUs",
    "R6": "a task that waits lends its cpus",
    "R7": "no starvation",
    "R8": "equals start in order of submission; priority overrides",
    "R9": "a long task does not hold back short ones",
    "R10": "BLAS and OpenMP use as many threads as the task has cpus",
    "R11": "reserve takes all its bundles or none",
    "R12": "strategy, node and labels place tasks",
    "O1": "put once, use many",
    "O2": "arrays from an object are read-only",
    "O3": "reading a shared array copies nothing",
    "O4": "large arguments and results take the same road",
    "O5": "a value's memory is back when its last Future goes",
    "O6": "values beyond the store's limit spill and come back",
    "O7": "a lost value is made again, or named",
    "O8": "any buffer travels out of band",
    "F1": "an exception keeps type, args, attributes, notes and cause",
    "F2": "what cannot be rebuilt arrives as RemoteError",
    "F3": "a dying worker fails exactly its task",
    "F4": "sys.exit and BaseExceptions fail their task alone",
    "F5": "a body starts once; retries re-run it",
    "F6": "timeout ends the task",
    "F7": "an unserialisable result fails its task, culprit named",
    "F8": "a killed driver leaves nothing",
    "F9": "close waits, an exception cancels; nothing is left",
    "F10": "a lost cluster fails every pending Future",
    "F11": "a task that outgrows its memory is ended",
    "F12": "hostile values fail their task alone, with capped text",
    "F13": "a worker killed when idle, starting or writing costs at most its task",
    "F14": "workers that cannot start give BackendBroken",
    "F15": "a forked child gets ForkedExecutor",
    "F16": "what a task started dies with its killed worker",
    "N1": "tasks wait for tasks to any depth with one worker",
    "N2": "a wait that can never end raises DeadlockError",
    "N3": "a Future made in a task stays good",
    "A1": "one method at a time, in the callers' order",
    "A2": "state lives from call to call",
    "A3": "handles can be passed on",
    "A4": "an exception in a method fails that call only",
    "A5": "calls to a dead actor fail; restarts bring it back",
    "A6": "an actor ends with its last handle",
    "A7": "an actor holds its resources",
    "G1": "items arrive before the task ends",
    "G2": "at most `buffer` items wait unread",
    "G3": "an error arrives after its items; closing stops the generator",
    "D1": "env, working_dir and py_modules reach the task",
    "D2": "what a task prints reaches the driver",
    "D3": "a worker of another version is refused",
    "E1": "each task's states are available",
    "E2": "the engine's dashboard is named",
    "E3": "watching costs nothing when off",
    "M1": "map is ordered, lazy and bounded",
    "M2": "a slow item does not hold back others",
    "M3": "an error stops the iteration at its place",
}


def sort_key(name: str) -> tuple[int, int]:
    """Give the key that sorts clauses as the contract has them.

    Args:
        name: a clause, for example ``"C3"``.

    Returns:
        The place of its chapter, and its number.

    Raises:
        ValueError: no such clause.
    """
    match = re.fullmatch(r"([A-Z])(\d+)", name)
    if match is None or match[1] not in CHAPTERS:
        raise ValueError(f"{name!r} is not a clause of the contract")
    return list(CHAPTERS).index(match[1]), int(match[2])

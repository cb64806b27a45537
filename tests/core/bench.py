"""A scheduler by itself, with a clock that stands still until it is told to go on."""

from __future__ import annotations

from polyexec.ledger import Need, need_of
from polyexec.options import Resources
from polyexec.records import Action, Answer, Ending, EndWait, Halt, Settle, Start, Task, Wait, Wake
from polyexec.scheduler import Scheduler
from polyexec.spi import Node
from polyexec.stored import Tag

CPU = need_of(Resources(1))


class Bench:
    """A scheduler on one node."""

    def __init__(self, cpus: float = 2, *, slots: int | None = None, queue_limit: int = 0, **total: float) -> None:
        self.now = 0.0
        self.scheduler = Scheduler(lambda: self.now, lambda: 1.0, queue_limit=queue_limit)
        gpus, memory = total.pop("gpus", 0), int(total.pop("memory", 0))
        self.scheduler.ledger.update([Node("node", "host", Resources(cpus, gpus, memory, total), slots)])
        self.seen: list[Action] = []

    def add(self, task_id: int, need: Need = CPU, **options: object) -> None:
        self.scheduler.submit(Task(task_id, f"task {task_id}", need, **options))  # type: ignore[arg-type]

    def go(self, seconds: float = 0.0) -> list[Action]:
        """Let the clock go on and the scheduler decide; give what it wants to be done."""
        self.now += seconds
        self.scheduler.timers.run_due()
        self.scheduler.schedule()
        found = list(self.scheduler.actions)
        self.scheduler.actions.clear()
        self.seen += found
        return found

    def started(self) -> list[int]:
        return [action.task for action in self.go() if isinstance(action, Start)]

    def call(self, task_id: int) -> int:
        call = self.scheduler.tasks[task_id].call
        assert call is not None
        return call

    def finish(self, task_id: int, tag: Tag = Tag.VALUE, *, retryable: bool = False) -> None:
        self.scheduler.finished(self.call(task_id), tag, retryable=retryable)

    def wait(self, wait_id: int, task_id: int, *values: int, main: bool = True, timeout: float | None = None) -> None:
        self.scheduler.wait(Wait(wait_id, self.call(task_id), set(values), len(values), main), timeout)

    def cancel(self, task_id: int, *, force: bool = False, recursive: bool = False, running: bool = True) -> None:
        token = f"cancel {task_id}"
        self.scheduler.cancel(task_id, force=force, recursive=recursive, running=running, token=token)

    def ending(self, task_id: int) -> Ending | None:
        self.go()
        found = [action.ending for action in self.seen if isinstance(action, Settle) and action.task == task_id]
        assert len(found) <= 1
        return found[0] if found else None

    def answers(self) -> list[bool]:
        self.go()
        return [action.value for action in self.seen if isinstance(action, Answer) and action.token is not None]

    def wakes(self) -> dict[int, Wake]:
        self.go()
        return {action.wait: action.wake for action in self.seen if isinstance(action, EndWait)}

    def halts(self) -> list[bool]:
        self.go()
        return [action.force for action in self.seen if isinstance(action, Halt)]

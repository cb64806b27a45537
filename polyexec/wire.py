"""What driver and workers of one executor tell each other besides values, and the check that they match."""

from __future__ import annotations

import enum
import pickle
import struct
import sys
from collections.abc import Mapping
from typing import Any

import attrs

import polyexec
from polyexec.errors import BackendBroken
from polyexec.options import Resources
from polyexec.packages import Packages
from polyexec.placement import Placement
from polyexec.redaction import names_only


@attrs.frozen
class Slot:
    """Stands in serialised arguments for the value of a dependency."""

    index: int


PROBE = ""
"""Name of a method that every actor has: that it can be called is all that is asked."""


class Role(enum.Enum):
    """What the body of a task does besides to run and give a value."""

    TASK = "task"
    ACTOR = "actor"
    """It runs methods until it is told to end."""
    STREAM = "stream"
    """It gives values while it runs, and waits for those who read them."""


@attrs.frozen
class TaskSpec:
    """What the driver must know about a task; made where it is submitted.

    Attributes:
        name: the task's name.
        function: identifies its function, for estimates.
        request: what it holds while it runs.
        dependencies: ids of the values that its arguments stand for.
        references: ids of the values that it may come to use otherwise.
        num_returns: number of values.
        priority: a higher one starts first.
        retries: how often it may run again.
        retry_on: serialised exception types, None for none.
        retry_timeout: ``TaskTimeout``, which only the driver sees, is among these types.
        retry: the caller's hook, or its serialised form, or None.
        timeout: seconds that one attempt may run.
        env: environment variables.
        patient: wait for a node that does not exist yet.
        role: what its body does.
        placement: where it must run, None if it may anywhere.
        packages: what was sent along with it; the values that hold it are the last of its dependencies.
        buffer: how many of its items may wait unread, if it is a stream.
        width: how many calls of methods it runs at the same time, if it is an actor; else 0.
        actor: id of the actor of which it calls a method.
    """

    name: str
    function: str
    request: Resources
    dependencies: tuple[int, ...]
    references: tuple[int, ...]
    num_returns: int
    priority: float
    retries: int
    retry_on: bytes | None
    retry_timeout: bool
    retry: Any
    timeout: float | None
    env: Mapping[str, str] = attrs.field(repr=names_only)
    patient: bool
    role: Role = Role.TASK
    placement: Placement | None = None
    packages: Packages | None = None
    buffer: int = 0
    width: int = 0
    actor: int | None = None


@attrs.frozen
class GangSpec:
    """What the driver must know about a reservation.

    Attributes:
        bundles: what each of them has.
        strategy: how they share nodes; see ``polyexec.gangs``.
        placement: what all their nodes must be like, None for any.
        priority: a higher one gets its bundles first.
        patient: wait for nodes that do not exist yet.
    """

    bundles: tuple[Resources, ...]
    strategy: str
    placement: Placement | None
    priority: float
    patient: bool


_LENGTH = struct.Struct("<H")


def stamp() -> str:
    """Give the versions that driver and workers must share: Python's up to the minor, and polyexec's."""
    return f"Python {sys.version_info[0]}.{sys.version_info[1]}, polyexec {polyexec.__version__}"


def sealed(data: bytes) -> bytes:
    """Put this side's versions before some bytes."""
    mark = stamp().encode()
    return _LENGTH.pack(len(mark)) + mark + data


def unsealed(data: bytes, host: str) -> memoryview:
    """Check the versions before some bytes, and give the bytes.

    Args:
        data: what ``sealed`` gave on the other side.
        host: where this side runs, for the error.

    Returns:
        The bytes that were sealed.

    Raises:
        BackendBroken: the two sides do not match; names both.
    """
    (length,) = _LENGTH.unpack_from(data)
    theirs, ours = data[2 : 2 + length].decode(), stamp()
    if theirs != ours:
        raise BackendBroken(
            f"a worker on {host} runs {ours}, but the driver runs {theirs}: install the same versions on both"
        )
    return memoryview(data)[2 + length :]


@attrs.frozen
class Setup:
    """What a worker process must know before its first call.

    Attributes:
        executor_id: which executor it works for.
        sys_path: the driver's import path.
        working_directory: the driver's; used if it exists on the worker.
        initializer: serialised function to call once, or None.
        exclusive: one body at a time runs in the process, so that it may change what belongs to the process.
        inline: bodies run in the thread that submits them.
        driver: host and process id of the driver.
        log_to_driver: what tasks print goes to the driver.
        in_place: tasks use folders and modules where they are, instead of copies.
    """

    executor_id: str
    sys_path: tuple[str, ...]
    working_directory: str
    initializer: bytes | None
    exclusive: bool
    inline: bool
    driver: str
    log_to_driver: bool = False
    in_place: bool = False

    def encode(self) -> bytes:
        """Give sealed bytes."""
        return sealed(pickle.dumps(attrs.astuple(self, recurse=False)))

    @staticmethod
    def decode(data: bytes, host: str) -> Setup:
        """Read sealed bytes; raises ``BackendBroken`` if the versions differ."""
        return Setup(*pickle.loads(unsealed(data, host)))


@attrs.frozen
class Attempt:
    """What the envelope must know about one attempt to run a task.

    Attributes:
        call_id: the attempt.
        task_id: the task.
        number: 1 for the first attempt.
        name: the task's name.
        threads: size of the thread pools of BLAS and OpenMP.
        env: environment variables.
        gpu_ids: accelerators to make visible, None to leave that as it is.
        items: for each value, which item of it is meant, None for all of it.
        num_returns: number of values that the function must return.
        retry_on: serialised exception types after which the task may run again, None for none.
        announce: say when the body starts.
        packages: what was sent along with the task; the last of the values hold it.
    """

    call_id: int
    task_id: int
    number: int
    name: str
    threads: int
    env: Mapping[str, str] = attrs.field(repr=names_only)
    gpu_ids: tuple[str, ...] | None
    items: tuple[int | None, ...]
    num_returns: int
    retry_on: bytes | None
    announce: bool
    packages: Packages | None = None

    def encode(self) -> bytes:
        """Give bytes; the versions are checked once, with the setup."""
        return pickle.dumps(_fields(self))

    @staticmethod
    def decode(data: bytes) -> Attempt:
        """Read what ``encode`` gave."""
        return Attempt(*pickle.loads(data))


def _fields(attempt: Attempt) -> tuple[Any, ...]:
    return tuple(getattr(attempt, name) for name in _NAMES)


_NAMES = tuple(field.name for field in attrs.fields(Attempt))

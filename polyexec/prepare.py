"""From a call of ``submit`` to a specification and bytes; the same in the driver and in tasks."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import cloudpickle

from polyexec import payload
from polyexec.errors import SpecificationError, TaskTimeout
from polyexec.future import Future
from polyexec.options import DEFAULT_OPTIONS, Resources, TaskOptions
from polyexec.packages import Packages
from polyexec.payload import Reference
from polyexec.placement import placement_of
from polyexec.session import Entry
from polyexec.stored import Stored
from polyexec.wire import Role, Slot, TaskSpec

ASYNC_WIDTH = 1000
"""How many calls of an actor with ``async`` methods run at the same time by default, as in Ray."""

_NOTHING = Resources()


@attrs.frozen(eq=False)
class Prepared:
    """A task that is ready to be handed to the driver.

    Attributes:
        spec: what the driver must know.
        body: function and arguments, with ``Slot`` in place of dependencies.
        call: the same, not serialised.
    """

    spec: TaskSpec
    body: Stored
    call: tuple[Any, ...]


def prepare_task(
    executor_id: str,
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    options: TaskOptions,
    *,
    snapshot: bool,
    keep_hook: bool,
    role: Role = Role.TASK,
    packages: Packages | None = None,
) -> Prepared:
    """Serialise a call.

    Args:
        executor_id: the executor that shall run it.
        function: what to call.
        args: its positional arguments.
        kwargs: its keyword arguments.
        options: of the call.
        snapshot: copy buffers that the caller may change.
        keep_hook: leave the retry hook as it is, because the driver is here.
        role: what its body does.
        packages: what is sent along with it.

    Returns:
        The task.

    Raises:
        SerializationError: function, arguments or options cannot be serialised (S4).
        SpecificationError: what is given is not callable, or a Future belongs to another executor.
    """
    if not callable(function):
        raise SpecificationError(f"submit takes a function and its arguments, but {function!r} is not callable")
    name = options.name or function_name(function)
    assert packages is not None or (options.working_dir is None and not options.py_modules), "nothing was shipped"
    call, dependencies = _with_slots(executor_id, function, args, kwargs)
    body, references = _dumped(executor_id, name, call, lambda: roots(function, args, kwargs), snapshot=snapshot)
    spec = _spec(name, function, options, dependencies, references, keep_hook)
    if role is not Role.TASK or packages is not None:
        needed = (*spec.dependencies, *(packages.values if packages is not None else ()))
        spec = attrs.evolve(spec, role=role, packages=packages, dependencies=needed, buffer=options.buffer)
    return Prepared(spec, body, call)


def prepare_actor(
    executor_id: str,
    cls: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    options: TaskOptions,
    *,
    snapshot: bool,
    packages: Packages | None = None,
) -> Prepared:
    """Serialise a class and the arguments of its constructor; see ``prepare_task``."""
    from polyexec.actor_host import ActorBody
    from polyexec.actor_methods import is_async

    for name in ("retries", "retry_on", "retry", "timeout", "num_returns"):
        if getattr(options, name) != getattr(DEFAULT_OPTIONS, name):
            hint = "; an actor comes back with restarts=" if name == "retries" else ""
            raise SpecificationError(f"{name}= is for tasks and methods, not for actors{hint}")
    width = options.concurrency or (ASYNC_WIDTH if is_async(cls) else 1)
    chosen = attrs.evolve(
        options, name=options.name or cls.__name__, retries=options.restarts, restarts=0, concurrency=None
    )
    body = ActorBody(cls, width)
    task = prepare_task(
        executor_id,
        body,
        args,
        kwargs,
        chosen,
        snapshot=snapshot,
        keep_hook=False,
        role=Role.ACTOR,
        packages=packages,
    )
    return attrs.evolve(task, spec=attrs.evolve(task.spec, width=width))


def prepare_method(
    executor_id: str,
    actor: Entry,
    method: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    options: TaskOptions,
    *,
    snapshot: bool,
) -> Prepared:
    """Serialise a call of a method; see ``prepare_task``."""
    name = options.name or f"{actor.name}.{method or '__init__'}"
    call, dependencies = _with_slots(executor_id, method, args, kwargs)
    body, references = _dumped(executor_id, name, call, lambda: roots(None, args, kwargs)[1:], snapshot=snapshot)
    spec = TaskSpec(
        name,
        name,
        _NOTHING,
        tuple(dependencies),
        # The actor lives at least until the call has ended.
        (actor.id, *references),
        options.num_returns,
        0,
        0,
        None,
        False,
        None,
        options.timeout,
        {},
        True,
        actor=actor.id,
    )
    return Prepared(spec, body, call)


def function_name(function: Callable[..., Any]) -> str:
    """Give a name to a callable."""
    while hasattr(function, "func") and not hasattr(function, "__name__"):
        function = function.func
    return str(getattr(function, "__name__", None) or type(function).__name__)


def _with_slots(
    executor_id: str, called: object, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], list[int]]:
    """Put ``Slot`` in place of the Futures of a call, and give the values that they stand for."""
    dependencies: list[int] = []
    call = (
        called,
        tuple(_slotted(executor_id, argument, dependencies) for argument in args),
        {key: _slotted(executor_id, argument, dependencies) for key, argument in kwargs.items()},
    )
    return call, dependencies


def _dumped(
    executor_id: str,
    name: str,
    call: tuple[Any, ...],
    parts: Callable[[], list[tuple[str, Any]]],
    *,
    snapshot: bool,
) -> tuple[Stored, tuple[int, ...]]:
    """Serialise a call, and give the values that it refers to; ``parts`` names what it is made of if that fails."""
    references: list[Reference] = []
    try:
        body = payload.dump(call, references, snapshot=snapshot)
    except Exception as error:
        raise payload.serialization_error("argument", name, parts(), error) from error
    return body, _ids(executor_id, references)


def _slotted(executor_id: str, argument: Any, dependencies: list[int]) -> Any:
    if not isinstance(argument, Future):
        return argument
    dependencies += _ids(executor_id, [argument])
    return Slot(len(dependencies) - 1)


def _ids(executor_id: str, references: Sequence[Reference]) -> tuple[int, ...]:
    for reference in references:
        if isinstance(reference, Future) and reference.executor_id != executor_id:
            raise SpecificationError(f"{reference!r} belongs to another executor and cannot be used by this one")
    return tuple(reference.reference_id for reference in references)


def roots(function: Callable[..., Any] | None, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Give names and values of what a call is made of, for errors."""
    positional = [(f"argument {index}", argument) for index, argument in enumerate(args)]
    named = [(f"argument {key!r}", argument) for key, argument in kwargs.items()]
    return [("the function", function), *positional, *named]


def _spec(
    name: str,
    function: Callable[..., Any],
    options: TaskOptions,
    dependencies: Sequence[int],
    references: tuple[int, ...],
    keep_hook: bool,
) -> TaskSpec:
    if options.restarts or options.concurrency is not None:
        raise SpecificationError("restarts= and concurrency= are for actors; a task runs again with retries=")
    retry_on = _serialized("retry_on", name, options.retry_on) if options.retry_on else None
    hook = options.retry if keep_hook or options.retry is None else _serialized("retry", name, (options.retry, options))
    return TaskSpec(
        name,
        f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', name)}",
        options.request,
        tuple(dependencies),
        references,
        options.num_returns,
        options.priority,
        options.retries,
        retry_on,
        any(issubclass(TaskTimeout, kind) for kind in options.retry_on),
        hook if hook is None or not keep_hook else (hook, options),
        options.timeout,
        dict(options.env),
        options.infeasible == "wait",
        placement=placement_of(options),
    )


def revised(spec: TaskSpec, options: TaskOptions) -> TaskSpec:
    """Give what the driver must know about a task whose options have changed.

    Args:
        spec: what it knew before.
        options: the options now.

    Returns:
        What it must know from now on.

    Raises:
        SerializationError: an option cannot be serialised.
    """
    changed = _spec(options.name or spec.name, revised, options, spec.dependencies, spec.references, keep_hook=True)
    return attrs.evolve(changed, function=spec.function, role=spec.role, packages=spec.packages)


def _serialized(option: str, name: str, value: Any) -> bytes:
    try:
        data: bytes = cloudpickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        raise payload.serialization_error("argument", name, [(f"option {option!r}", value)], error) from error
    return data

"""Actors as their callers see them: handles, and the methods that they give."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from polyexec.errors import SpecificationError
from polyexec.future import Future
from polyexec.options import DEFAULT_OPTIONS, TaskOptions

if TYPE_CHECKING:
    from polyexec.session import Session

_SHOWN = 12
_METHOD_OPTIONS = frozenset({"name", "num_returns", "timeout"})


class ActorHandle:
    """Calls the methods of an actor, from anywhere: drivers, tasks, other actors, the actor itself.

    ``handle.method(...)`` gives a Future, as ``Executor.submit`` does. Thread-safe. Handles are equal if they are of
    the same actor; they can be passed on and returned, alone or inside containers. When the last one goes the actor
    ends, once it has done what was asked of it before (A6). A method that is called as something here, ``name`` for
    example, cannot be reached.
    """

    __slots__ = ("_future", "_methods")

    def __init__(self, future: Future[None], methods: frozenset[str] | None) -> None:
        self._future = future
        self._methods = methods

    @property
    def name(self) -> str:
        """Name of the actor: the class's, or what ``options(name=...)`` has said."""
        return self._future.name

    def __getattr__(self, name: str) -> Method:
        # What is a slot here and is asked for so is not set yet, and asking for more would never end.
        refused = name in self.__slots__ or (name.startswith("__") and name.endswith("__"))
        if refused or (self._methods is not None and name not in self._methods):
            raise AttributeError(self._refusal(name))
        return Method(self, name, DEFAULT_OPTIONS)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActorHandle) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def __repr__(self) -> str:
        return f"<polyexec.ActorHandle {self._future.reference_id} of {self.name!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return ActorHandle, (self._future, self._methods)

    def _refusal(self, name: str) -> str:
        if name in self.__slots__:
            return name
        public = sorted(method for method in self._methods or () if not method.startswith("_"))
        shown = ", ".join(public[:_SHOWN]) + (", ..." if len(public) > _SHOWN else "")
        return f"the class of actor {self.name!r} has no method {name!r} that can be called; it has {shown or 'none'}"

    def _identity(self) -> tuple[str, int]:
        return self._future.executor_id, self._future.reference_id


class Method:
    """A method of an actor; calling it gives a Future at once (``serial`` runs it first)."""

    __slots__ = ("_handle", "_name", "_options")

    def __init__(self, handle: ActorHandle, name: str, options: TaskOptions) -> None:
        self._handle = handle
        self._name = name
        self._options = options

    def __getattr__(self, name: str) -> Any:
        if name in self.__slots__ or name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(
            f"the method {self._name!r} of an actor has no attribute {name!r}: call it, {self._name}(...), for a Future"
        )

    def options(self, **changes: Any) -> Method:
        """Give this method with other options for its calls.

        Args:
            **changes: ``name``, ``num_returns`` or ``timeout``, which interrupts the call; see ``TaskOptions``.

        Returns:
            The method.

        Raises:
            SpecificationError: an option is unknown, not for methods, or a value is wrong.
        """
        refused = sorted(changes.keys() - _METHOD_OPTIONS)
        if refused:
            raise SpecificationError(
                f"{refused[0]!r} is no option of a method; valid are {', '.join(sorted(_METHOD_OPTIONS))}. "
                "What an actor holds is chosen when it is made"
            )
        return Method(self._handle, self._name, self._options.evolve(**changes))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method.

        Args:
            *args: Futures among them are dependencies, and are replaced by their values.
            **kwargs: the same.

        Returns:
            A Future; with ``num_returns=n`` a list of n Futures.

        Raises:
            SerializationError: something cannot be serialised.
            ExecutorClosed: the executor has been closed.
        """
        future = self._handle._future
        session, entry = future._here()
        entries = session.call_actor(entry, self._name, args, kwargs, self._options)
        futures: list[Future[Any]] = [Future(session, one) for one in entries]
        return futures[0] if self._options.num_returns == 1 else futures


def create(session: Session, cls: Callable[..., Any], args: Any, kwargs: Any, options: TaskOptions) -> ActorHandle:
    """Make an actor; see ``Executor.actor``."""
    from polyexec.actor_methods import members

    if not isinstance(cls, type):
        raise SpecificationError(f"actor takes a class and the arguments of its constructor, not {cls!r}")
    found = dict(members(cls))
    # A class may make up its methods as they are asked for.
    is_open = "__getattr__" in found or found["__getattribute__"] is not object.__dict__["__getattribute__"]
    methods = frozenset(name for name, value in found.items() if not name.startswith("__") and _is_method(value))
    future: Future[None] = Future(session, session.make_actor(cls, args, kwargs, options))
    return ActorHandle(future, None if is_open else methods)


def _is_method(value: Any) -> bool:
    """Tell methods, of any kind, from what is kept: properties and slots have a way to be set."""
    if isinstance(value, type) or not hasattr(value, "__get__"):
        return callable(value)
    return not hasattr(value, "__set__")

"""The executor: what users hold, whatever the backend, in the driver and in tasks."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Generator, Iterable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from polyexec import actor as actors_module
from polyexec import future as futures_module
from polyexec import mapping
from polyexec.actor import ActorHandle
from polyexec.errors import SpecificationError
from polyexec.future import Future, check_timeout, entries_of
from polyexec.options import DEFAULT_OPTIONS, OPTION_NAMES, Resources, TaskOptions
from polyexec.prepare import function_name
from polyexec.progress import length_of, report_for
from polyexec.session import ClusterResources, Info, Session, session_for, session_here, task_session
from polyexec.stream import Stream
from polyexec.stream_source import StreamBody

if TYPE_CHECKING:
    from polyexec.dump import Dump
    from polyexec.events import EventStream
    from polyexec.recording import Recorder
    from polyexec.reservation import Reservation
    from polyexec.security import SecurityReport
    from polyexec.statistics import Stats

P = ParamSpec("P")
T = TypeVar("T")


class Executor:
    """Runs functions on a backend. Made by ``connect``, and by ``current`` in tasks.

    All methods may be called from any thread. Use it as a context manager: at the end of the block it waits for its
    tasks; if an exception leaves the block it cancels them.
    """

    def __init__(
        self, session: Session, options: TaskOptions = DEFAULT_OPTIONS, *, chosen: frozenset[str] = frozenset()
    ):
        self._session = session
        self._options = options
        self._chosen = chosen

    @property
    def info(self) -> Info:
        """What runs the tasks, and what chose it (S15)."""
        return self._session.info

    def options(self, **changes: Any) -> Executor:
        """Give a view of this executor with other options for what is submitted through it.

        Args:
            **changes: see ``TaskOptions``.

        Returns:
            The view; it shares everything else with this executor, so that to close one closes both.

        Raises:
            SpecificationError: an option is unknown, or a value is wrong.
        """
        return Executor(self._session, self._options.evolve(**changes), chosen=self._chosen | changes.keys())

    def submit(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run a function on a worker.

        Returns at once, except on a backend that runs tasks inline (S1). Arguments are taken as they are now (S2).
        Futures among the arguments are replaced by their values on the worker (S5).

        Args:
            function: any callable that can be serialised.
            *args: its arguments.
            **kwargs: its keyword arguments; options never collide with them (S7).

        Returns:
            A Future for what the function returns; with ``num_returns=n`` a list of n Futures (S11).

        Raises:
            SerializationError: something cannot be serialised (S4).
            InfeasibleResources: no node could ever meet the request (R3).
            ExecutorClosed: the executor has been closed (S9).
            BackendBroken: the backend cannot start workers.
            BackendLost: the engine is gone.
        """
        session = self._here()
        options = self._options_for(function)
        entries = session.submit(function, args, kwargs, options)
        if options.num_returns == 1:
            return Future(session, entries[0])
        return [Future(session, entry) for entry in entries]  # type: ignore[return-value]  # S11

    def actor(self, cls: Callable[..., Any], /, *args: Any, **kwargs: Any) -> ActorHandle:
        """Start an actor: an instance of a class that lives in a worker, and keeps its state from call to call.

        Returns at once, except on a backend that runs tasks inline. While it lives it holds what its options say (A7),
        by default no cpu; ``restarts`` and ``concurrency`` are for actors alone. It ends when its last handle goes, by
        ``kill``, or at close (A6).

        Args:
            cls: any class.
            *args: arguments of its constructor; Futures among them are replaced by their values.
            **kwargs: its keyword arguments.

        Returns:
            A handle, on which methods can be called at once; if the constructor fails, each call fails with its error.

        Raises:
            SpecificationError: this is no class, or an option is not for actors.
            SerializationError: something cannot be serialised.
            InfeasibleResources: no node could ever hold it.
            ExecutorClosed: the executor has been closed.
        """
        options = self._options_for(cls)
        own = getattr(cls, "__polyexec_options__", {})
        if "cpus" not in self._chosen and "cpus" not in own:
            options = options.evolve(cpus=0)
        return actors_module.create(self._here(), cls, args, kwargs, options)

    def kill(self, handle: ActorHandle) -> bool:
        """End an actor at once, whatever it does; it is not restarted (A6).

        Calls that have not ended, and later ones, fail with ``ActorDied`` (A5). Blocks until it is known whether that
        worked, about a second at most.

        Args:
            handle: of the actor.

        Returns:
            False if it had ended already.

        Raises:
            SpecificationError: this is no handle of this executor.
        """
        session = self._here()
        if not isinstance(handle, ActorHandle):
            raise SpecificationError(f"kill takes the handle of an actor, not {handle!r}; cancel stops tasks")
        if handle._future.executor_id != session.executor_id:
            raise SpecificationError(f"{handle!r} belongs to another executor")
        return session.kill(entries_of(session, [handle._future])[0])

    def put(self, value: T) -> Future[T]:
        """Store a value once, for use by many tasks.

        Args:
            value: anything that can be serialised; it is serialised once (O1), now.

        Returns:
            A Future that is done.

        Raises:
            SerializationError: it cannot be serialised.
            ExecutorClosed: the executor has been closed.
        """
        session = self._here()
        return Future(session, session.put(value))

    def wait(
        self, futures: Iterable[Future[T]], *, num_returns: int | None = None, timeout: float | None = None
    ) -> tuple[list[Future[T]], list[Future[T]]]:
        """Wait until Futures are done.

        Args:
            futures: of this executor; one that is given twice counts once, at its first place (W3).
            num_returns: how many to wait for; None for all.
            timeout: seconds to wait at most; 0 polls (W2).

        Returns:
            Those that are done, at most ``num_returns``, and the others; both in the order given (W1).

        Raises:
            SpecificationError: something is not a Future of this executor.
        """
        if num_returns is not None and (not isinstance(num_returns, int) or num_returns < 0):
            raise SpecificationError(f"num_returns= takes an integer that is not negative, not {num_returns!r}")
        check_timeout(timeout)
        return futures_module.wait(self._here(), list(futures), num_returns, timeout)

    def as_completed(self, futures: Iterable[Future[T]], *, timeout: float | None = None) -> Iterator[Future[T]]:
        """Give Futures as they are done.

        Args:
            futures: of this executor; each is given once.
            timeout: seconds until the last must be done.

        Returns:
            An iterator, in the order of completion (W4).

        Raises:
            SpecificationError: something is not a Future of this executor.
            TimeoutError: from the iterator, when the time is over.
        """
        check_timeout(timeout)
        return futures_module.as_completed(self._here(), list(futures), timeout)

    def cancel(self, future: Future[Any], *, force: bool = False, recursive: bool = True, running: bool = True) -> bool:
        """Stop the task that makes a Future.

        Blocks until it is known whether that worked, about a second at most.

        Args:
            future: of this executor.
            force: end the task whatever it does, by killing its worker where there is one (C3).
            recursive: cancel the tasks that it has submitted as well (C5).
            running: interrupt it if it runs; False leaves alone what a worker has: what runs, and short tasks that were
                handed to it ahead of their turn.

        Returns:
            True if the task will not run, or was interrupted; False if it was too late (C8).

        Raises:
            SpecificationError: this is not a Future of this executor.
        """
        session = self._here()
        if not isinstance(future, Future):
            raise SpecificationError(
                f"cancel takes a Future, not {future!r}; an actor is ended by kill, a stream by its own cancel"
            )
        return session.cancel(entries_of(session, [future])[0], force=force, recursive=recursive, running=running)

    def map(
        self,
        function: Callable[..., T],
        /,
        *iterables: Iterable[Any],
        ordered: bool = True,
        buffer: int | None = None,
        chunk_size: int | None = None,
        progress: bool | Callable[[int], object] | None = None,
        timeout: float | None = None,
    ) -> Generator[T, None, None]:
        """Apply a function to the items of iterables, which may be endless.

        Lazy: items are taken as results are consumed, at most ``buffer`` ahead (M1). Several items go in one task, as
        many as their measured duration suggests; a slow one does not hold back those behind it (M2). With ``retries``
        or ``timeout`` among the options each item is a task of its own; with ``chunk_size`` as well a chunk runs again,
        or fails, as a whole. A Future as an item stands for its value.

        Args:
            function: called with one item of each iterable.
            *iterables: the shortest ends the map.
            ordered: give results in the order of the items; otherwise as they come.
            buffer: the most items that are taken and not yet given back.
            chunk_size: items in one task, instead of measuring.
            progress: True for a bar on standard error if that is a terminal and ``rich`` is installed
                (``pip install "polyexec[progress]"``), and for lines there otherwise; or a function, called in this
                thread with the number of results so far. The whole is known if each iterable tells its length.
            timeout: seconds to wait for the next result.

        Returns:
            An iterator of results. An error is raised at its place and ends it; what is not needed any more is
            cancelled (M3), also when the iterator is closed.

        Raises:
            SpecificationError: an argument is wrong.
            TimeoutError: from the iterator, when the time is over.
        """
        if not callable(function):
            raise SpecificationError(f"map takes a function and iterables, but {function!r} is not callable")
        check_timeout(timeout)
        options = self._options_for(function)
        named = options.evolve(name=options.name or function_name(function), num_returns=1)
        # A chunk is one task: with retries its good items would run again, and they would share one time limit.
        single = 1 if options.retries or options.timeout is not None else None
        report = report_for(progress, str(named.name), length_of(iterables), at_terminal=task_session() is None)
        settings = mapping.Settings(ordered, buffer, single if chunk_size is None else chunk_size, report, timeout)
        view = Executor(self._session, named, chosen=OPTION_NAMES)
        divisible = not options.retries
        return mapping.run(view, function, iterables, settings, session=self._here(), divisible=divisible)

    def reserve(
        self,
        bundles: Iterable[Resources | Mapping[str, Any]],
        *,
        strategy: str = "pack",
        timeout: float | None = None,
    ) -> Reservation:
        """Take several bundles of resources at once, or none, for tasks that must run together (R11).

        Blocks until all are taken; meanwhile none is held. In a task it lends the task's cpus, as every wait does.
        What a task has reserved is given back when the task ends. ``priority``, ``infeasible``, ``node`` and
        ``labels`` among the options hold for the bundles.

        Args:
            bundles: amounts, each for one node: mappings with the keys ``cpus``, ``gpus``, ``memory`` and
                ``resources``, or ``Resources``.
            strategy: ``"pack"``: on as few nodes as there is room on; ``"spread"``: on as many; ``"strict_pack"``: on
                one; ``"strict_spread"``: each on a node of its own.
            timeout: seconds to wait at most; 0 takes what is there at once.

        Returns:
            The reservation, a context manager.

        Raises:
            TimeoutError: there was no room in time; nothing is held.
            InfeasibleResources: the nodes that there are could never meet it.
            DeadlockError: in a task: what it needs is held by tasks that wait.
            SpecificationError: a bundle or the strategy is wrong.
            ExecutorClosed: the executor has been closed.
        """
        from polyexec.reservation import reserve

        return reserve(self._session, self._options, self._chosen, bundles, strategy, timeout)

    def stream(
        self, function: Callable[..., Iterable[T] | AsyncIterable[T]], /, *args: Any, **kwargs: Any
    ) -> Stream[T]:
        """Run a generator on a worker, and give a Future for each item that it yields, as it yields it (G1).

        Returns at once. At most ``buffer`` items (an option) wait unread; the generator is paused meanwhile (G2), and
        lends its cpus as a task does that waits. Where tasks run inline it runs only while somebody waits for its next
        item. Options mean what they mean for tasks; ``timeout`` counts pauses, too, and the stream may run again
        (``retries``) only until its first item has arrived.

        Args:
            function: a generator function, an asynchronous one, or a function that returns an iterable.
            *args: its arguments, as for ``submit``.
            **kwargs: its keyword arguments.

        Returns:
            An iterator of Futures that are done. Leave it by ``close`` or ``with``: that stops the generator (G3).

        Raises:
            SerializationError: something cannot be serialised (S4).
            SpecificationError: ``num_returns`` is among the options.
            InfeasibleResources: no node could ever meet the request (R3).
            ExecutorClosed: the executor has been closed (S9).
            BackendBroken: the backend cannot start workers.
            BackendLost: the engine is gone.
        """
        options = self._options_for(function)
        if options.num_returns != 1:
            raise SpecificationError("num_returns= is for submit; a stream gives as many Futures as there are items")
        if not callable(function):
            raise SpecificationError(f"stream takes a function and its arguments, but {function!r} is not callable")
        named = options.evolve(name=options.name or function_name(function))
        session = self._here()
        end, items = session.open_stream(StreamBody(function, str(named.name)), args, kwargs, named)
        return Stream(session, Future(session, end), items)

    def resources(self) -> ClusterResources:
        """Give what there is and what is left, in all and by node (R4)."""
        return self._here().resources()

    def events(self, *, timeout: float | None = None) -> EventStream:
        """Give what happens to the tasks, oldest first (E1).

        The first call lets recording begin, if ``connect(..., events=True)`` or ``POLYEXEC_EVENTS=1`` has not; tasks
        that were submitted before are not recorded. The latest 500 000 records are kept, in up to about 150 MB of
        memory. An event can be read about 0.02 s after it happened. Only of small calls without options, of which
        there may be very many, all events come at once, when the call has ended or has been running for 0.1 s.

        Args:
            timeout: seconds to wait for the next event before the iteration ends; None to wait until the executor is
                closed, 0 to take what is there. To iterate again goes on where it ended.

        Returns:
            An iterator, which may be closed. What was recorded can still be read when the executor has been closed.

        Raises:
            SpecificationError: the executor is that of a task; events are the driver's.
            ExecutorClosed: the executor has been closed, and was not recorded.
        """
        from polyexec.events import EventStream

        check_timeout(timeout)
        recorder = self._here().recorder(begin=True)
        assert recorder is not None
        return EventStream(recorder, timeout)

    def stats(self) -> Stats:
        """Sum up what was recorded: how many tasks of each function, how long they ran and waited (E1).

        Blocks while the records are counted, for some seconds if there are very many.

        Returns:
            The numbers; ``print`` shows them as a table.

        Raises:
            SpecificationError: nothing is recorded, or the executor is that of a task.
        """
        from polyexec.events import EventStream
        from polyexec.statistics import Stats, summarize

        stream = EventStream(recorder_of(self), 0)
        return Stats(summarize(stream), stream.dropped)

    def dump(self, *, timeout: float = 2.0) -> Dump:
        """Say where everybody is, and what waits for what.

        Made for programs that stand still: the tasks and what each waits for, who waits for their results, who holds
        which resources, and the stacks of all threads, those of the workers among them, even while they are in C code.
        It waits for nobody longer than ``timeout``, and takes no lock that somebody else may hold. It shows names and
        places, never the values of arguments. It works after ``close``, too. In a task it shows the same tasks, and
        the threads of the task's own process.

        Args:
            timeout: seconds to wait for answers; what has not answered by then is named.

        Returns:
            What was found out; ``print`` shows it.

        Raises:
            SpecificationError: the time is no number.
            ForkedExecutor: the executor was made before ``os.fork``.
        """
        if timeout is None:
            raise SpecificationError("dump: timeout= takes a number of seconds")
        check_timeout(timeout)
        return self._here().dump(timeout)

    def security(self) -> SecurityReport:
        """Tell who can reach this executor: its sockets, its files, and what the engine asks those who come.

        What is true now; of an engine that ran before only what it tells, and not the sockets of its other machines.
        Blocks for some milliseconds. A test may say ``assert not ex.security().weaknesses``.

        Returns:
            The report; ``print`` shows it line by line.

        Raises:
            SpecificationError: the executor is that of a task.
            ExecutorClosed: the executor has been closed.
        """
        return self._here().security()

    def close(self, *, cancel_pending: bool = False) -> None:
        """End the executor, and leave no thread, process or descriptor (F9).

        Blocks. Harmless when called again, from a callback, or in a task.

        Args:
            cancel_pending: cancel what has not ended, instead of waiting for it.
        """
        self._here().close(cancel_pending=cancel_pending)

    def __enter__(self) -> Executor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(cancel_pending=kind is not None)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self._session.executor_id, self._options, self._chosen)

    def __repr__(self) -> str:
        return f"<polyexec.Executor on {self.info}>"

    def _here(self) -> Session:
        """Give the session to ask: in a task that shares the driver's memory it is the task's, not the driver's."""
        return session_here(self._session)

    def _options_for(self, function: Callable[..., Any]) -> TaskOptions:
        """Combine a decorated function's own options with those of this view, which win."""
        own: dict[str, Any] | None = getattr(function, "__polyexec_options__", None)
        if not own:
            return self._options
        return self._options.evolve(**{name: value for name, value in own.items() if name not in self._chosen})


def recorder_of(executor: Executor) -> Recorder:
    """Give what records the tasks of an executor; raises as ``Executor.stats`` does."""
    recorder = executor._here().recorder(begin=False)
    if recorder is None:
        raise SpecificationError(
            "nothing is recorded: connect with events=True, set POLYEXEC_EVENTS=1, or call events() first"
        )
    return recorder


def _restore(executor_id: str, options: TaskOptions, chosen: frozenset[str]) -> Executor:
    return Executor(session_for(executor_id), options, chosen=chosen)


def current() -> Executor:
    """Give the executor of the task that runs here.

    Returns:
        An executor on the same backend; Futures and options mean the same as in the driver.

    Raises:
        SpecificationError: no task runs here.
    """
    session = task_session()
    if session is None:
        raise SpecificationError("polyexec.current() is for tasks; outside of them use polyexec.connect()")
    return Executor(session)


@overload
def task(function: Callable[P, T], /) -> Callable[P, T]: ...


@overload
def task(**options: Any) -> Callable[[Callable[P, T]], Callable[P, T]]: ...


def task(function: Callable[P, T] | None = None, /, **options: Any) -> Any:
    """Attach default options to a function, without changing how it is called.

    Args:
        function: to decorate, if there are no options.
        **options: see ``TaskOptions``; those of ``Executor.options`` win.

    Returns:
        The function, or a decorator.

    Raises:
        SpecificationError: an option is unknown, or a value is wrong.
    """
    if function is not None and not callable(function):
        raise SpecificationError(f"task decorates a function, or takes options by name; {function!r} is neither")
    DEFAULT_OPTIONS.evolve(**options)

    def decorate(decorated: Callable[P, T]) -> Callable[P, T]:
        decorated.__polyexec_options__ = options  # type: ignore[attr-defined]
        return decorated

    return decorate if function is None else decorate(function)

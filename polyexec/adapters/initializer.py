"""An initializer that runs in each worker before the first call of an executor there.

In a process that workers have for themselves it runs once; where they are threads of the program, once in each thread.

What it leaves in the global variables of its module the calls must find there. Functions of an importable module do so
by themselves. Those of a script or a notebook travel by value, each call with global variables of its own; they are
given those of the initializer.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import threading
import types
from collections.abc import Callable
from typing import Any, TypeAlias

import attrs

import polyexec
from polyexec.adapters.standard_errors import InitializerFailed

_logger = logging.getLogger("concurrent.futures")

Setup: TypeAlias = tuple[Callable[..., object], tuple[Any, ...]]


@attrs.define(eq=False)
class _Place:
    """What is known of one executor's initializer here; the lock is held while it runs, so that others wait for it."""

    lock: threading.Lock = attrs.field(factory=threading.Lock)
    has_run: bool = False
    failure: str | None = None
    module: str = ""
    variables: dict[str, Any] = attrs.field(factory=dict)


class _Places(threading.local):
    def __init__(self) -> None:
        self.by_executor: dict[str, _Place] = {}


_of_process: dict[str, _Place] = {}
_of_threads = _Places()
_made_here: dict[str, Setup] = {}
"""The initializers of this process's own executors, for workers that are its threads."""


@attrs.frozen(eq=False)
class Initializer:
    """What must have run before a call.

    Attributes:
        executor: identifies the executor.
        driver: id of the process that made it.
        setup: the function and its arguments, stored once and fetched by each worker.
    """

    executor: str
    driver: int
    setup: polyexec.Future[Setup]

    def ensure(self) -> _Place:
        """Run the initializer, unless it has run here.

        Raises:
            InitializerFailed: it has raised an exception, now or before.
        """
        places = _of_threads.by_executor if os.getpid() == self.driver else _of_process
        place = places.setdefault(self.executor, _Place())
        with place.lock:
            if not place.has_run:
                self._run(place)
                place.has_run = True
        if place.failure is not None:
            raise InitializerFailed(f"the initializer has failed: {place.failure}")
        return place

    def _run(self, place: _Place) -> None:
        try:
            function, args = _made_here.get(self.executor) or self.setup.result()
            function(*args)
        except Exception as error:
            # As the executors of the standard library do.
            _logger.critical("Exception in initializer:", exc_info=True)
            place.failure = f"{type(error).__name__}: {error}"
            return
        code = _function_in(function)
        if code is not None:
            place.module, place.variables = code.__module__, code.__globals__


def make_initializer(
    executor: polyexec.Executor, name: str, function: Callable[..., object], args: tuple[Any, ...]
) -> Initializer:
    """Store an initializer for the workers of an executor; ``forget`` ends that."""
    _made_here[name] = (function, args)
    return Initializer(name, os.getpid(), executor.put((function, args)))


def forget(name: str) -> None:
    """Forget the initializer of an executor that is gone."""
    _made_here.pop(name, None)


def run_initialized(initializer: Initializer, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call a function in a worker, after the initializer."""
    place = initializer.ensure()
    for one in (function, *args):
        code = _function_in(one) if callable(one) else None
        if code is not None and code.__module__ == place.module and _travels_by_value(code):
            code.__globals__.update({name: value for name, value in place.variables.items() if name[:2] != "__"})
    return function(*args, **kwargs)


def _function_in(called: Any) -> types.FunctionType | None:
    """Give the Python function that a call will run."""
    while isinstance(called, functools.partial):
        called = called.func
    called = getattr(called, "__func__", called)
    if not isinstance(called, types.FunctionType):
        called = type(called).__call__
    return called if isinstance(called, types.FunctionType) else None


def _travels_by_value(function: types.FunctionType) -> bool:
    module = sys.modules.get(function.__module__)
    return module is None or function.__globals__ is not module.__dict__

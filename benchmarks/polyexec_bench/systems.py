"""The systems that are compared, each as the few operations that workloads need.

A name is a specification of polyexec (``process``, ``ray?address=auto``), or ``native:`` and an engine that is driven
as its own users would. Where an engine's method has the right form it is taken as it is, so that nothing stands
between it and the clock. All have as many single-threaded workers.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import attrs

import polyexec
from polyexec import registry

Function: TypeAlias = Callable[..., Any]

NATIVE = "native:"


@attrs.frozen
class System:
    """Workers that are open.

    Attributes:
        native: the system's own object: an ``Executor``, a pool, a client.
        submit: run a function with arguments; gives a handle. Handles among the arguments are replaced by their
            values if ``links`` is true.
        take: wait for the values of handles.
        links: whether tasks may depend on handles.
        close: end the workers.
    """

    native: Any
    submit: Function
    take: Callable[[Sequence[Any]], Sequence[Any]]
    links: bool
    close: Callable[[], object]


@attrs.frozen
class Engine:
    """How to open a system.

    Attributes:
        title: what reports call it.
        module: what it is made of.
        opener: where the function is that opens it, as ``module:function``; it takes the number of workers.
    """

    title: str
    module: str
    opener: str

    def is_installed(self) -> bool:
        """Say whether it can be opened here."""
        return importlib.util.find_spec(self.module) is not None

    def open(self, workers: int) -> System:
        """Open it."""
        module, _, function = self.opener.partition(":")
        system: System = getattr(importlib.import_module(module), function)(workers)
        return system


_NATIVES = "polyexec_bench.natives"

ENGINES = {
    "native:threadpool": Engine("ThreadPoolExecutor", "concurrent.futures", f"{_NATIVES}.pools:thread_pool"),
    "native:processpool": Engine("ProcessPoolExecutor", "concurrent.futures", f"{_NATIVES}.pools:process_pool"),
    "native:loky": Engine("loky", "loky", f"{_NATIVES}.pools:loky"),
    "native:dask": Engine("Dask, raw", "distributed", f"{_NATIVES}.dask:local_cluster"),
    "native:ray": Engine("Ray, raw", "ray", f"{_NATIVES}.ray:local_cluster"),
}
"""Engines without polyexec, by name."""


class UnknownSystem(Exception):
    """There is no system of this name."""


def title_of(name: str) -> str:
    """Give what reports call a system."""
    return ENGINES[name].title if name in ENGINES else f"polyexec {name}"


def find_missing(name: str) -> str:
    """Say why a system cannot be opened here, nothing if it can as far as is known before it is tried.

    Args:
        name: of the system.

    Returns:
        One line, or nothing.

    Raises:
        UnknownSystem: no engine, and no backend, has this name.
    """
    if name in ENGINES:
        return "" if ENGINES[name].is_installed() else f"{ENGINES[name].module} is not installed"
    try:
        backend = "" if name.startswith(NATIVE) else registry.parse(name)[0]
    except polyexec.SpecificationError as error:
        raise UnknownSystem(str(error)) from error
    if backend not in registry.names():
        known = ", ".join([*registry.names(), *ENGINES])
        raise UnknownSystem(f"there is no backend and no engine {name!r}; there are {known}")
    return ""


def open_system(name: str, workers: int) -> System:
    """Open a system.

    Args:
        name: of the system.
        workers: number of workers of one cpu each; a specification that says another number keeps it.

    Returns:
        It, with all workers started as far as the engine tells.
    """
    if name in ENGINES:
        return ENGINES[name].open(workers)
    separator = "&" if "?" in name else "?"
    specification = name if "workers=" in name or "address=" in name else f"{name}{separator}workers={workers}"
    executor = polyexec.connect(specification)
    return System(executor, executor.submit, _results, True, executor.close)


def _results(futures: Sequence[Any]) -> Sequence[Any]:
    return [future.result() for future in futures]


def version_of(name: str) -> str:
    """Give the version of an engine's distribution, nothing for the standard library's and for specifications."""
    module = ENGINES[name].module if name in ENGINES else ""
    try:
        return importlib.metadata.version(module) if module else ""
    except importlib.metadata.PackageNotFoundError:
        return ""

"""Sending folders and modules along with tasks (D1): packed once for as long as they do not change.

``Shipments`` may be used from any thread: ``_known`` is guarded by ``_changing``, under which nothing is packed or
stored; two threads that send the same thing for the first time may both pack it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs

from polyexec.options import TaskOptions
from polyexec.packages import Package, Packages, Source

if TYPE_CHECKING:
    from polyexec.future import Future
    from polyexec.packing import Content, Listing

_LIMIT = 16
"""How many things are remembered; beyond that, what was not sent for longest is packed anew if it is wanted again."""


@attrs.frozen(eq=False)
class Shipment:
    """What a task gets.

    Attributes:
        packages: for its specification, None for nothing.
        futures: of what holds them; must live until the task is counted among those who need them.
    """

    packages: Packages | None
    futures: tuple[Future[Any], ...] = ()


@attrs.frozen(eq=False)
class _Known:
    content: Content
    listing: Listing
    package: Package
    future: Future[Any]


class Shipments:
    """What one session sends.

    Args:
        put: stores a value.
        in_place: tasks run in this process, and use things where they are.
        given: what the task has that submits; its own tasks get the same, unless they are given something else.
    """

    def __init__(self, put: Callable[[bytes], Future[Any]], *, in_place: bool, given: Packages | None = None) -> None:
        self._put = put
        self._in_place = in_place
        self._given = given
        self._known: dict[tuple[Source, bool], _Known] = {}
        self._changing = threading.Lock()

    def ship(self, options: TaskOptions) -> Shipment:
        """Pack and store what a call needs and what is not stored yet, as it is now (S2).

        Raises:
            SpecificationError: it cannot be read, or is too large.
        """
        if options.working_dir is None and not options.py_modules:
            return Shipment(self._given)
        futures: list[Future[Any]] = []
        given = self._given or Packages(None, ())
        folder, modules = given.working_dir, given.py_modules
        if options.working_dir is not None:
            folder = self._package(options.working_dir, futures, is_module=False)
        if options.py_modules:
            modules = tuple(self._package(source, futures, is_module=True) for source in options.py_modules)
        return Shipment(Packages(folder, modules), tuple(futures))

    def _package(self, source: Source, futures: list[Future[Any]], *, is_module: bool) -> Package:
        if self._in_place:
            return Package(source)
        for package in self._given_as(is_module=is_module):
            if package.source == source:
                return package
        known = self._looked_at(source, is_module=is_module)
        futures.append(known.future)
        return known.package

    def _given_as(self, *, is_module: bool) -> tuple[Package, ...]:
        """Give what the task has itself; a path may be that of another machine, and means what it meant there."""
        if self._given is None:
            return ()
        folder = self._given.working_dir
        return self._given.py_modules if is_module else () if folder is None else (folder,)

    def _looked_at(self, source: Source, *, is_module: bool) -> _Known:
        from polyexec.packing import Content, digest_of, pack

        with self._changing:
            known = self._known.get((source, is_module))
        prefix = f"{os.path.basename(source)}/" if is_module and os.path.isdir(source) else ""
        content = known.content if known is not None and known.listing.is_settled else Content(source, prefix)
        listing = content.look()
        if known is None or not known.listing.is_settled or known.listing.items != listing.items:
            archive = pack(source, listing)
            digest = digest_of(archive)
            if known is None or known.package.digest != digest:
                future = self._put(archive)
                known = _Known(content, listing, Package(source, digest, future.reference_id), future)
            else:
                known = attrs.evolve(known, content=content, listing=listing)
        self._remember((source, is_module), known)
        return known

    def _remember(self, key: tuple[Source, bool], known: _Known) -> None:
        with self._changing:
            self._known.pop(key, None)
            self._known[key] = known
            gone = [self._known.pop(next(iter(self._known)))] if len(self._known) > _LIMIT else []
        del gone

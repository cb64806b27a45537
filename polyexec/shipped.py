"""What a task finds of the folders and modules that were sent along with it (D1).

The current directory, the import path and the table of modules belong to the process. Where one task at a time runs in
it, its own are put there for the task and taken away after it: the modules that it has imported are kept until the
next task with the same things comes, so that its classes are the same then. Tasks that are nested in one thread, or
that run while another waits, find what belongs to the one that began last.

``_stack`` and what is in place belong to who holds ``_lock``; no user code runs meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import TypeAlias, TypeVar

import attrs

from polyexec import folders
from polyexec.packages import Package, Packages, is_package, is_replaceable, module_name

T = TypeVar("T")

_KEPT = 8
"""How many sets of modules are kept in a process."""

_Key: TypeAlias = tuple[str, ...]
_Modules: TypeAlias = dict[str, ModuleType]


@attrs.frozen(eq=False)
class Layer:
    """What one task finds.

    Attributes:
        key: the executor, and what identifies the content; the same for tasks that find the same.
        directory: the current directory, None to leave it.
        path: what comes first on the import path.
        names: top-level modules that are there.
        plain: folders there, which are top-level modules if nothing else has that name.
    """

    key: _Key
    directory: str | None
    path: tuple[str, ...]
    names: frozenset[str]
    plain: frozenset[str]


@attrs.define(eq=False)
class _InPlace:
    layer: Layer
    home: int | None
    path: list[str]
    aside: _Modules
    before: frozenset[str]


_lock = threading.RLock()
_stack: list[Layer] = []
_in_place: list[_InPlace] = []
_kept: OrderedDict[_Key, _Modules] = OrderedDict()
_layers: OrderedDict[_Key, Layer] = OrderedDict()
_lent = threading.local()
"""The layer of the task that runs in a thread of the driver's own process."""


@contextlib.contextmanager
def shipped(
    packages: Packages, executor_id: str, read: Callable[[Package], bytes], *, is_driver: bool
) -> Iterator[None]:
    """Let a task find copies of what was sent along with it, and nothing of that after it.

    Args:
        packages: what was sent.
        executor_id: by whom.
        read: gives the archive of one of them.
        is_driver: this is the driver's own process.

    Raises:
        ResourceExhausted: no room is left to unpack it.
        OSError: it cannot be unpacked.
    """

    def unpacked(package: Package) -> str:
        return folders.unpacked(executor_id, package.digest, lambda: read(package), is_driver=is_driver)

    directory = None if packages.working_dir is None else unpacked(packages.working_dir)
    layer = _layer(packages, executor_id, directory, [unpacked(package) for package in packages.py_modules])
    before = getattr(_lent, "layer", None)
    _push(layer)
    try:
        if is_driver:
            _lent.layer = layer
        yield
    finally:
        _lent.layer = before
        _pop(layer)


def is_lent() -> bool:
    """Say whether a task in this thread finds things in the driver's own process."""
    return getattr(_lent, "layer", None) is not None


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """Let the driver find its own things in its own process while a task waits there for an answer."""
    layer = getattr(_lent, "layer", None)
    if layer is None:
        yield
        return
    try:
        _undisturbed(_pop, layer)
        yield
    finally:
        _undisturbed(_push, layer)


@contextlib.contextmanager
def set_aside() -> Iterator[Layer | None]:
    """Let the driver find its own things in its own process for long, while a task there does nothing itself.

    Yields:
        What calls that run in its body give to ``found_again``; None if there is nothing to find.
    """
    layer = getattr(_lent, "layer", None)
    if layer is None:
        yield None
        return
    try:
        _lent.layer = None
        _undisturbed(_pop, layer)
        yield layer
    finally:
        _undisturbed(_push, layer)
        _lent.layer = layer


@contextlib.contextmanager
def found_again(layer: Layer | None, *, interleaved: bool = False) -> Iterator[None]:
    """Let a call find what was set aside.

    Args:
        layer: what ``set_aside`` has given.
        interleaved: others run in this thread before this call ends, so that it keeps its things while it waits.
    """
    if layer is None:
        yield
        return
    own = attrs.evolve(layer)
    before = getattr(_lent, "layer", None)
    _undisturbed(_push, own)
    try:
        if not interleaved:
            _lent.layer = own
        yield
    finally:
        if not interleaved:
            _lent.layer = before
        _undisturbed(_pop, own)


@contextlib.contextmanager
def used_in_place(packages: Packages, *, exclusive: bool) -> Iterator[None]:
    """Let a task find things where they are; modules that it imports stay.

    Args:
        packages: what it needs.
        exclusive: no other task runs in the process, so that the current directory may be changed.
    """
    directory = packages.working_dir
    path: tuple[str, ...] = () if directory is None else (str(directory.source),)
    for package in packages.py_modules:
        path += _path_of(os.path.dirname(package.source), os.path.basename(package.source))
    home = _go(directory.source) if directory is not None and exclusive else None
    with _lock:
        sys.path[:0] = path
    try:
        yield
    finally:
        with _lock:
            for folder in path:
                with contextlib.suppress(ValueError):
                    sys.path.remove(folder)
        _go_back(home)


def release(executor_id: str) -> None:
    """Let go of all that an executor has sent to this process."""
    with _lock:
        for table in (_kept, _layers):
            for key in [key for key in table if key[0] == executor_id]:
                del table[key]
    folders.release(executor_id)


def _layer(packages: Packages, executor_id: str, directory: str | None, roots: list[str]) -> Layer:
    digests = (package.digest for package in packages.py_modules)
    key = (executor_id, packages.working_dir.digest if packages.working_dir is not None else "", *digests)
    with _lock:
        layer = _layers.get(key) or _new_layer(key, packages, directory, roots)
        _keep(_layers, key, layer)
    # One that is nobody else's: it is found again by its identity.
    return attrs.evolve(layer)


def _new_layer(key: _Key, packages: Packages, directory: str | None, roots: list[str]) -> Layer:
    path: tuple[str, ...] = () if directory is None else (directory,)
    for root, package in zip(roots, packages.py_modules, strict=True):
        path += _path_of(root, os.path.basename(package.source))
    names, plain = set[str](), set[str]()
    for folder in path:
        for entry in os.scandir(folder):
            if entry.is_dir():
                (names if is_package(entry.path) else plain).add(entry.name)
            elif (name := module_name(entry.path)) is not None:
                names.add(name)
    return Layer(
        key, directory, path, frozenset(filter(is_replaceable, names)), frozenset(filter(is_replaceable, plain))
    )


def _path_of(root: str, name: str) -> tuple[str, ...]:
    """Give what must be on the import path for a module; a folder that is no package may be one of modules, too."""
    inside = os.path.join(root, name)
    return (root, inside) if os.path.isdir(inside) and not is_package(inside) else (root,)


def _undisturbed(change: Callable[[Layer], None], layer: Layer) -> None:
    """Make a change in a thread of its own: in this one the task may be interrupted at any step, though only once."""
    thread = threading.Thread(target=change, args=(layer,), daemon=True)
    try:
        thread.start()
        thread.join()
    finally:
        if thread.ident is not None:
            thread.join()


def _push(layer: Layer) -> None:
    with _lock:
        if layer not in _stack:
            _stack.append(layer)
        _show(_stack[-1])


def _pop(layer: Layer) -> None:
    with _lock:
        if layer in _stack:
            _stack.remove(layer)
        _show(_stack[-1] if _stack else None)


def _show(layer: Layer | None) -> None:
    """Put a layer in the place of another."""
    if _in_place and layer is not None and _in_place[0].layer.key == layer.key:
        return
    if _in_place:
        _take_away(_in_place.pop())
    if layer is not None:
        _in_place.append(_put(layer))


def _put(layer: Layer) -> _InPlace:
    replaced = layer.names | {name for name in layer.plain if _is_no_regular(sys.modules.get(name))}
    aside = {name: module for name, module in list(sys.modules.items()) if name.partition(".")[0] in replaced}
    for name in aside:
        del sys.modules[name]
    before, path = frozenset(sys.modules), list(sys.path)
    sys.modules.update(_kept.get(layer.key, {}))
    sys.path[:0] = layer.path
    return _InPlace(layer, None if layer.directory is None else _go(layer.directory), path, aside, before)


def _take_away(shown: _InPlace) -> None:
    layer = shown.layer
    new = [(name, module) for name, module in list(sys.modules.items()) if name not in shown.before]
    own = {
        name: module
        for name, module in new
        if name.partition(".")[0] in layer.names or name in shown.aside or _is_under(module, layer.path)
    }
    _keep(_kept, layer.key, own)
    for name in own:
        del sys.modules[name]
    sys.modules.update(shown.aside)
    sys.path[:] = shown.path
    _go_back(shown.home)


def _keep(table: OrderedDict[_Key, T], key: _Key, value: T) -> None:
    table[key] = value
    table.move_to_end(key)
    while len(table) > _KEPT:
        table.popitem(last=False)


def _is_no_regular(module: ModuleType | None) -> bool:
    """Say whether a module is not there, or no more than a folder."""
    return module is None or (isinstance(module, ModuleType) and vars(module).get("__file__") is None)


def _is_under(module: object, path: tuple[str, ...]) -> bool:
    """Say whether a module is from one of some folders."""
    if not isinstance(module, ModuleType):
        return False
    # Not by getattr, on which modules may do things of their own.
    file, inside = vars(module).get("__file__"), vars(module).get("__path__")
    # What a task has done to its modules is its own affair; the path of a folder is looked up by what is above it.
    with contextlib.suppress(AttributeError, KeyError, TypeError):
        found = [file] if isinstance(file, str) else list(inside or ())
        return any(str(one).startswith(f"{folder}{os.sep}") for one in found for folder in path)
    return False


def _go(directory: str) -> int:
    """Change the current directory; give a descriptor of the former one, which may have no name any more."""
    home = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    os.chdir(directory)
    return home


def _go_back(home: int | None) -> None:
    if home is not None:
        os.fchdir(home)
        os.close(home)

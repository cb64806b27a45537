"""Folders and modules that tasks have with them (D1): what the options name, and what is known of it on the way."""

from __future__ import annotations

import importlib.machinery
import os
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import attrs

from polyexec.errors import SpecificationError

_NEEDED = frozenset({"__main__", "attr", "attrs", "cloudpickle", "polyexec", "threadpoolctl"})


class Source(str):
    """The absolute path of a folder or a module, which was there when the option was given, on the machine of then."""

    __slots__ = ()


@attrs.frozen
class Package:
    """A folder or a module that a task has.

    Attributes:
        source: where it is from.
        digest: identifies its content; empty if it is used where it is.
        value: id of the value that holds it packed; 0 if it is used where it is.
    """

    source: Source
    digest: str = ""
    value: int = 0


@attrs.frozen
class Packages:
    """What a task has of them.

    Attributes:
        working_dir: the folder in which it runs, None for no other than its worker's.
        py_modules: what it can import.
    """

    working_dir: Package | None
    py_modules: tuple[Package, ...]

    @property
    def all(self) -> tuple[Package, ...]:
        """All of them, the folder first."""
        return self.py_modules if self.working_dir is None else (self.working_dir, *self.py_modules)

    @property
    def values(self) -> tuple[int, ...]:
        """The ids of the values that hold them."""
        return tuple(package.value for package in self.all if package.value)


def working_dir(value: Any) -> Source | None:
    """Check the option ``working_dir``."""
    if value is None or isinstance(value, Source):
        return value
    source = _path("working_dir", value)
    if not os.path.isdir(source):
        raise SpecificationError(f"working_dir= takes the path of a folder, and {str(source)!r} is none")
    return source


def py_modules(value: Any) -> tuple[Source, ...]:
    """Check the option ``py_modules``."""
    if value is None:
        return ()
    if isinstance(value, (str, os.PathLike, ModuleType)) or not isinstance(value, Iterable):
        raise SpecificationError(f"py_modules= takes a list of paths and modules, not {value!r}")
    return tuple(item if isinstance(item, Source) else _module(item) for item in value)


def is_replaceable(name: str) -> bool:
    """Say whether a top-level module may be another one in a task than it is in its worker."""
    return not (name in sys.stdlib_module_names or name in _NEEDED or name.startswith("polyexec_"))


def module_name(path: str) -> str | None:
    """Give the name by which a file can be imported, None if it cannot be."""
    base = os.path.basename(path)
    for suffix in importlib.machinery.all_suffixes():
        if base.endswith(suffix) and base.removesuffix(suffix).isidentifier():
            return base.removesuffix(suffix)
    return None


def is_package(path: str) -> bool:
    """Say whether a folder is a package, and not just a folder of modules."""
    return os.path.isfile(os.path.join(path, "__init__.py"))


def _path(option: str, value: Any) -> Source:
    try:
        path = os.fspath(value)
    except TypeError:
        path = None
    if not isinstance(path, str):
        raise SpecificationError(f"{option}= takes a path, not {value!r}")
    return Source(os.path.abspath(path))


def _module(value: Any) -> Source:
    source = _origin(value) if isinstance(value, ModuleType) else _path("py_modules", value)
    if os.path.isdir(source):
        name = os.path.basename(source) if is_package(source) else None
        is_good = name is None or name.isidentifier()
    else:
        name = module_name(source)
        is_good = name is not None and os.path.isfile(source)
    if not is_good:
        raise SpecificationError(
            f"py_modules= takes folders, packages and files that can be imported; {str(source)!r} "
            + ("cannot be" if os.path.exists(source) else "does not exist")
        )
    if name is not None and not is_replaceable(name):
        raise SpecificationError(f"py_modules= cannot replace {name!r}, which workers need themselves")
    return source


def _origin(module: ModuleType) -> Source:
    """Find the file or folder of a module; of one inside a package that of the whole package."""
    top = sys.modules.get(module.__name__.partition(".")[0], module)
    folders = list(getattr(top, "__path__", ()))
    origin = folders[0] if len(folders) == 1 else getattr(top, "__file__", None)
    if len(folders) > 1 or origin is None or top.__name__ == "__main__":
        raise SpecificationError(
            f"py_modules= cannot send the module {top.__name__!r}, which is not one file or one folder: name a path"
        )
    return Source(os.path.abspath(origin))

"""Finding backends: specifications, entry points, and the variable that chooses."""

from __future__ import annotations

import functools
import importlib
import os
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import attrs

from polyexec import entry_points
from polyexec.errors import BackendNotFound, BackendUnavailable, SpecificationError
from polyexec.redaction import redacted, without
from polyexec.spi import Backend

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "polyexec.backends"
VARIABLE = "POLYEXEC_BACKEND"
DEFAULT = "process"
_NAME = re.compile(r"[a-z0-9_]+")
_EXTRAS = frozenset({"dask", "ray"})


@attrs.frozen
class Choice:
    """A backend specification, and what chose it.

    Attributes:
        specification: as it was given; ``redacted`` is for showing it.
        chosen_by: ``"argument"``, the name of the variable, or ``"default"``.
    """

    specification: str = attrs.field(repr=redacted)
    chosen_by: str

    @property
    def redacted(self) -> str:
        """The specification without the secrets in it."""
        return redacted(self.specification)


def choose(specification: str | None) -> Choice:
    """Decide which specification holds: the argument, the variable, or the default, in this order."""
    if specification is not None:
        return Choice(specification, "argument")
    from_variable = os.environ.get(VARIABLE, "").strip()
    if from_variable:
        return Choice(from_variable, VARIABLE)
    return Choice(DEFAULT, "default")


def names() -> dict[str, EntryPoint]:
    """List the installed backends by name, without importing them.

    Entry points whose names no specification can have are not among them.

    Raises:
        SpecificationError: two distributions claim one name.
    """
    import importlib.metadata

    found: dict[str, EntryPoint] = {}
    for point in importlib.metadata.entry_points(group=GROUP):
        if not _NAME.fullmatch(point.name):
            continue
        other = found.get(point.name)
        if other is not None and other.value != point.value:
            raise SpecificationError(
                f"two distributions provide a backend {point.name!r}: {_origin(other)} and {_origin(point)}; "
                "uninstall one of them"
            )
        found[point.name] = point
    return dict(sorted(found.items()))


def _origin(point: EntryPoint) -> str:
    return f"{point.dist.name if point.dist is not None else 'unknown'} ({point.value})"


def parse(specification: str) -> tuple[str, dict[str, str]]:
    """Split ``NAME[?key=value&...]``.

    Returns:
        The name, and the texts by key.

    Raises:
        SpecificationError: it does not have this form.
    """
    name, _, rest = specification.strip().partition("?")
    if not _NAME.fullmatch(name):
        raise SpecificationError(
            f"{redacted(specification)!r} is not a backend specification: use NAME or NAME?key=value&key=value, with a "
            "name of a-z, 0-9 and '_'"
        )
    pairs = parse_qsl(rest, keep_blank_values=True)
    if (rest and not all("=" in pair for pair in rest.split("&"))) or len(dict(pairs)) != len(pairs):
        raise SpecificationError(
            f"{redacted(specification)!r}: after '?' come key=value pairs, joined by '&', each key once"
        )
    return name, dict(pairs)


def backend_class(name: str) -> type[Backend]:
    """Import a backend.

    Raises:
        BackendNotFound: nothing of this name is installed.
        BackendUnavailable: its engine is not installed.
    """
    value = entry_points.find(GROUP, name) or _value(name)
    module, _, attribute = value.partition(":")
    try:
        loaded: Any = functools.reduce(getattr, attribute.split("."), importlib.import_module(module))
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", "polyexec", module.partition(".")[0]):
            raise
        raise BackendUnavailable(
            f'backend {name!r} needs {missing!r}, which is not installed: pip install "polyexec[{name}]"'
            if name in _EXTRAS
            else f"backend {name!r} needs {missing!r}"
        ) from error
    if not (isinstance(loaded, type) and issubclass(loaded, Backend)):
        raise SpecificationError(f"entry point {name!r} = {value} is not a subclass of polyexec.spi.Backend")
    return loaded


def _value(name: str) -> str:
    known = names()
    if name not in known:
        raise BackendNotFound(f"unknown backend {name!r}; installed are {', '.join(known) or 'none'}")
    return f"{known[name].module}:{known[name].attr}"


def configure(name: str, backend: type[Backend], keys: dict[str, str]) -> Any:
    """Turn the texts of a specification into a configuration.

    Raises:
        SpecificationError: a key is unknown, or a value is bad.
    """
    fields = {field.name: field for field in attrs.fields(backend.Config)}
    for key, value in keys.items():
        if key not in fields:
            raise SpecificationError(f"backend {name!r} has no key {key!r}; valid are {', '.join(sorted(fields))}")
        converter = fields[key].converter
        try:
            if callable(converter):
                converter(value)
        except ValueError as error:
            # Not chained: the text of the cause may hold a secret.
            raise SpecificationError(f"backend {name!r}, key {key!r}: {without(str(error), key, value)}") from None
    try:
        return backend.Config(**keys)
    except ValueError as error:
        text = functools.reduce(lambda text, pair: without(text, *pair), keys.items(), str(error))
        raise SpecificationError(f"backend {name!r}: {text}") from None

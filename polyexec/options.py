"""What a task may ask for: amounts of resources, and the options of a call."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from polyexec import packages
from polyexec.errors import SpecificationError
from polyexec.packages import Source
from polyexec.redaction import names_only

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_bytes(value: int | float | str) -> int:
    """Turn ``2_000_000``, ``"2GiB"`` or ``"500 MB"`` into a number of bytes.

    Args:
        value: a number of bytes, or a number with a unit (B, KB, MB, GB, TB, KiB, MiB, GiB, TiB).

    Returns:
        The number of bytes.

    Raises:
        SpecificationError: the text is not a size.
    """
    if isinstance(value, bool):
        raise SpecificationError(f"{value!r} is not a size in bytes")
    if isinstance(value, (int, float)):
        return int(_not_negative(value, "a size in bytes"))
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", value) if isinstance(value, str) else None
    if match is None or match[2].upper() not in _UNITS:
        raise SpecificationError(f"{value!r} is not a size: use a number of bytes, or for example '500MB' or '2GiB'")
    return int(_not_negative(float(match[1]) * _UNITS[match[2].upper()], "a size in bytes"))


def _not_negative(value: Any, what: str) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < math.inf:
        raise SpecificationError(f"{value!r} is not {what}: use a finite number that is not negative")
    return value


def _cpus(value: Any) -> float:
    return _not_negative(value, "an amount of cpus")


def _amount_of_gpus(value: Any) -> float:
    return _not_negative(value, "an amount of gpus")


def _gpus(value: Any) -> float:
    amount = _amount_of_gpus(value)
    if amount > 1 and amount != int(amount):
        raise SpecificationError(f"gpus={amount!r}: more than one accelerator must be a whole number of them")
    return amount


def _custom(value: Mapping[str, float]) -> dict[str, float]:
    if not isinstance(value, Mapping):
        raise SpecificationError(f"resources= takes a mapping from name to amount, not {value!r}")
    for name in value:
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", name):
            raise SpecificationError(f"{name!r} is not a name of a resource: use letters, digits, '_', '-' and '.'")
        if name.lower() in ("cpu", "cpus", "gpu", "gpus", "memory"):
            raise SpecificationError(f"resource {name!r} has an option of its own: use cpus=, gpus= or memory=")
    return {name: _not_negative(amount, f"an amount of {name}") for name, amount in value.items()}


@attrs.frozen
class Resources:
    """Amounts of resources.

    Attributes:
        cpus: cores; fractions are allowed.
        gpus: accelerators; fractions are allowed.
        memory: bytes.
        custom: amounts of resources that the cluster's owner has named.
    """

    cpus: float = attrs.field(default=0, converter=_cpus)
    gpus: float = attrs.field(default=0, converter=_amount_of_gpus)
    memory: int = attrs.field(default=0, converter=parse_bytes)
    custom: Mapping[str, float] = attrs.field(factory=dict, converter=_custom)

    def __str__(self) -> str:
        parts = [f"{value:g} {name}" for name, value in (("cpus", self.cpus), ("gpus", self.gpus)) if value]
        parts += [f"{_size(self.memory)} of memory"] if self.memory else []
        parts += [f"{value:g} {name}" for name, value in self.custom.items()]
        return ", ".join(parts) or "nothing"


def _size(count: int) -> str:
    """Show a number of bytes so that a reader grasps it; two decimals are enough to compare machines."""
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:.2f}".rstrip("0").rstrip(".") + f" {unit}"
    return f"{count} bytes"


def _optional_seconds(value: float | None) -> float | None:
    return None if value is None else float(_not_negative(value, "a number of seconds"))


def _retries(value: Any) -> int:
    return _integer("retries", value, 0)


def _restarts(value: Any) -> int:
    return _integer("restarts", value, 0)


def _concurrency(value: Any) -> int | None:
    return None if value is None else _integer("concurrency", value, 1)


def _num_returns(value: Any) -> int:
    return _integer("num_returns", value, 1)


def _buffer(value: Any) -> int:
    return _integer("buffer", value, 1)


def _integer(name: str, value: Any, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise SpecificationError(f"{name}= takes an integer of at least {least}, not {value!r}")
    return value


def _priority(value: Any) -> float:
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise SpecificationError(f"priority= takes a finite number, not {value!r}")
    return value


def _exception_types(value: Any) -> tuple[type[BaseException], ...]:
    types = value if isinstance(value, tuple) else (value,)
    for item in types:
        if not (isinstance(item, type) and issubclass(item, BaseException)):
            raise SpecificationError(f"retry_on= takes exception types, not {item!r}")
    return types


def _environment(value: Mapping[str, str] | None) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(i, str) for pair in value.items() for i in pair):
        raise SpecificationError("env= takes a mapping from names to texts")
    for name, text in value.items():
        # Values may be secrets, so only names are told.
        if not name or "=" in name or "\0" in name + text:
            raise SpecificationError(
                f"env= cannot set {name!r}: a name has no '=' and is not empty, and no text has a NUL"
            )
    return dict(value)


def _infeasible(value: str) -> str:
    if value not in ("error", "wait"):
        raise SpecificationError(f"infeasible= is 'error' or 'wait', not {value!r}")
    return value


def _callable_or_none(value: Any) -> Any:
    if value is not None and not callable(value):
        raise SpecificationError(f"retry= takes a function (error, attempt, options), not {value!r}")
    return value


def _name(value: Any) -> Any:
    if value is not None and not isinstance(value, str):
        raise SpecificationError(f"name= takes a text, not {value!r}")
    return value


def _node_id(value: Any) -> str:
    if not isinstance(value, str):
        raise SpecificationError(f"NodeAffinity takes the id of a node as resources() shows it, not {value!r}")
    return value


def _softness(value: Any) -> bool:
    if not isinstance(value, bool):
        raise SpecificationError(f"soft= is True or False, not {value!r}")
    return value


@attrs.frozen
class NodeAffinity:
    """Where a task shall run, by the id that ``Executor.resources`` gives for a node (R12).

    Attributes:
        id: of the node.
        soft: a wish: the task runs elsewhere if the node is gone, or could never meet the request.
    """

    id: str = attrs.field(converter=_node_id)
    soft: bool = attrs.field(default=False, converter=_softness)


@attrs.frozen
class Bundle:
    """Which part of a reservation a task runs in; see ``Reservation``, which makes these.

    Attributes:
        reservation: its id.
        index: of the bundle, None for any.
    """

    reservation: int
    index: int | None


def _strategy(value: str) -> str:
    if value not in ("default", "spread"):
        raise SpecificationError(f"strategy= is 'default' or 'spread', not {value!r}")
    return value


def _affinity(value: Any) -> NodeAffinity | None:
    if isinstance(value, str):
        return NodeAffinity(value)
    if value is not None and not isinstance(value, NodeAffinity):
        raise SpecificationError(f"node= takes the id of a node or a NodeAffinity, not {value!r}")
    return value


def _labels(value: Mapping[str, str]) -> dict[str, str]:
    if not isinstance(value, Mapping) or not all(isinstance(i, str) for pair in value.items() for i in pair):
        raise SpecificationError(f"labels= takes a mapping from names to texts, not {value!r}")
    return dict(value)


@attrs.frozen
class TaskOptions:
    """Options of a call; each has a meaning on every backend.

    Attributes:
        cpus: cores that the task holds while it runs; 0 takes none.
        gpus: accelerators that it holds; fractions may share one.
        memory: bytes that it holds.
        resources: amounts of custom resources that it holds.
        name: shown in errors, events and the engine's own tools; by default the function's.
        retries: how often it may run again after its worker died, or after an exception in ``retry_on``.
        retry_on: exception types after which it may run again.
        retry: ``(error, attempt, options) -> options | None``, asked before each new attempt that ``retries`` and
            ``retry_on`` allow, so never with ``retries=0``; it may change any option but ``num_returns``,
            ``working_dir`` and ``py_modules``, or forbid the attempt by returning None. It runs in a thread of the
            executor, one at a time. If it raises, or asks for what no node has, that is the task's error, and what the
            task had ended with is its cause.
        timeout: seconds that one attempt may run.
        env: environment variables for the task alone.
        working_dir: path of a folder; the task runs in a copy of it, and can import what is there.
        py_modules: paths of folders, packages and files, or imported modules, of which the task can import copies.
        num_returns: number of Futures that the call gives.
        priority: a higher one starts first.
        infeasible: ``"error"``, or ``"wait"`` for a cluster that grows.
        strategy: ``"spread"`` prefers the node on which least runs; ``"default"`` the one with most cpus left.
        node: id of the node on which it must run, or a ``NodeAffinity``, which may be a wish.
        labels: names and values that its node must have.
        buffer: number of items of a stream that may wait unread; means nothing to other calls.
        restarts: for actors: how often one is made again after its process died.
        concurrency: for actors: how many calls run at the same time; None for 1, or 1000 if the class has ``async``
            methods.
    """

    cpus: float = attrs.field(default=1, converter=_cpus)
    gpus: float = attrs.field(default=0, converter=_gpus)
    memory: int = attrs.field(default=0, converter=parse_bytes)
    resources: Mapping[str, float] = attrs.field(factory=dict, converter=_custom)
    name: str | None = attrs.field(default=None, converter=_name)
    retries: int = attrs.field(default=0, converter=_retries)
    retry_on: tuple[type[BaseException], ...] = attrs.field(default=(), converter=_exception_types)
    retry: Callable[[BaseException, int, TaskOptions], TaskOptions | None] | None = attrs.field(
        default=None, converter=_callable_or_none
    )
    timeout: float | None = attrs.field(default=None, converter=_optional_seconds)
    env: Mapping[str, str] = attrs.field(factory=dict, converter=_environment, repr=names_only)
    working_dir: Source | None = attrs.field(default=None, converter=packages.working_dir)
    py_modules: tuple[Source, ...] = attrs.field(default=(), converter=packages.py_modules)
    num_returns: int = attrs.field(default=1, converter=_num_returns)
    priority: float = attrs.field(default=0, converter=_priority)
    infeasible: str = attrs.field(default="error", converter=_infeasible)
    strategy: str = attrs.field(default="default", converter=_strategy)
    node: NodeAffinity | None = attrs.field(default=None, converter=_affinity)
    labels: Mapping[str, str] = attrs.field(factory=dict, converter=_labels)
    buffer: int = attrs.field(default=16, converter=_buffer)
    bundle: Bundle | None = attrs.field(default=None, kw_only=True, repr=False)
    restarts: int = attrs.field(default=0, converter=_restarts)
    concurrency: int | None = attrs.field(default=None, converter=_concurrency)
    is_plain: bool = attrs.field(init=False, eq=False, repr=False)

    @is_plain.default
    def _has_no_wishes(self) -> bool:
        """Say whether all options but the name are as they are by default."""
        return all(getattr(self, name) == value for name, value in _DEFAULTS.items())

    @property
    def request(self) -> Resources:
        """What the task holds while it runs."""
        return Resources(self.cpus, self.gpus, self.memory, self.resources)

    def evolve(self, **changes: Any) -> TaskOptions:
        """Give a copy with changes.

        Args:
            **changes: option names and values.

        Returns:
            The changed options.

        Raises:
            SpecificationError: an option is unknown, or a value is wrong.
        """
        unknown = sorted(changes.keys() - OPTION_NAMES)
        if unknown:
            raise SpecificationError(f"unknown option {unknown[0]!r}; valid are {', '.join(sorted(OPTION_NAMES))}")
        return attrs.evolve(self, **changes)


_FIELDS = tuple(field for field in attrs.fields(TaskOptions) if field.init)
_MAPPINGS = ("resources", "env", "labels")
_DEFAULTS: dict[str, object] = {name: {} for name in _MAPPINGS} | {
    field.name: field.default for field in _FIELDS if field.name not in ("name", *_MAPPINGS)
}
# The bundle is no option of users: a reservation gives it to its views.
OPTION_NAMES = frozenset(field.name for field in _FIELDS) - {"bundle"}
DEFAULT_OPTIONS = TaskOptions()

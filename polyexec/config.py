"""Converters and base classes for the configuration of backends.

A specification ``NAME?key=value&key=value`` gives texts; each field's converter turns its text into a value and
raises ``ValueError`` with what is wrong and what is valid.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import attrs
from attrs.converters import optional

from polyexec.options import Resources, parse_bytes


def integer(value: Any, least: int) -> int:
    """Turn a text or an integer into an integer.

    Args:
        value: the text or integer.
        least: the smallest valid value.

    Returns:
        The integer.

    Raises:
        ValueError: it is none, or too small.
    """
    try:
        number = int(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else None
    except ValueError:
        number = None
    if number is None or number < least:
        raise ValueError(f"{value!r} is not an integer of at least {least}")
    return number


def positive(value: Any) -> int:
    """Turn a text or an integer into an integer of at least 1."""
    return integer(value, 1)


def count(value: Any) -> int:
    """Turn a text or an integer into an integer of at least 0."""
    return integer(value, 0)


def seconds(value: Any) -> float:
    """Turn a text or a number into seconds, more than 0."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 < number < float("inf"):
        raise ValueError(f"{value!r} is not a positive number of seconds")
    return number


def amount(value: Any) -> float:
    """Turn a text or a number into an amount, not negative."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number < float("inf"):
        raise ValueError(f"{value!r} is not a number that is at least 0")
    return number


def boolean(value: Any) -> bool:
    """Turn ``1``, ``true``, ``yes``, ``0``, ``false`` or ``no`` into a bool."""
    known = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    found = value if isinstance(value, bool) else known.get(str(value).lower())
    if found is None:
        raise ValueError(f"{value!r} is not one of 1, true, yes, 0, false, no")
    return found


def text(value: Any) -> str:
    """Let a text that is not empty pass."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r} is not a text")
    return value


def amounts(value: Any) -> dict[str, float]:
    """Turn ``"license:1,disk:2.5"``, or a mapping, into amounts of custom resources."""
    if isinstance(value, str):
        pairs = [part.partition(":") for part in value.split(",") if part]
        value = {name: amount(number) for name, _, number in pairs}
    if not isinstance(value, Mapping):
        raise ValueError(f"{value!r} is not a list of amounts such as 'license:1,disk:2'")
    return dict(Resources(custom=value).custom)


def function(value: Any) -> Callable[[], object]:
    """Let a callable pass, or check that a text looks like ``"module:function"``."""
    if callable(value):
        found: Callable[[], object] = value
        return found
    if not isinstance(value, str) or not all(part.strip() for part in value.partition(":")[::2]):
        raise ValueError(f"{value!r} is neither a function nor a text 'module:function'")
    return ImportedFunction(value)


def _function_name(value: Any) -> str:
    """Show a function without the arguments that a partial, say, has bound: they may be secret."""
    if value is None or isinstance(value, ImportedFunction):
        return repr(value)
    return str(getattr(value, "__qualname__", type(value).__qualname__))


@attrs.frozen
class ImportedFunction:
    """A function that is imported when it is called, so that its module need not exist here."""

    path: str

    def __call__(self) -> object:
        """Import the function and call it."""
        module, _, name = self.path.partition(":")
        return getattr(importlib.import_module(module), name)()


@attrs.frozen(kw_only=True)
class LocalClusterConfig:
    """Keys that mean the same for every backend that starts workers of its own.

    Attributes:
        workers: number of slots of one cpu each; None for as many as this process may use.
        gpus: number of accelerators that tasks may ask for; None for those that are found, of which an existing
            ``CUDA_VISIBLE_DEVICES`` leaves those that it names. A number declares them: it is not checked.
        memory: bytes that tasks may ask for in all; None for the machine's.
        resources: amounts of custom resources.
        initializer: called once in each worker before its first task; a function or ``"module:function"``.
        start_timeout: seconds that a worker may take to start.
        log_to_driver: write what tasks print and log to the driver's own streams (D2).
    """

    workers: int | None = attrs.field(default=None, converter=optional(positive))
    gpus: int | None = attrs.field(default=None, converter=optional(count))
    memory: int | None = attrs.field(default=None, converter=optional(parse_bytes))
    resources: Mapping[str, float] = attrs.field(factory=dict, converter=amounts)
    initializer: Callable[[], object] | None = attrs.field(
        default=None, converter=optional(function), repr=_function_name
    )
    start_timeout: float = attrs.field(default=60.0, converter=seconds)
    log_to_driver: bool = attrs.field(default=True, converter=boolean)

    def total(self) -> Resources:
        """Give what the workers have in all.

        Blocks while the machine is asked for what was not given; see ``polyexec.gpus``.

        Raises:
            SpecificationError: more GPUs are declared than ``CUDA_VISIBLE_DEVICES`` names.
        """
        memory = machine_memory() if self.memory is None else self.memory
        return Resources(self.workers or usable_cpus(), len(self.gpu_ids()), memory, self.resources)

    def gpu_ids(self) -> tuple[str, ...]:
        """Name the GPUs of the workers as ``CUDA_VISIBLE_DEVICES`` does, in the order of the ledger's indices."""
        from polyexec import gpus

        return gpus.usable(self.gpus)


def usable_cpus() -> int:
    """Count the cpus that this process may use: affinity, control groups and ``LOKY_MAX_CPU_COUNT`` are honoured."""
    from polyexec import cpus

    return cpus.usable()


def machine_memory() -> int:
    """Give the machine's memory in bytes, or the limit of a control group around this process if that is less."""
    from polyexec import memory_usage

    return memory_usage.total_bytes()

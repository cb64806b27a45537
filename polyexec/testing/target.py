"""The backend under test: its specification, and what it declares about itself."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import attrs

from polyexec import registry
from polyexec.spi import Backend, Capabilities, Deviation

SHARED_KEYS = {"workers": 2, "gpus": 2, "resources": "license:1,disk:2"}
"""What the executor that most tests share is opened with."""

SINGLE_KEYS = {"workers": 1, "gpus": 1, "resources": "license:1,disk:2"}
"""What the executor for tests of a single worker is opened with."""


@attrs.frozen
class Target:
    """The backend under test.

    Attributes:
        specification: as given to ``--backend``.
        name: the backend's name.
        keys: the keys and values of the specification.
        backend: the backend's class.
    """

    specification: str
    name: str
    keys: Mapping[str, str]
    backend: type[Backend]

    @staticmethod
    def of(specification: str) -> Target:
        """Find the backend that a specification names.

        Args:
            specification: ``NAME[?key=value&...]``.

        Returns:
            The target.

        Raises:
            BackendNotFound: no installed distribution provides it.
            BackendUnavailable: its engine is not installed.
            SpecificationError: the text is not a specification.
        """
        name, keys = registry.parse(specification)
        return Target(specification, name, dict(keys), registry.backend_class(name))

    @property
    def capabilities(self) -> Capabilities:
        """What the backend says that it does."""
        return self.backend.capabilities

    @property
    def own_cluster(self) -> bool:
        """Whether the executor starts its engine itself, so that the suite may choose its size and harm it."""
        return "address" not in self.keys

    def declared(self, clause: str) -> Deviation | None:
        """Give the backend's declaration that it does not keep a clause, if there is one."""
        return next((found for found in self.backend.deviations if found.clause == clause), None)

    def with_keys(self, **keys: Any) -> str:
        """Give the specification with some keys set; those that the backend does not know are left out.

        Args:
            **keys: names and values.

        Returns:
            A specification.
        """
        known = {field.name.lstrip("_") for field in attrs.fields(self.backend.Config)}
        merged = {**self.keys, **{name: str(value) for name, value in keys.items() if name in known}}
        return self.name + "?" * bool(merged) + "&".join(f"{name}={value}" for name, value in merged.items())


def required() -> frozenset[str]:
    """Give the backends whose engines must be there, from ``POLYEXEC_REQUIRE``; a missing one fails the run."""
    return frozenset(name.strip() for name in os.environ.get("POLYEXEC_REQUIRE", "").split(",") if name.strip())

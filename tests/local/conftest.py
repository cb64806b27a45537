from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from processes import Process


@pytest.fixture
def process() -> Iterator[Any]:
    """Look at processes by their ids; those that are left at the end are killed."""
    with contextlib.ExitStack() as stack:
        yield lambda pid: stack.enter_context(contextlib.closing(Process(pid)))

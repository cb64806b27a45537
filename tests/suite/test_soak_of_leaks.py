"""The soak is tested by backends that leave something: it must say so, and nothing of one that leaves nothing."""

from __future__ import annotations

import pytest

from polyexec.testing.soak import Sizes, soak

SIZES = Sizes(executors=4, tasks=500, outstanding=50)


@pytest.mark.timeout(120)
def test_a_leak_is_found(environment: dict[str, str]) -> None:
    (result,) = soak("leaksdescriptor", SIZES, names=["executors"], environment=environment, timeout=100)
    assert result.failure == ""
    assert [count for name, count in result.grown.items() if name.startswith("descriptors")] == [2 * SIZES.executors]
    assert any("descriptors" in text for text in result.left), result
    assert not result.is_clean


@pytest.mark.timeout(120)
def test_a_clean_backend_is_clean(environment: dict[str, str]) -> None:
    results = soak("foreignpool", SIZES, names=["executors", "tasks"], environment=environment, timeout=100)
    assert [result for result in results if not result.is_clean] == []

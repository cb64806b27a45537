"""Elastic training: a member of the gang is killed in mid-run, and the end is the same as without that."""

from __future__ import annotations

import pytest

import polyexec
from polyexec import registry
from polyexec.errors import BackendUnavailable

from .test_census import load


@pytest.mark.parametrize("backend", ["process", "ray"])
def test_training_goes_on_after_a_death(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        registry.backend_class(backend)
    except BackendUnavailable as error:
        pytest.skip(str(error))
    training = load("elastic_training")
    plan = training.Plan(steps=8, every=3, rows=400)
    with polyexec.connect(f"{backend}?workers=2") as ex:
        assert training.main(ex, plan)
    shown = capsys.readouterr().out
    assert "by hand: failed with ActorDied after step 6; the checkpoint has step 6" in shown
    assert "a new gang resumes" in shown
    assert shown.endswith("same weights: True\n")

"""Elastic training: a member of the gang is killed in mid-run, and the end is the same as without that."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

import polyexec
from polyexec import BackendUnavailable, registry

FOLDER = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("backend", ["process", "ray"])
def test_training_goes_on_after_a_death(
    backend: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        registry.backend_class(backend)
    except BackendUnavailable as error:
        pytest.skip(str(error))
    # Workers find the module where the driver does.
    monkeypatch.syspath_prepend(FOLDER)
    training = importlib.import_module("elastic_training")
    with polyexec.connect(f"{backend}?workers=2") as ex:
        assert training.main(ex, training.Plan(steps=8, every=3, rows=400))
    shown = capsys.readouterr().out
    assert "by hand: failed with ActorDied after step 6; the checkpoint has step 6" in shown
    assert "a new gang resumes" in shown
    assert "same weights: True\n" in shown

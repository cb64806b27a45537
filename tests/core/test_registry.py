from __future__ import annotations

import importlib.metadata
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest

import polyexec
from polyexec import entry_points, registry
from polyexec.config import LocalClusterConfig
from polyexec.spi import Backend


@attrs.frozen(kw_only=True)
class ToyConfig(LocalClusterConfig):
    """Has a key of its own."""

    address: str = attrs.field(default="", validator=attrs.validators.max_len(5))


def toy() -> type[Backend]:
    """Give a backend that is never opened."""
    return type("Toy", (Backend,), {"Config": ToyConfig})


def install(monkeypatch: pytest.MonkeyPatch, *points: EntryPoint) -> None:
    """Pretend that these entry points are installed, and no others."""
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points)
    monkeypatch.setattr(entry_points, "find", lambda group, name: None)


def point(name: str, value: str, distribution: str = "") -> EntryPoint:
    found = EntryPoint(name, value, registry.GROUP)
    if distribution:
        vars(found)["dist"] = SimpleNamespace(name=distribution)
    return found


def one_line(caught: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make a module with some code, importable in this test."""
    monkeypatch.syspath_prepend(tmp_path)
    names = []

    def make(name: str, code: str) -> str:
        (tmp_path / f"{name}.py").write_text(code)
        names.append(name)
        return name

    yield make
    for name in names:
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("threads", ("threads", {})),
        (" threads? ", ("threads", {})),
        ("ray?address=auto&workers=4", ("ray", {"address": "auto", "workers": "4"})),
        ("ray?address=ray%3A%2F%2Fh%3A1", ("ray", {"address": "ray://h:1"})),
        ("my_own_1?a=", ("my_own_1", {"a": ""})),
    ],
)
def test_specifications(text: str, expected: tuple[str, dict[str, str]]) -> None:
    """``NAME[?key=value&...]``."""
    assert registry.parse(text) == expected


@pytest.mark.parametrize(
    "text", ["", "?", "a b", "my-own", "Ray", "é", "ray://host", "x?workers", "x?a=1&b", "x?a=1&a=2", "x?a=1&&b=2"]
)
def test_texts_that_are_none(text: str) -> None:
    with pytest.raises(polyexec.SpecificationError) as caught:
        registry.parse(text)
    assert repr(text) in one_line(caught)


def test_what_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    """S15: the argument, else the variable, else the default."""
    monkeypatch.delenv(registry.VARIABLE, raising=False)
    assert registry.choose(None) == registry.Choice("process", "default")
    monkeypatch.setenv(registry.VARIABLE, " threads?workers=2 ")
    assert registry.choose(None) == registry.Choice("threads?workers=2", registry.VARIABLE)
    assert registry.choose("serial") == registry.Choice("serial", "argument")
    monkeypatch.setenv(registry.VARIABLE, " ")
    assert registry.choose(None).chosen_by == "default"


def test_an_unknown_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, point("b", "x:B"), point("a", "x:A"))
    with pytest.raises(polyexec.BackendNotFound) as caught:
        registry.backend_class("nope")
    assert one_line(caught) == "unknown backend 'nope'; installed are a, b"


def test_the_variable_is_named_when_it_chose_badly(monkeypatch: pytest.MonkeyPatch) -> None:
    """S15."""
    monkeypatch.setenv(registry.VARIABLE, "nope")
    with pytest.raises(polyexec.BackendNotFound) as caught:
        polyexec.connect()
    assert caught.value.__notes__ == ["(chosen by POLYEXEC_BACKEND='nope')"]


def test_two_distributions_with_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are named; the same one found twice is no conflict."""
    install(monkeypatch, point("a", "x:A", "one"), point("a", "x:A", "one"))
    assert list(registry.names()) == ["a"]
    install(monkeypatch, point("a", "x:A", "one"), point("a", "y:A", "two"))
    with pytest.raises(polyexec.SpecificationError) as caught:
        registry.names()
    assert "one (x:A) and two (y:A)" in one_line(caught)


@pytest.mark.parametrize(
    ("name", "mend"), [("ray", 'pip install "polyexec[ray]"'), ("other", "needs 'no_such_engine'")]
)
def test_a_missing_engine(name: str, mend: str, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Says how to mend it."""
    install(monkeypatch, point(name, module("px_toy_missing", "import no_such_engine.part") + ":Backend"))
    with pytest.raises(polyexec.BackendUnavailable) as caught:
        registry.backend_class(name)
    assert mend in one_line(caught)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("import polyexec.no_such_module", ModuleNotFoundError),
        ("import px_toy_broken.inner", ModuleNotFoundError),
        ("from polyexec import no_such_name", ImportError),
        ("1 / 0", ZeroDivisionError),
        ("", AttributeError),
    ],
)
def test_other_faults_of_a_backend_propagate(
    code: str, kind: type[Exception], module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are bugs, and no missing engine."""
    install(monkeypatch, point("toy", module("px_toy_broken", code) + ":Backend"))
    with pytest.raises(kind) as caught:
        registry.backend_class("toy")
    assert not isinstance(caught.value, polyexec.PolyexecError)


def test_an_entry_point_that_is_no_backend(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, point("toy", module("px_toy_other", "Backend = dict") + ":Backend"))
    with pytest.raises(polyexec.SpecificationError, match="not a subclass"):
        registry.backend_class("toy")


def test_names_are_listed_without_an_import(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, point("toy", "px_no_such_module:Backend"))
    assert list(registry.names()) == ["toy"]


def test_names_that_no_specification_can_have_are_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, point("toy", "x:A"), point("../evil", "y:A"), point("Toy", "z:A"), point("a b", "x:A"))
    assert list(registry.names()) == ["toy"]


@pytest.mark.parametrize("name", ["../evil", "Toy", "os:system", "http://host/module"])
def test_nothing_is_imported_for_a_name_that_is_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, point(name, "px_no_such_module:Backend"))
    with pytest.raises(polyexec.SpecificationError, match="is not a backend specification"):
        polyexec.connect(name)


def test_an_unknown_key() -> None:
    with pytest.raises(polyexec.SpecificationError) as caught:
        registry.configure("toy", toy(), {"wrokers": "4"})
    assert "no key 'wrokers'; valid are address, gpus, initializer, log_to_driver," in one_line(caught)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("workers", "0"),
        ("workers", "two"),
        ("gpus", "-1"),
        ("memory", "2 GiBi"),
        ("resources", "license:x"),
        ("resources", "cpus:3"),
        ("initializer", "no_colon"),
        ("start_timeout", "0"),
        ("address", "too long"),
    ],
)
def test_a_bad_value(key: str, value: str) -> None:
    """One line with the backend, the key and the value."""
    with pytest.raises(polyexec.SpecificationError) as caught:
        registry.configure("toy", toy(), {key: value})
    text = one_line(caught)
    assert "toy" in text
    assert key in text


def test_good_values() -> None:
    keys = {"workers": "3", "gpus": "1", "memory": "1KiB", "resources": "license:1,disk:2.5", "start_timeout": "1.5"}
    config = registry.configure("toy", toy(), keys)
    assert config.total() == polyexec.Resources(3, 1, 1024, {"license": 1, "disk": 2.5})


def test_a_configuration_of_no_backend() -> None:
    with pytest.raises(polyexec.SpecificationError, match="connect takes"):
        polyexec.connect(object())

"""Whatever stands before the '@' of an address, and what is called a secret, is shown nowhere."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import attrs
import pytest

import polyexec
from polyexec import registry
from polyexec.config import LocalClusterConfig, text
from polyexec.redaction import redacted, shown, without
from polyexec.spi import Backend, Call, Lease, Stored
from polyexec.wire import Attempt

SECRET = "canary-8f3a"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("threads?workers=2", "threads?workers=2"),
        (f"x?address=tcp://me:{SECRET}@host:1&workers=2", "x?address=tcp://***@host:1&workers=2"),
        (f"x?address=tcp%3A%2F%2Fme%3A{SECRET}%40host", "x?address=tcp://***@host"),
        (f"x?address=me:{SECRET}@host:1", "x?address=***@host:1"),
        (f"x?token={SECRET}&workers=2", "x?token=***&workers=2"),
        (f"x?workers=2&db_password={SECRET}", "x?workers=2&db_password=***"),
        (f"x?password={SECRET}&{SECRET}&a=1", "x?password=***&***&a=1"),
        ("x?token=", "x?token="),
        ("x?token_file=/run/token&spill_folder=/data/a@b", "x?token_file=/run/token&spill_folder=/data/a@b"),
        (f"tcp://me:{SECRET}@host:8786", "tcp://***@host:8786"),
        (f"tcp://me:{SECRET}?&/@@host", "tcp://***@host"),
        (f"me:{SECRET}@host", "***@host"),
        ("", ""),
    ],
)
def test_specifications_without_their_secrets(given: str, expected: str) -> None:
    assert redacted(given) == expected


def test_messages_without_the_secrets_of_a_value() -> None:
    value = f"tcp://me:{SECRET}@host"
    assert without(f"{value!r} is wrong", "address", value) == "'tcp://***@host' is wrong"
    assert SECRET not in without(f"no user {SECRET}", "address", value)
    assert without("'4' is wrong", "workers", "4") == "'4' is wrong"
    assert shown("token", SECRET) == "***"


@attrs.frozen(kw_only=True)
class KeyedConfig(LocalClusterConfig):
    """Has keys that may hold secrets."""

    address: str = attrs.field(default="", converter=lambda value: fail(value) if "@" in str(value) else value)
    token: str = attrs.field(default="t", converter=text, validator=attrs.validators.max_len(3))


def fail(value: Any) -> Any:
    raise ValueError(f"{value!r} is no address, or {value.partition('@')[0].rpartition(':')[2]} is")


@pytest.mark.parametrize("keys", [{"address": f"tcp://me:{SECRET}@h"}, {"token": SECRET}, {"tokken": SECRET}])
def test_errors_about_a_value_do_not_show_its_secrets(keys: Mapping[str, str]) -> None:
    toy = type("Toy", (Backend,), {"Config": KeyedConfig})
    with pytest.raises(polyexec.SpecificationError) as caught:
        registry.configure("toy", toy, dict(keys))
    # As a program shows it that ends with the error, its causes among it.
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "specification",
    [
        f"tcp://me:{SECRET}@host",
        f"serial?token={SECRET}",
        f"serial?workers={quote(f'a://me:{SECRET}@b')}",
        f"serial?password=1&{SECRET}",
    ],
)
def test_errors_about_a_specification_do_not_show_its_secrets(
    specification: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(registry.VARIABLE, specification)
    for given in (None, specification):
        with pytest.raises(polyexec.PolyexecError) as caught:
            polyexec.connect(given)
        assert SECRET not in "".join([str(caught.value), *getattr(caught.value, "__notes__", ())])


def test_what_is_no_specification_is_not_shown() -> None:
    with pytest.raises(polyexec.SpecificationError) as caught:
        polyexec.connect({"password": SECRET})
    assert SECRET not in str(caught.value)


def test_reprs_show_no_values() -> None:
    """Names of environment variables, but not what they are set to; no arguments and no results."""
    env = {"API_TOKEN": SECRET}
    options = polyexec.TaskOptions(env=env)
    attempt = Attempt(1, 1, 1, "f", 1, env, None, (), 1, None, False)
    stored = Stored(SECRET.encode(), [SECRET.encode()])
    lease = Lease("node", polyexec.Resources())
    call = Call(1, 1, "f", attempt.encode(), stored, (), lease, env=env, shared=(print, (SECRET,), {}))
    config = LocalClusterConfig(initializer=functools.partial(print, SECRET))
    choice = registry.Choice(f"x?token={SECRET}", "argument")
    for thing in (options, attempt, stored, call, config, choice):
        assert SECRET not in repr(thing), type(thing)
    assert "API_TOKEN" in repr(options)


def test_info_shows_no_secrets() -> None:
    with polyexec.connect("serial?initializer=os:getpid") as ex:
        assert ex.info.specification == "serial?initializer=os:getpid"
    choice = registry.Choice(f"x?address=a://me:{SECRET}@b", "argument")
    assert choice.redacted == "x?address=a://***@b"

"""Texts in which a secret may stand, made fit to be shown in logs, errors and ``repr``.

Secret is what stands before the ``@`` of an address, and the value of a key that is called like a secret. When in doubt
more is hidden than must be: what is shown is for people alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

HIDDEN = "***"
"""What is shown instead."""

_USER = re.compile(r"(?<=://).*@", re.DOTALL)
_CALLED_SECRET = re.compile(r"pass(word|wd|phrase)?|pwd|secret|token|credentials?|api_?key|auth", re.IGNORECASE)
_PLACE = re.compile(r"_(file|path|folder|dir)$", re.IGNORECASE)
_SHORTEST = 4
"""Characters that a part of a secret must have to be looked for in a text: shorter ones stand in every text."""


def redacted(specification: str) -> str:
    """Give a specification, or an address, without its secrets.

    Args:
        specification: any text; it need not be well formed.

    Returns:
        The text, with ``***`` in the place of what may be secret.
    """
    name, mark, rest = _USER.sub(f"{HIDDEN}@", specification).partition("?")
    return shown("", name) + mark + "&".join(_pairs(rest))


def _pairs(text: str) -> Iterator[str]:
    # Workers, too, import this module, and their start is waited for.
    from urllib.parse import unquote_plus

    is_secret = False
    for pair in text.split("&"):
        key, equals, value = pair.partition("=")
        if not equals:
            # The end of a value, perhaps, in which somebody has not encoded the '&'.
            yield HIDDEN if is_secret and pair else shown("", pair)
            continue
        is_secret = shown(key, unquote_plus(value)) != unquote_plus(value)
        yield f"{key}={shown(key, unquote_plus(value))}" if is_secret else pair


def shown(key: str, value: str) -> str:
    """Give the value of a key without its secrets."""
    if key and _CALLED_SECRET.search(key) and not _PLACE.search(key):
        return HIDDEN if value else value
    if "://" in value:
        return _USER.sub(f"{HIDDEN}@", value)
    _, at, host = value.rpartition("@")
    return value if not at or value.startswith(("/", ".")) else f"{HIDDEN}@{host}"


def without(message: str, key: str, value: str) -> str:
    """Take the secrets of a value out of a message about it; if that is not possible, give another message."""
    visible = shown(key, value)
    if visible == value:
        return message
    for form in (value, repr(value)[1:-1]):
        message = message.replace(form, visible)
    secret = value.removesuffix(visible.rpartition(HIDDEN)[2])
    parts = (secret, *re.split(r"[:/@]+", secret))
    if any(part in message for part in parts if len(part) >= _SHORTEST):
        return "its value, which is not shown because it may be secret, is wrong"
    return message


def names_only(mapping: Mapping[str, str]) -> str:
    """Show a mapping from names to values that may be secret; for ``attrs.field(repr=...)``."""
    return f"{{{', '.join(f'{name!r}: {HIDDEN}' for name in mapping)}}}"

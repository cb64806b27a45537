"""What ``.gitignore`` files say (https://git-scm.com/docs/gitignore).

For those who walk through folders from above and do not enter one that is ignored, as git does: a pattern is compared
with the file or folder itself, never with what is above it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import attrs

_TOKEN = re.compile(
    r"\\(?P<escaped>.)|(?P<stars>\*+)|(?P<any>\?)|(?P<literal>[^\\\[])"
    r"|\[(?P<negated>[!^]?)(?P<set>\]?(?:\[:[a-z]+:\]|\\.|[^\]\\])*)\]",
    re.DOTALL,
)
_IN_SET = re.compile(r"\[:(?P<kind>[a-z]+):\]|\\(?P<escaped>.)|(?P<range>-)|(?P<literal>.)", re.DOTALL)
_KINDS = {
    "alnum": "a-zA-Z0-9",
    "alpha": "a-zA-Z",
    "blank": " \\t",
    "digit": "0-9",
    "lower": "a-z",
    "punct": "!-/:-@\\[-`{-~",
    "space": "\\s",
    "upper": "A-Z",
    "xdigit": "0-9a-fA-F",
}
_ANY_FOLDERS = re.compile(r"\*\*+")
_NOTHING = re.compile(r"(?!)")


@attrs.frozen
class _Pattern:
    """One line.

    Attributes:
        ignores: what it matches is ignored; otherwise it is not, whatever lines before it say.
        folders_only: it matches folders alone.
        anchored: it is compared with the path from the folder of its file, otherwise with the name alone.
        parts: of it, between slashes; None for any number of folders.
    """

    ignores: bool
    folders_only: bool
    anchored: bool
    parts: tuple[re.Pattern[str] | None, ...]

    def matches(self, path: Sequence[str], *, is_folder: bool) -> bool:
        if self.folders_only and not is_folder:
            return False
        return _fits(self.parts, path if self.anchored else path[-1:])


@attrs.frozen
class Rules:
    """The lines of one file, the last first."""

    _patterns: tuple[_Pattern, ...]

    @staticmethod
    def read(text: str) -> Rules:
        """Read a file's text; lines that make no sense match nothing, as with git."""
        return Rules(tuple(_patterns(text))[::-1])

    def verdict(self, path: Sequence[str], *, is_folder: bool) -> bool | None:
        """Say whether something is ignored.

        Args:
            path: the names that lead to it from the folder of the file, its own the last.
            is_folder: it is a folder.

        Returns:
            None if no line says anything about it.
        """
        for pattern in self._patterns:
            if pattern.matches(path, is_folder=is_folder):
                return pattern.ignores
        return None


def _patterns(text: str) -> Iterator[_Pattern]:
    for line in text.split("\n"):
        stripped = re.sub(r"(?<!\\) +$", "", line)
        if not stripped or stripped.startswith("#"):
            continue
        ignores = not stripped.startswith("!")
        body = stripped if ignores else stripped[1:]
        folders_only = body.endswith("/")
        body = body.removesuffix("/")
        anchored = "/" in body
        try:
            parts = tuple(_part(part) for part in body.removeprefix("/").split("/"))
        except re.error:
            continue
        yield _Pattern(ignores, folders_only, anchored, parts)


def _part(text: str) -> re.Pattern[str] | None:
    """Translate what stands between two slashes; raises ``re.error`` if it makes no sense."""
    if _ANY_FOLDERS.fullmatch(text):
        return None
    pieces, position = [""], 0
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None:
            raise re.error("no such pattern")
        if not token["stars"]:
            pieces[-1] += _translated(token)
        elif pieces[-1] or len(pieces) == 1:
            pieces.append("")
        position = token.end()
    first, *others = pieces
    if not others:
        return re.compile(first, re.DOTALL)
    # What lies between two stars is best found as early as it can be, and never looked for again.
    between = "".join(f"(?>.*?{piece})" for piece in others[:-1])
    return re.compile(f"{first}{between}.*{others[-1]}", re.DOTALL)


def _translated(token: re.Match[str]) -> str:
    if token["any"]:
        return "."
    if token["set"]:
        return f"[{'^' if token['negated'] else ''}{_IN_SET.sub(_translated_in_set, token['set'])}]"
    return re.escape(token["escaped"] or token["literal"] or "")


def _translated_in_set(token: re.Match[str]) -> str:
    if token["kind"]:
        return _KINDS.get(token["kind"], "")
    return "-" if token["range"] else re.escape(token["escaped"] or token["literal"])


def _fits(parts: Sequence[re.Pattern[str] | None], path: Sequence[str]) -> bool:
    # All places in the pattern at once, so that no pattern takes longer than its length times that of the path.
    places = _with_next(parts, {0})
    for name in path:
        found = set()
        for place in places:
            part = parts[place] if place < len(parts) else _NOTHING
            if part is None:
                found |= {place, place + 1} if place == len(parts) - 1 else {place}
            elif part.fullmatch(name):
                found.add(place + 1)
        places = _with_next(parts, found)
    return len(parts) in places


def _with_next(parts: Sequence[re.Pattern[str] | None], places: set[int]) -> set[int]:
    """Add the places behind those that stand for any number of folders, because none is a number, too."""
    for place in range(len(parts) - 1):
        if place in places and parts[place] is None:
            places.add(place + 1)
    return places

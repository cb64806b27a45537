"""Finding one entry point without ``importlib.metadata``, whose import takes longer than the rest of ``connect``.

Only what lies in folders of the import path is found, as almost everything does; and only if there is no doubt. The
registry asks ``importlib.metadata`` about all else. Thread-safe; reads one small file for each installed distribution.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator

_NAMES = re.compile(r"(?P<name>.+?)(-.+)?\.(dist|egg)-info")


def find(group: str, name: str) -> str | None:
    """Find an entry point.

    Args:
        group: for example ``"polyexec.backends"``.
        name: its name.

    Returns:
        ``"module:attribute"``, or None if there is none, or more than one, or something unusual about it.
    """
    found = {value for text in _texts() for key, value in _entries(text, group) if key == name}
    value = found.pop() if len(found) == 1 else ""
    return value if re.fullmatch(r"[\w.]+:\w+", value) else None


def _texts() -> Iterator[str]:
    """Give the entry points of each distribution; of several of one name the first on the import path counts."""
    seen = set()
    for folder in sys.path:
        try:
            entries = os.listdir(folder or ".")
        except OSError:
            continue
        for entry in entries:
            match = _NAMES.fullmatch(entry)
            distribution = re.sub(r"[-_.]+", "_", match["name"]).lower() if match else ""
            if match and distribution not in seen:
                seen.add(distribution)
                try:
                    with open(os.path.join(folder, entry, "entry_points.txt"), encoding="utf-8") as file:
                        yield file.read()
                except OSError:
                    continue


def _entries(text: str, group: str) -> Iterator[tuple[str, str]]:
    section = ""
    for line in map(str.strip, text.splitlines() if f"[{group}]" in text else ()):
        if line.startswith("["):
            section = line
        elif section == f"[{group}]" and not line.startswith("#"):
            key, _, value = line.partition("=")
            yield key.strip(), value.strip()

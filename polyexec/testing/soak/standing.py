"""What an open executor holds, by number: other processes may have taken the places of those that there were."""

from __future__ import annotations

import gc
import re
import tempfile
import threading
from collections import Counter

from polyexec.testing.leftovers import instances, listening
from polyexec.testing.watch import descriptors, family, memory_of_files, shared_memory


def standing() -> Counter[str]:
    """Count everything that should stay as it is while the same is done again and again."""
    gc.collect()
    relatives = family()
    found = Counter(
        {
            "threads": threading.active_count(),
            "processes": len(relatives),
            "files": len(shared_memory()),
            "sockets that listen": len(listening()),
            "MiB of shared memory": memory_of_files() >> 20,
        }
    )
    for kind, count in descriptors().items():
        found[f"descriptors of {_shown(kind)}"] += count
    for relative in relatives:
        for kind, count in descriptors(relative.pid).items():
            found[f"descriptors of {_shown(kind)} elsewhere"] += count
    found.update({f"objects of {kind}": count for kind, count in instances().items()})
    return found


def _shown(kind: str) -> str:
    """Name what a descriptor refers to; temporary files have names that are drawn by chance."""
    folder = re.sub(r"\d+", "N", tempfile.gettempdir())
    return "temporary files" if kind.startswith(folder) else kind

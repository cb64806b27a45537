"""Long runs that look for what grows, and for what is left: ``python -m polyexec.testing.soak SPECIFICATION``.

It knows no backend by name, and works for those of others, too.
"""

from polyexec.testing.soak.records import Result, Sizes, Slope
from polyexec.testing.soak.runner import soak

__all__ = ["Result", "Sizes", "Slope", "soak"]

"""polyexec on Ray: a pool of worker actors on each node, fed by polyexec's own scheduler."""

from polyexec_ray.backend import RayBackend
from polyexec_ray.config import RayConfig

__all__ = ["RayBackend", "RayConfig"]

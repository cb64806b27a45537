"""A polyexec backend: a pool of worker processes, each at the other end of a socket pair."""

from foreign_pool.pool import ForeignPool

__all__ = ["ForeignPool"]

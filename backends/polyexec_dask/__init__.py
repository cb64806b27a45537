"""polyexec on dask.distributed: a cluster of its own on this machine, or one that runs already."""

from __future__ import annotations

from polyexec_dask.backend import DaskBackend
from polyexec_dask.configuration import DaskConfig

__all__ = ["DaskBackend", "DaskConfig"]

"""Pools of the standard library, and loky's."""

from __future__ import annotations

import concurrent.futures
import importlib
import multiprocessing
from collections.abc import Sequence
from typing import Any

from polyexec_bench.systems import System


def thread_pool(workers: int) -> System:
    """Open a pool of threads."""
    return _system(concurrent.futures.ThreadPoolExecutor(workers))


def process_pool(workers: int) -> System:
    """Open a pool of forked processes; fork is what it has always done, and is its quickest."""
    context = multiprocessing.get_context("fork")
    return _system(concurrent.futures.ProcessPoolExecutor(workers, mp_context=context))


def loky(workers: int) -> System:
    """Open loky's pool."""
    return _system(importlib.import_module("loky").ProcessPoolExecutor(workers))


def _system(pool: Any) -> System:
    return System(pool, pool.submit, _results, False, pool.shutdown)


def _results(futures: Sequence[Any]) -> list[Any]:
    return [future.result() for future in futures]

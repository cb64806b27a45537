"""The systems that are compared, each as the few operations that the cases need.

Where a system's own method has the right form it is taken as it is, so that nothing stands between it and the clock.
All start as many single-threaded workers, by fork where they can.
"""

from __future__ import annotations

import concurrent.futures
import importlib
import importlib.metadata
import importlib.util
import multiprocessing
import sys
from collections.abc import Callable, Iterable, Sequence
from operator import methodcaller
from typing import Any, TypeAlias

import attrs

Function: TypeAlias = Callable[..., Any]
Many: TypeAlias = Callable[[Function, Sequence[Any]], Sequence[Any]]

CHUNK = 100
"""Items in a chunk, for the systems that do not choose by themselves and whose default is 1."""


@attrs.frozen
class System:
    """A pool of workers that is open.

    Attributes:
        native: the system's own object.
        submit: run a function with arguments; gives a handle.
        take: wait for the result of a handle.
        many: run a function once for each item, in tasks of their own, and give all results.
        map: apply a function to all items, in chunks as the system does it.
        close: end the workers.
        kill: end a running task by force, None where there is no such thing.
    """

    native: Any
    submit: Function
    take: Callable[[Any], Any]
    many: Many
    map: Callable[[Function, Sequence[Any]], Iterable[Any]]
    close: Callable[[], object]
    kill: Callable[[Any], object] | None = None


@attrs.frozen
class Opener:
    """How to open a system.

    Attributes:
        title: what the report calls it.
        module: what is imported before it can be opened.
        start: how it starts workers.
        open: called with the number of workers.
    """

    title: str
    module: str
    start: str
    open: Callable[[int], System]

    def missing(self) -> bool:
        """Say whether it is not installed."""
        return importlib.util.find_spec(self.module) is None

    def version(self) -> str:
        """Give the version of its distribution, nothing for the standard library's."""
        if self.module.partition(".")[0] in sys.stdlib_module_names or self.missing():
            return ""
        return importlib.metadata.version(self.module)


def _one_by_one(submit: Function, take: Callable[[Any], Any]) -> Many:
    def many(function: Function, items: Sequence[Any]) -> list[Any]:
        handles = [submit(function, item) for item in items]
        return [take(handle) for handle in handles]

    return many


def _peer(module: str) -> Any:
    """Import what may not be installed."""
    return importlib.import_module(module)


def _polyexec(workers: int) -> System:
    import polyexec

    executor = polyexec.connect(f"process?workers={workers}")
    submit, take = executor.submit, polyexec.Future.result

    def kill(future: Any) -> bool:
        return executor.cancel(future, force=True)

    return System(executor, submit, take, _one_by_one(submit, take), executor.map, executor.close, kill)


def _standard(executor: Any) -> System:
    def chunked(function: Function, items: Sequence[Any]) -> Iterable[Any]:
        result: Iterable[Any] = executor.map(function, items, chunksize=CHUNK)
        return result

    take = methodcaller("result")
    return System(executor, executor.submit, take, _one_by_one(executor.submit, take), chunked, executor.shutdown)


def _process_pool(workers: int) -> System:
    context = multiprocessing.get_context("fork")
    return _standard(concurrent.futures.ProcessPoolExecutor(workers, mp_context=context))


def _loky(workers: int) -> System:
    return _standard(_peer("loky").ProcessPoolExecutor(workers))


def _pool(workers: int) -> System:
    pool = multiprocessing.get_context("fork").Pool(workers)

    def submit(function: Function, *args: Any) -> Any:
        return pool.apply_async(function, args)

    def close() -> None:
        pool.close()
        pool.join()

    take = methodcaller("get")
    return System(pool, submit, take, _one_by_one(submit, take), pool.map, close)


def _pebble(workers: int) -> System:
    pool = _peer("pebble").ProcessPool(workers, context=multiprocessing.get_context("fork"))

    def submit(function: Function, *args: Any) -> Any:
        return pool.schedule(function, args)

    def chunked(function: Function, items: Sequence[Any]) -> Iterable[Any]:
        result: Iterable[Any] = pool.map(function, items, chunksize=CHUNK).result()
        return result

    def close() -> None:
        pool.close()
        pool.join()

    take = methodcaller("result")
    return System(pool, submit, take, _one_by_one(submit, take), chunked, close, methodcaller("cancel"))


def _mpire(workers: int) -> System:
    pool = _peer("mpire").WorkerPool(workers, start_method="fork", keep_alive=True)

    def submit(function: Function, *args: Any) -> Any:
        return pool.apply_async(function, args)

    take = methodcaller("get")
    return System(pool, submit, take, _one_by_one(submit, take), pool.map, pool.stop_and_join)


def _joblib(workers: int) -> System:
    """Open joblib, which has no handles: ``submit`` waits, and ``many`` has batches of one."""
    joblib = _peer("joblib")
    single = joblib.Parallel(n_jobs=workers, backend="loky", batch_size=1, pre_dispatch="all")
    batched = joblib.Parallel(n_jobs=workers, backend="loky")

    def submit(function: Function, *args: Any) -> Any:
        return single([joblib.delayed(function)(*args)])[0]

    def calls(parallel: Any) -> Many:
        def run(function: Function, items: Sequence[Any]) -> Sequence[Any]:
            call = joblib.delayed(function)
            results: Sequence[Any] = parallel(call(item) for item in items)
            return results

        return run

    def close() -> None:
        _peer("joblib.externals.loky").get_reusable_executor().shutdown()

    def take(result: Any) -> Any:
        return result

    return System(None, submit, take, calls(single), calls(batched), close)


OPENERS = {
    "polyexec": Opener("polyexec `process`", "polyexec", "its own", _polyexec),
    "processpool": Opener("ProcessPoolExecutor", "concurrent.futures.process", "fork", _process_pool),
    "pool": Opener("multiprocessing.Pool", "multiprocessing.pool", "fork", _pool),
    "pebble": Opener("pebble", "pebble", "fork", _pebble),
    "mpire": Opener("mpire", "mpire", "fork", _mpire),
    "loky": Opener("loky", "loky", "loky", _loky),
    "joblib": Opener("joblib", "joblib", "loky", _joblib),
}

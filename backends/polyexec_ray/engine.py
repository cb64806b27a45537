"""Ray itself: an instance of our own, or the connection to a cluster. Ray allows one of them in a process.

An own instance is shared by all executors of the process that want one, and stopped with the last. It lives in one
thread, because Linux kills Ray's processes when the thread that started them ends, which is also what makes them end
with the driver.
"""

from __future__ import annotations

import atexit
import importlib.util
import logging
import os
import queue
import secrets
import shutil
import tempfile
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import attrs
import ray

from polyexec.errors import BackendBroken, BackendLost, BackendUnavailable, SpecificationError
from polyexec.options import Resources
from polyexec.spi import Protection
from polyexec_ray.addresses import check_listening, resolve
from polyexec_ray.config import RayConfig
from polyexec_ray.debris import sweep
from polyexec_ray.processes import end_family, family
from polyexec_ray.settings import authentication, forget_settings, is_encrypted, private_settings, quiet, token_file

_T = TypeVar("_T")
_LOCK = threading.Lock()
_current: list[Engine] = []


class Keeper:
    """A thread that runs functions one after the other and lives until it is told to end."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="polyexec-ray-engine", daemon=True)
        self._thread.start()

    def run(self, function: Callable[[], _T]) -> _T:
        """Run a function in the thread, and give what it gives or raise what it raises."""
        done: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

        def job() -> None:
            try:
                done.put((function(), None))
            except BaseException as error:
                done.put((None, error))

        self._jobs.put(job)
        result, error = done.get()
        if error is not None:
            raise error
        value: _T = result
        return value

    def end(self) -> None:
        """End the thread."""
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()


@attrs.define(eq=False)
class Engine:
    """Ray in this process.

    Attributes:
        own: we have started it, for ourselves alone.
        client: it is reached through a Ray Client server.
        address: of its control service.
        dashboard: address of its dashboard, None if there is none.
        shape: what was asked for and cannot be changed while it runs.
        disconnects: we have made the connection, and close it.
    """

    own: bool
    client: bool
    address: str
    dashboard: str | None
    shape: tuple[Any, ...]
    disconnects: bool
    users: int = 1
    _keeper: Keeper = attrs.field(factory=Keeper)
    _folder: str | None = None

    @property
    def version(self) -> str:
        """Ray's version."""
        return str(ray.__version__)

    def dead_process(self) -> str | None:
        """Name a process of our own instance that has died and without which it does not work."""
        node: Any = ray._private.worker._global_node
        if not self.own or node is None:
            return None
        dead = {str(kind) for kind, _ in node.dead_processes()}
        return next((name for name in ("gcs_server", "raylet") if name in dead), None)

    def protection(self) -> Protection:
        """Say how Ray keeps others out."""
        if self._folder is not None:
            return Protection("Ray's token, made for this instance", False, (self._folder, _token_in(self._folder)))
        known = authentication()
        token = token_file() if "token" in known else None
        return Protection(known, is_encrypted(), () if token is None else (token,))

    def release(self) -> None:
        """Stop or disconnect Ray if nobody else in this process uses it."""
        with _LOCK:
            self.users -= 1
            if self.users:
                return
            _current.remove(self)
            if self.disconnects:
                self._keeper.run(_shut_down)
            self._keeper.end()
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
                sweep(self._folder)


def acquire(config: RayConfig) -> Engine:
    """Start Ray, or connect to it, or share what this process has already.

    Args:
        config: what is wanted.

    Returns:
        The engine; ``release`` it once.

    Raises:
        SpecificationError: Ray runs in this process already, in another way.
        BackendLost: nobody answers at the address.
        BackendBroken: Ray does not start.
    """
    with _LOCK:
        if _current:
            return _share(_current[0], config)
        engine = _start(config) if config.address is None else _connect(config, config.address)
        _current.append(engine)
        return engine


def _share(engine: Engine, config: RayConfig) -> Engine:
    if config.address == "auto" or engine.shape == _shape(config):
        engine.users += 1
        return engine
    have = f"the cluster at {engine.address}" if not engine.own else "an instance of our own with other settings"
    raise SpecificationError(
        f"this process uses Ray already, {have}, and Ray allows one connection in a process: close that executor "
        f"first, or ask for the same (address, gpus, memory, resources, store_limit, dashboard, log_to_driver)"
    )


def _shape(config: RayConfig) -> tuple[Any, ...]:
    return (
        config.address,
        config.gpus,
        config.memory,
        tuple(sorted(config.resources.items())),
        config.store_limit,
        config.dashboard,
        config.log_to_driver,
    )


def _start(config: RayConfig) -> Engine:
    if ray.is_initialized():
        raise SpecificationError(
            "ray.init() has been called in this process: use 'ray?address=auto' to share that connection, or call "
            "ray.shutdown() first; inside a task use polyexec.current()"
        )
    total = config.total()
    keeper, folder = Keeper(), tempfile.mkdtemp(prefix="polyexec-")
    try:
        context = keeper.run(lambda: _initialise(config, total, folder))
    except Exception as error:
        keeper.run(_shut_down)
        keeper.end()
        shutil.rmtree(folder, ignore_errors=True)
        raise BackendBroken(f"Ray does not start: {_first_line(error)}") from error
    dashboard = _link(context.dashboard_url)
    engine = Engine(True, False, context.address_info["address"], dashboard, _shape(config), True, keeper=keeper)
    engine._folder = folder
    return engine


def _token_in(folder: str) -> str:
    return os.path.join(folder, "token")


def _initialise(config: RayConfig, total: Resources, folder: str) -> Any:
    token = _token_in(folder)
    with os.fdopen(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    with private_settings(token), quiet():
        return ray.init(
            "local",
            num_cpus=int(total.cpus),
            num_gpus=int(total.gpus),
            resources=dict(total.custom) or None,
            object_store_memory=config.store_limit,
            include_dashboard=config.dashboard,
            configure_logging=False,
            log_to_driver=config.log_to_driver,
            _memory=total.memory,
            # Ray opens this folder to everybody, so it lies inside one that is not.
            _temp_dir=os.path.join(folder, "ray"),
        )


def _connect(config: RayConfig, address: str) -> Engine:
    if ray.is_initialized():
        if address != "auto":
            raise SpecificationError(
                f"ray.init() has been called in this process: use 'ray?address=auto' to share that connection, or "
                f"call ray.shutdown() before connecting to {address}"
            )
        client = bool(ray.util.client.ray.is_connected())  # type: ignore[no-untyped-call]
        dashboard = None if client else _link(ray._private.worker.get_dashboard_url())  # type: ignore[no-untyped-call]
        return Engine(False, client, _gcs_address(), dashboard, _shape(config), False)
    where = resolve(address)
    if where.startswith("ray://") and importlib.util.find_spec("grpc") is None:
        raise BackendUnavailable('an address ray://... needs Ray Client: pip install "ray[client]"')
    check_listening(where)
    keeper = Keeper()
    try:
        # An instance of our own may have run in this process before, with a token of its own.
        forget_settings()
        with quiet():
            context = keeper.run(lambda: _attach(where, log_to_driver=config.log_to_driver))
    except Exception as error:
        keeper.run(_shut_down)
        keeper.end()
        raise BackendLost(f"cannot connect to Ray at {where}: {_first_line(error)}") from error
    dashboard = _link(context.dashboard_url)
    return Engine(False, where.startswith("ray://"), where, dashboard, _shape(config), True, keeper=keeper)


def _attach(address: str, *, log_to_driver: bool) -> Any:
    if address.startswith("ray://"):
        return ray.init(address, logging_level=logging.ERROR)
    return ray.init(address, log_to_driver=log_to_driver, configure_logging=False)


def _link(dashboard: str | None) -> str | None:
    """Give the address of a dashboard as browsers want it, from what Ray calls its URL; empty if there is none."""
    return f"http://{dashboard}" if dashboard else None


def _gcs_address() -> str:
    try:
        return str(ray.get_runtime_context().gcs_address)
    except Exception:
        # A Ray Client connection has no such address; the text is for people only.
        return "auto"


def _shut_down() -> None:
    node: Any = ray._private.worker._global_node
    started = [] if node is None else [info.process.pid for infos in node.all_processes.values() for info in infos]
    members = family(started)
    with quiet():
        ray.shutdown(wait_for_processes=True)
    end_family(members)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def _leave_alone() -> None:
    """Run in a forked child of the driver: Ray's end of its own would wait for threads, and kill its parent's Ray."""
    if _current:
        atexit.unregister(ray.shutdown)


os.register_at_fork(after_in_child=_leave_alone)

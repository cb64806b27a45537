"""Tasks in processes of this machine, each isolated from the crash of another."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import attrs
from attrs.converters import optional

from polyexec import outcome
from polyexec.config import LocalClusterConfig, text
from polyexec.errors import BackendBroken, ResourceExhausted
from polyexec.options import parse_bytes
from polyexec.spi import (
    Backend,
    Call,
    Capabilities,
    EngineInfo,
    Host,
    Node,
    Outcome,
    Protection,
    Stored,
    Value,
    WorkerState,
)
from polyexec_local.lending import Kept, Parcel
from polyexec_local.memory import THRESHOLD
from polyexec_local.sizes import slots_for
from polyexec_local.template import Template

if TYPE_CHECKING:
    from polyexec_local.pool import Pool


def _modules(value: Any) -> tuple[str, ...]:
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
    if isinstance(names, Sequence) and all(isinstance(name, str) and _is_module(name) for name in names):
        return tuple(names)
    raise ValueError(f"{value!r} is not a list of modules such as 'numpy,pandas.io'")


def _is_module(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def _folder(value: Any) -> str:
    """Let the path of a folder pass."""
    path = text(value)
    if not os.path.isdir(path):
        raise ValueError(f"{path!r} is not a folder")
    return os.path.abspath(path)


@attrs.frozen(kw_only=True)
class ProcessConfig(LocalClusterConfig):
    """Configuration of ``process``.

    Attributes:
        preload: modules that are imported once, in the process from which all workers are forked, so that a worker
            has them at once; names in a sequence, or in one text with commas. They must start no threads.
        store_limit: bytes of memory for values; beyond it those go to disk that nobody looks at. None for 30 % of the
            machine's memory.
        spill_folder: where the file on disk is; None for ``TMPDIR``, or else ``/var/tmp``.
    """

    preload: Sequence[str] = attrs.field(default=(), converter=_modules)
    store_limit: int | None = attrs.field(default=None, converter=optional(parse_bytes))
    spill_folder: str | None = attrs.field(default=None, converter=optional(_folder))


class ProcessBackend(Backend):
    """Runs each call in a worker process; everything about workers belongs to the core's thread."""

    Config = ProcessConfig
    capabilities = Capabilities(shares_memory=True, places_calls=True)
    _template: Template | None = None
    _pool: Pool

    def begin(self) -> Callable[[], None]:
        """Start the process from which workers are forked."""
        try:
            template = Template(self.config.preload)
            try:
                template.start()
            except BaseException:
                template.close()
                raise
        except OSError as error:
            raise BackendBroken(f"cannot start a process: {error}") from error
        self._template = template
        return template.close

    def open(self, host: Host) -> EngineInfo:
        """Start the pool; its workers come up while the program goes on."""
        from polyexec_local.pool import Pool
        from polyexec_local.store import Store

        if self._template is None:
            self.begin()
        assert self._template is not None
        self._node = Node(
            "local",
            socket.gethostname(),
            self.config.total(),
            slots_for(self.config),
            gpu_ids=self.config.gpu_ids(),
        )
        self._store = Store(self.config.store_limit, folder=self.config.spill_folder)
        size, patience = int(self._node.total.cpus), self.config.start_timeout
        self._pool = Pool(host, size, patience, self._template, self._store)
        self._lender = self._pool.lender
        self._host = host
        self._pool.start()
        self.seats, self.poller = self._pool.seating, self._pool
        return EngineInfo(f"{platform.python_implementation()} {platform.python_version()}")

    def close(self, *, kill: bool) -> None:
        """End all workers, and let go of all values; those that are being looked at here stay as they are."""
        self._pool.stop(kill=kill)
        self._store.close()

    def nodes(self) -> Sequence[Node]:
        """Give this machine."""
        return (self._node,)

    def protection(self) -> Protection:
        """Workers are children that inherit their sockets, which have no names."""
        return Protection("sockets without names, inherited by child processes")

    def submit(self, call: Call) -> None:
        """Hand a call to the pool."""
        try:
            body = self._body(call)
        except ResourceExhausted as error:
            self._host.finished(call.id, Outcome.of(outcome.encode_error(error)))
            return
        values = (body, *map(_movable, call.values))
        fields = (call.id, call.head)
        self._pool.submit(call.id, Parcel("call", fields, values, call.lease.held.memory, call.resident))

    def _body(self, call: Call) -> Stored | Kept:
        if call.body_handle is not None:
            assert isinstance(call.body_handle, Kept)
            return call.body_handle
        if call.body.nbytes <= THRESHOLD:
            return call.body
        # What finds no room at once does not wait for the disk here, and goes by memory of its own.
        return self._lender.try_put(call.body) or call.body

    def cancel(self, call_id: int, *, force: bool) -> None:
        """Stop a call: by a signal to its worker's main thread, or by killing the worker."""
        self._pool.cancel(call_id, force=force)

    def reply(self, request_id: object, message: bytes, values: Sequence[Value]) -> None:
        """Answer a request."""
        assert isinstance(request_id, tuple)
        worker, number = request_id
        self._pool.reply(worker, number, message, [_movable(value) for value in values])

    def put(self, stored: Stored) -> object | None:
        """Copy a large value into shared memory, from where every worker maps it."""
        return self._lender.put(stored) if stored.nbytes > THRESHOLD else None

    def get(self, handle: object) -> Stored:
        """Map a value here."""
        assert isinstance(handle, Kept)
        return self._lender.get(handle)

    def free(self, handle: object) -> None:
        """Let the memory of a value go as soon as nobody looks at it."""
        assert isinstance(handle, Kept)
        self._lender.free(handle)

    def inspect(self, timeout: float) -> Sequence[WorkerState]:
        """Look at the worker processes."""
        return self._pool.inspect(self._node.id, timeout)


def _movable(value: Value) -> Stored | Kept:
    if value.stored is not None:
        return value.stored
    assert isinstance(value.handle, Kept)
    return value.handle

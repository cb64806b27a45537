"""Tasks in processes of this machine, each isolated from the crash of another."""

from __future__ import annotations

import platform
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from polyexec.config import LocalClusterConfig
from polyexec.errors import BackendBroken, ResourceExhausted
from polyexec.spi import Backend, Call, Capabilities, EngineInfo, Host, Node, Stored, Value
from polyexec_local.channel import encode
from polyexec_local.memory import THRESHOLD, SharedValue, share, view
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


@attrs.frozen(kw_only=True)
class ProcessConfig(LocalClusterConfig):
    """Configuration of ``process``.

    Attributes:
        preload: modules that are imported once, in the process from which all workers are forked, so that a worker
            has them at once; names in a sequence, or in one text with commas. They must start no threads.
    """

    preload: Sequence[str] = attrs.field(default=(), converter=_modules)


class ProcessBackend(Backend):
    """Runs each call in a worker process; everything about workers belongs to the core's thread."""

    Config = ProcessConfig
    capabilities = Capabilities()
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
        self._pool = Pool(host, int(self._node.total.cpus), self.config.start_timeout, self._template)
        self._pool.start()
        self.seats = self.poller = self._pool
        return EngineInfo(f"{platform.python_implementation()} {platform.python_version()}")

    def close(self, *, kill: bool) -> None:
        """End all workers."""
        self._pool.stop(kill=kill)

    def nodes(self) -> Sequence[Node]:
        """Give this machine."""
        return (self._node,)

    def submit(self, call: Call) -> None:
        """Hand a call to the pool."""
        values = [_movable(value) for value in call.values]
        self._pool.submit(call.id, encode("call", (call.id, call.head), (call.body, *values)))

    def cancel(self, call_id: int, *, force: bool) -> None:
        """Stop a call: by a signal to its worker's main thread, or by killing the worker."""
        self._pool.cancel(call_id, force=force)

    def reply(self, request_id: object, message: bytes, values: Sequence[Value]) -> None:
        """Answer a request."""
        assert isinstance(request_id, tuple)
        worker, number = request_id
        self._pool.send(worker, encode("reply", (number, message), [_movable(value) for value in values]))

    def put(self, stored: Stored) -> object | None:
        """Copy a large value into shared memory, from where every worker maps it."""
        if stored.nbytes <= THRESHOLD:
            return None
        try:
            return share(stored)
        except OSError as error:
            raise ResourceExhausted("shared-memory", f"a value of {stored.nbytes} bytes: {error}") from error

    def get(self, handle: object) -> Stored:
        """Map a value here."""
        assert isinstance(handle, SharedValue)
        return view(handle.descriptor, handle.layout, private=False)


def _movable(value: Value) -> Stored | SharedValue:
    if value.stored is not None:
        return value.stored
    assert isinstance(value.handle, SharedValue)
    return value.handle

"""The worker: an actor whose main thread runs one body after the other."""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import ray

from polyexec import envelope
from polyexec.errors import BackendLost, PolyexecError
from polyexec.interrupts import SignalInterrupts
from polyexec.spi import Stored
from polyexec_ray.agent import Stop
from polyexec_ray.batch import Flusher
from polyexec_ray.death import Mark
from polyexec_ray.errors import translated
from polyexec_ray.freight import LARGE, Parked, Worn, body_of, head_of, load, unframe, unload
from polyexec_ray.processes import holds_device
from polyexec_ray.tidings import Teller

_DEVICES = "CUDA_VISIBLE_DEVICES"


class Worker:
    """The actor; Ray runs its methods in the main thread of its process, one at a time.

    Args:
        worker_id: the driver's number for it.
        agent: the agent of its node.
        setup: for ``polyexec.envelope``.
        env: variables to set before anything else is imported.
        copy: see ``polyexec_ray.freight.load``.
    """

    def __init__(self, worker_id: int, agent: Any, setup: bytes, env: Mapping[str, str], *, copy: bool) -> None:
        os.environ.update(env)
        self._copy = copy
        self._id = worker_id
        self._agent = agent
        self._setup = setup
        self._mark = Mark()
        self._teller = Teller(agent)
        self._interrupts = SignalInterrupts()
        self._parked: Any = None
        self._flusher = Flusher(partial(agent.early.remote, worker_id))
        # Ray starts its workers with SIGINT blocked, which would keep interrupts from the main thread.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        ray.get(agent.register.remote(worker_id, os.getpid(), self._mark.descriptor))
        threading.Thread(target=self._listen, name="polyexec-interrupts", daemon=True).start()

    def start(self) -> int:
        """Prepare the process, and give its id; if that fails, each call says why."""
        envelope.prepare(self._setup)
        return os.getpid()

    def run(self, frame: bytes, rest: Any = (), *values: Any) -> Any:
        """Run a body and give its outcome, or its head if it is large: then ``collect`` gives it."""
        self._mark.clear()
        call_id, head, data = unframe(frame)
        outcome = self._run(call_id, head, body_of(data, rest), [unload(value) for value in values])
        self._mark.record(call_id, outcome)
        return self._cargo(outcome)

    def run_with_gpus(self, devices: str, frame: bytes, rest: Any = (), *values: Any) -> Any:
        """Do as ``run`` with some accelerators visible; wrap what is returned if the process has opened one."""
        before = os.environ.get(_DEVICES)
        os.environ[_DEVICES] = devices
        cargo = self.run(frame, rest, *values)
        if before is None:
            os.environ.pop(_DEVICES, None)
        else:
            os.environ[_DEVICES] = before
        return Worn(cargo) if holds_device() else cargo

    def run_several(self, frames: Sequence[bytes]) -> tuple[list[tuple[int, Any]], list[int]]:
        """Run bodies that are known to be short, one after the other.

        Args:
            frames: of the calls.

        Returns:
            The calls that have ended with their outcomes, and those that have not begun, without what was given early.
        """
        self._mark.clear()
        batch = self._flusher.begin(frames)
        for frame in batch:
            call_id, head, data = unframe(frame)
            outcome = self._run(call_id, head, Stored(data), ())
            if not self._mark.record(call_id, outcome):
                # It would be lost if a later body killed the process.
                returned = batch.drain()
                return [*batch.take(), (call_id, self._cargo(outcome))], returned
            batch.done.append((call_id, load(outcome, copy=True)))
        return batch.take(), []

    def _run(self, call_id: int, head: bytes, body: Stored, values: Sequence[Stored]) -> Stored:
        uplink = _Uplink(self._agent, self._teller, call_id, self._load)
        self._mark.begin(call_id)
        outcome = envelope.run(head, body, values, uplink, self._interrupts, setup=self._setup)
        if uplink.has_told:
            # The outcome goes another way, and must not come first.
            self._teller.settle()
        self._mark.end()
        return outcome

    def _cargo(self, outcome: Stored) -> Any:
        if outcome.nbytes < LARGE:
            return self._load(outcome)
        self._parked = self._load(outcome)
        return Parked(head_of(outcome))

    def collect(self) -> Any:
        """Give the outcome that ``run`` kept back."""
        parked, self._parked = self._parked, None
        return parked

    def _load(self, stored: Stored) -> Any:
        return load(stored, copy=self._copy)

    def _listen(self) -> None:
        answers: list[tuple[int, str]] = []
        while True:
            try:
                stops: list[Stop] = ray.get(self._agent.listen.remote(self._id, answers))
            except ray.exceptions.RayError:
                # The agent has ended, and the driver ends its workers.
                return
            answers = [(stop.number, self._interrupts.deliver(stop.call_id).name) for stop in stops]


class _Uplink:
    """How a body reaches the executor: by way of the agent."""

    def __init__(self, agent: Any, teller: Teller, call_id: int, convert: Callable[[Stored], Any]) -> None:
        self._agent = agent
        self._teller = teller
        self._load = convert
        self._call_id = call_id
        self._body = threading.get_ident()
        self.has_told = False

    def tell(self, message: Stored) -> None:
        self._teller.tell(self._call_id, message)
        self.has_told = True

    def request(self, message: Stored) -> tuple[bytes, Sequence[Stored]]:
        if self.has_told and threading.get_ident() != self._body:
            # Of an actor's calls the outcomes are requests, which must not come first.
            self.has_told = False
            self._teller.settle()
        # The buffers are those of a value, and before them its data; see ``polyexec.spi.Message``.
        value = Stored(bytes(message.buffers[0]), message.buffers[1:]) if message.buffers else None
        if value is not None and value.nbytes >= LARGE:
            arguments = message.data, self._load(value)
        else:
            # The agent passes small ones on, and cannot pickle the buffers that Ray would give it.
            arguments = load(message, copy=True), None
        # Waiting here and not in ray.get lets an interrupt through at once.
        arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()
        reference = self._agent.request.remote(self._call_id, *arguments)
        del value, arguments
        # Ray ends this process if nobody holds the reference until a large reply has come, as an interrupted wait does.
        reference._on_completed(partial(_put_held, arrived, reference))
        reply = arrived.get()
        if isinstance(reply, PolyexecError):
            raise reply
        if isinstance(reply, BaseException):
            raise BackendLost(f"the agent of this node does not answer: {type(reply).__name__}")
        data, parts = reply
        return data, [unload(_brought(part[0]) if isinstance(part, list) else part) for part in parts]


def _put_held(arrived: queue.SimpleQueue[Any], held: Any, value: Any) -> None:
    arrived.put(value)


def _brought(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        raise translated(error, "a task") from error

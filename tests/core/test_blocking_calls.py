"""Never a hang: every call that may block for ever has an event that ends it, and here is which.

Who adds one explains it here, or gives it a bound.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from .blocking_calls import calls_in

ROOT = Path(__file__).parents[2]

CORE: Mapping[str, tuple[str, ...]] = {
    "it does not block, whatever its name": (
        "polyexec/actor_host.py ActorBody.__call__: current_session.get",
        "polyexec/interrupts.py _Bodies.begin: claim.take",
        "polyexec/interrupts.py _Bodies.deliver: claim.take",
        "polyexec/gangs.py Shape._find: search.result",
        "polyexec/memory_usage.py _read: os.read",
        "polyexec/outcome.py _traceback_text: separator.join",
        "polyexec/recording.py Recorder.read: now.take",
        "polyexec/requests.py Requests._wait: self._runtime.scheduler.wait",
        "polyexec/requests.py Requests.block: self._runtime.scheduler.wait",
        "polyexec/session.py task_session: current_session.get",
        "polyexec/stacks.py ask: question.result",
    ),
    "it passes the caller's time on to one of the others": (
        "polyexec/adapters/desk.py Desk.await_place: self.executor.wait",
        "polyexec/adapters/standard_future.py StandardFuture.await_end: self._desk.executor.wait",
        "polyexec/blocking.py take: items.get",
        "polyexec/executor.py Executor.wait: futures_module.wait",
        "polyexec/future.py Future._waited: session.wait",
        "polyexec/future.py wait: session.wait",
        "polyexec/mapping.py _Map._ready_chunk: self.executor.wait",
        "polyexec/blocking.py wait: event.wait",
        "polyexec/reservation.py _wait_for: Future[None](session, entry).result",
        "polyexec/remote.py RemoteSession.completed: self.wait",
    ),
    "the user's task, or whatever settles the value, among that close() and the loss of the engine": (
        "polyexec/adapters/futures.py _results: futures.popleft().result",
        "polyexec/adapters/initializer.py Initializer._run: self.setup.result",
        "polyexec/adapters/standard_future.py _fetched: source.result",
        "polyexec/driver.py DriverSession.call_actor: self.wait",
        "polyexec/future.py Future.__await__: self.result",
        "polyexec/inbox.py Inbox.take: self._session.wait",
        "polyexec/lanes.py serve: blocking.take",
        "polyexec/mailbox.py Mailbox._wait: blocking.take",
        "polyexec/mapping.py _Map._next: chunk.future.result",
        "polyexec/mapping.py _Map._next: chunk.handover.result",
        "polyexec/remote.py RemoteSession.call_actor: self.wait",
        "polyexec/remote.py RemoteSession.subscribe.watch: self.wait",
        "polyexec/stream.py Stream.__next__: self._items.take",
    ),
    "the loop does what was posted, also after its end, when whoever posts does it": (
        "polyexec/driver.py DriverSession._in_loop: done.take",
        "polyexec/driver.py DriverSession._is_made: answer.take",
        "polyexec/driver.py DriverSession.cancel: answer.take",
        "polyexec/driver.py DriverSession.fetch: answer.take",
        "polyexec/driver.py DriverSession.kill: answer.take",
        "polyexec/driver.py DriverSession.put: dropped.take",
        "polyexec/driver.py DriverSession.recorder: begun.take",
        "polyexec/driver.py DriverSession.resources: answer.take",
    ),
    "the loop ends the wait by waking its poller, or the poller's own time": (
        "polyexec/loop.py Loop._poll: self._poller.poll",
    ),
    "the loop ends after what was posted; it waits in nothing but its poller": (
        "polyexec/loop.py Loop.stop: self._thread.join",
    ),
    "tasks end, for which close() waits; at exit, and once they are cancelled, there is a bound": (
        "polyexec/closing.py Closing._drain: blocking.wait",
        "polyexec/closing.py Closing._drain: blocking.wait",
    ),
    "a None in the queue, put there when the thread is to end; daemon": (
        "polyexec/callbacks.py CallbackThread._work: self._jobs.get",
        "polyexec/display.py Display._work: self._items.get",
    ),
    "the user's own callback, or what reads the user's standard error, ends; at exit there is a bound": (
        "polyexec/callbacks.py CallbackThread.stop: thread.join",
        "polyexec/display.py Display.stop: self._thread.join",
    ),
    "the end of the recording, an event, or the caller's time": ("polyexec/recording.py Recorder.read: blocking.take",),
    "the driver's answer, or its end: it answers None then, or the uplink raises": (
        "polyexec/actor_host.py Host._run_queue: self._queue.get",
        "polyexec/actor_host.py Host.serve: receiver.join",
        "polyexec/actor_loop.py LoopHost._serve: self._over.wait",
    ),
    "the body puts None when it has ended, in a finally": (
        "polyexec/actor_host.py Host._report: self._ended.get",
        "polyexec/actor_host.py Host.serve: reporter.join",
        "polyexec/stream_source.py _Outlet.finish: self._sent.get",
        "polyexec/stream_source.py _gathered: queue.get",
    ),
    "the user's methods end, or are interrupted": (
        "polyexec/actor_host.py ThreadsHost._run_all: thread.join",
        "polyexec/actor_loop.py LoopHost._run_all: self._loop.run_until_complete",
        "polyexec/actor_loop.py LoopHost._serve: asyncio.wait",
    ),
    "the user's items are worked on; what watches them is told to end by an event, set in a finally": (
        "polyexec/chunks.py _Run.watch: ended.wait",
        "polyexec/chunks.py run_chunk: run.result",
        "polyexec/chunks.py run_chunk: run.result",
        "polyexec/chunks.py run_chunk: watch.join",
        "polyexec/chunks.py run_one: _Run(function, [item]).result",
    ),
    "the thread that prepares the process sets it, in a finally": ("polyexec/envelope.py _prepare: found.ready.wait",),
    "the janitor's first process leaves the work to its child, and ends at once": (
        "polyexec/folders.py _start_janitor: janitor.wait",
    ),
    "a janitor holds it while it takes a folder away; the system gives it back if the janitor dies": (
        "polyexec/folders.py _take: fcntl.lockf",
    ),
    "a thread that changes sys.path, and does nothing else": (
        "polyexec/shipped.py _undisturbed: thread.join",
        "polyexec/shipped.py _undisturbed: thread.join",
    ),
    "something to send; daemon": ("polyexec/output.py _Sender._work: self._pending.get",),
    "a signal comes, or the process ends; daemon": ("polyexec/on_signal.py _wait: os.read",),
    "locks that are held for bookkeeping alone, in which nobody waits and no user code runs": (
        "polyexec/actor_loop.py: lock _room",
        "polyexec/adapters/desk.py: lock _lock",
        "polyexec/adapters/desk.py: lock _moved",
        "polyexec/adapters/standard_future.py: lock _claim",
        "polyexec/adapters/standard_future.py: lock _lock",
        "polyexec/display.py: lock _counting",
        "polyexec/folders.py: lock _lock",
        "polyexec/interrupts.py: lock _delivering",
        "polyexec/progress.py: lock _changing",
        "polyexec/session.py: lock _adding",
        "polyexec/shipped.py: lock _lock",
        "polyexec/surroundings.py: lock _lock",
    ),
    "who has the loop, and gives it back; or a bound of milliseconds, or the poller's own time": (
        "polyexec/loop.py Loop._stand_back: self._come_back.get",
        "polyexec/loop.py QueuePoller.poll: self._tokens.get",
    ),
    "who has it is the loop, or looks for it without waiting": (
        "polyexec/loop.py: lock _after_end",
        "polyexec/loop.py: lock _role",
    ),
    "the thread that hands calls over says so, or that one has ended": (
        "polyexec/adapters/desk.py Desk.await_place: self._moved.wait",
    ),
    "the caller's bound": (
        "polyexec/stacks.py ask: _asking.acquire",
        "polyexec/stacks.py: lock _asking",
    ),
    "held while what was printed is told, or an archive is made or stored, which ends by itself": (
        "polyexec/output.py: lock _sending",
        "polyexec/shipping.py: lock _changing",
    ),
}

BACKENDS: Mapping[str, tuple[str, ...]] = {
    "it does not block, whatever its name": (
        "polyexec_local/template.py Template.close: self._epoll.poll",
        "polyexec_ray/batch.py Flusher._watch: batch.take",
        "polyexec_ray/worker.py Worker.run_several: batch.take",
        "polyexec_ray/worker.py Worker.run_several: batch.take",
    ),
    "the descriptor does not block, or is read when there is something": (
        "polyexec_dask/nursery.py Nursery._read: self._socket.recv",
        "polyexec_dask/nursery_process.py _Nursery._bury: os.read",
        "polyexec_dask/nursery_process.py _Nursery._obey: self._control.recv",
        "polyexec_local/borrower.py _Child.lives: os.read",
        "polyexec_local/children.py ChildSignals.wait: os.read",
        "polyexec_local/generation.py Generation.read: socket.recv_fds",
        "polyexec_local/template_process.py _Template.serve: socket.recv_fds",
    ),
    "the child has ended, or has been killed": (
        "polyexec_dask/nursery_process.py _Nursery._end: os.waitpid",
        "polyexec_local/keeper.py _Keeper._lives: os.waitpid",
    ),
    "locks that are held for bookkeeping alone, in which nobody waits and no user code runs": (
        "polyexec_dask/agent.py: lock _changed",
        "polyexec_local/helper.py: lock _starting",
        "polyexec_local/holdings.py: lock lock",
        "polyexec_local/pool.py: lock _waking",
        "polyexec_local/worker.py: lock _borrowing",
        "polyexec_ray/roster.py: lock _lock",
    ),
    "held while a worker sends, which ends when the driver reads or is gone": (
        "polyexec_local/channel.py: lock _writing",
        "polyexec_local/worker.py: lock _telling",
    ),
    "held while the disk takes or gives a value": ("polyexec_local/moves.py: lock slow",),
    "held while Ray starts or stops, within its own limits": ("polyexec_ray/engine.py: lock _LOCK",),
    "the driver's answer, or the end of the task, of the executor or of the driver's process": (
        "polyexec_dask/agent.py Agent._claim: self._changed.wait",
        "polyexec_dask/agent.py Agent._flush: flushed.wait",
        "polyexec_dask/agent.py Agent.resolve: self._changed.wait",
        "polyexec_dask/uplink.py Requests.ask: waiter.woken.wait",
        "polyexec_local/inprocess.py Uplink.request: box.get",
        "polyexec_local/worker.py _Worker._wait_for: box.get",
        "polyexec_ray/worker.py _Uplink.request: arrived.get",
    ),
    "something comes from the other end, or it hangs up": (
        "polyexec_local/page.py receive_kit: socket.recv_fds",
        "polyexec_local/channel.py Channel.receive: self._socket.recvmsg_into",
        "polyexec_dask/nursery_process.py _Nursery._tell: self._control.sendall",
        "polyexec_dask/nursery_process.py _Nursery.serve: select.select",
    ),
    "a child ends, or the driver hangs up, for which there is a signal or a descriptor": (
        "polyexec_local/children.py ChildSignals.wait: self._poll.poll",
        "polyexec_local/keeper.py _Keeper.run: self._signals.wait",
        "polyexec_local/template_process.py _Template.serve: self._signals.wait",
    ),
    "something is posted, or comes, or the core's own time is over": (
        "polyexec_local/pool.py Pool.poll: self._selector.select",
        "polyexec_local/pool.py Pool._serve: os.eventfd_read",
    ),
    "all workers are buried: each has a time after which it is killed, and one after which it is given up": (
        "polyexec_local/pool.py Pool.stop: self._stopped.wait",
    ),
    "a None in the queue, put there when the thread is to end; daemon": (
        "polyexec_dask/engine_threads.py _LateThread._work: self._jobs.get",
        "polyexec_local/helper.py Helper._run: self._jobs.get",
        "polyexec_local/threads.py _Worker._work: self.calls.get",
        "polyexec_ray/engine.py Keeper._work: self._jobs.get",
    ),
    "such a thread has got its None, and each of its jobs ends": (
        "polyexec_dask/engine_threads.py _LateThread.shutdown: self._thread.join",
        "polyexec_dask/engine_threads.py _retire_offload_thread: old.shutdown",
        "polyexec_local/helper.py Helper.stop: self._thread.join",
        "polyexec_local/serial.py SerialBackend.close: thread.join",
        "polyexec_local/threads.py ThreadsBackend.close: worker.thread.join",
        "polyexec_ray/engine.py Keeper.end: self._thread.join",
        "polyexec_ray/backend.py RayBackend.close: self._errands.join",
        "polyexec_ray/errands.py Errands.end: self._runner.join",
        "polyexec_ray/errands.py Errands.end: self._watcher.join",
        "polyexec_ray/errands.py Errands.join: self._runner.join",
    ),
    "the event loop does it: opening has start_timeout, closing has bounds for each process": (
        "polyexec_dask/backend.py DaskBackend._run: asyncio.run_coroutine_threadsafe",
        "polyexec_dask/backend.py DaskBackend._run: asyncio.run_coroutine_threadsafe(work, self._loop).result",
        "polyexec_dask/backend.py DaskBackend._serve: self._loop.run_until_complete",
        "polyexec_dask/backend.py DaskBackend._serve: self._loop.run_until_complete",
        "polyexec_dask/backend.py DaskBackend.close: self._thread.join",
    ),
    "connections that were aborted, tasks that were cancelled, or that have bounds themselves": (
        "polyexec_dask/cluster.py Cluster._close_links: asyncio.gather",
        "polyexec_dask/existing_cluster.py ExistingCluster._refresh: asyncio.gather",
        "polyexec_dask/existing_cluster.py ExistingCluster.close: asyncio.gather",
        "polyexec_dask/existing_cluster.py ExistingCluster.close: asyncio.gather",
        "polyexec_dask/own_cluster.py OwnCluster.close: asyncio.gather",
    ),
    "something to send; the task is cancelled with its connection": (
        "polyexec_dask/link.py Link._write: self._wake.wait",
    ),
    "the process is being killed; if the nursery does not say so in time, it is killed itself": (
        "polyexec_dask/own_cluster.py OwnCluster._mourn: child.ended.wait",
    ),
    "the worker has been killed; the system tells of its end": (
        "polyexec_ray/agent.py Agent.autopsy: watched.ended.wait",
    ),
    "there is news; Ray ends the agent with its driver": (
        "polyexec_ray/agent.py Agent.listen: mail.get",
        "polyexec_ray/agent.py Agent.news: self._wake.wait",
        "polyexec_ray/agent.py Agent.tell: self._next.wait",
    ),
    "something to send; daemon": ("polyexec_local/worker.py _Worker._next_item: self._outgoing.get",),
    "the next batch; daemon": ("polyexec_ray/batch.py Flusher._watch: self._wake.wait",),
    "start_timeout of the configuration": ("polyexec_ray/backend.py RayBackend._greet: ray.get",),
    "Ray's own limits for starting and stopping": (
        "polyexec_ray/engine.py Keeper.run: done.get",
        "polyexec_ray/engine.py _shut_down: ray.shutdown",
    ),
    "the value comes, or the watch finds that Ray is gone, for which it looks now and then": (
        "polyexec_ray/backend.py RayBackend._bring: ray.get",
    ),
    "the agent answers, or Ray says that it has died": (
        "polyexec_ray/tidings.py Teller._work: ray.get",
        "polyexec_ray/tidings.py Teller.settle: settled.wait",
        "polyexec_ray/worker.py Worker.__init__: ray.get",
        "polyexec_ray/worker.py Worker._listen: ray.get",
    ),
    "the driver's object comes, or Ray says that it is lost, or its owner": (
        "polyexec_ray/worker.py _brought: ray.get",
    ),
    "something to tell; daemon": ("polyexec_ray/tidings.py Teller._work: self._items.get",),
}


def expected(table: Mapping[str, tuple[str, ...]]) -> Counter[str]:
    return Counter(call for calls in table.values() for call in calls)


@pytest.mark.parametrize(("folder", "table"), [("polyexec", CORE), ("backends", BACKENDS)], ids=["core", "backends"])
def test_every_call_that_may_block_for_ever_is_explained(folder: str, table: Mapping[str, tuple[str, ...]]) -> None:
    found, known = calls_in(ROOT, ROOT / folder), expected(table)
    assert sorted((found - known).elements()) == [], "blocks without a bound: give it one, or say here what ends it"
    assert sorted((known - found).elements()) == [], "explained, but not there any more"


def test_finds_what_blocks(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text(
        "import threading\n"
        "class Door:\n"
        "    def __init__(self):\n"
        "        self._latch = threading.Lock()\n"
        "    def pass_through(self, opened, queue, mapping, thread, time):\n"
        "        opened.wait()\n"
        "        opened.wait(time)\n"
        "        opened.wait(5.0)\n"
        "        opened.wait(timeout=_LIMIT)\n"
        "        queue.get()\n"
        "        queue.get(timeout=time)\n"
        "        mapping.get('key')\n"
        "        ','.join(mapping)\n"
        "        thread.join()\n"
        "        self._latch.acquire(blocking=False)\n"
        "        os.waitpid(-1, os.WNOHANG)\n"
        "        os.waitpid(-1, 0)\n"
    )
    assert calls_in(tmp_path, tmp_path) == {
        "one.py: lock _latch": 1,
        "one.py Door.pass_through: opened.wait": 2,
        "one.py Door.pass_through: queue.get": 2,
        "one.py Door.pass_through: thread.join": 1,
        "one.py Door.pass_through: os.waitpid": 1,
    }

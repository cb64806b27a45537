"""What the machine can do without any engine: the limits that the systems are held against."""

from __future__ import annotations

import os
import signal
import socket
import statistics
from collections.abc import Callable, Sequence
from multiprocessing import shared_memory
from typing import Any

from local import tasks
from local.arrays import an_array
from local.bench import WORKERS, Bench, Metrics, Round, expect
from local.cases import efficiency, rate, timed

PINGS_PER_TASK = 10
"""A round trip is so much faster than a task that as many as there are tasks would be over too soon."""


def serial(bench: Bench) -> Round:
    """Call the function in a loop, in this process."""

    def in_a_loop(function: Callable[..., Any], items: Sequence[Any]) -> list[Any]:
        return [function(item) for item in items]

    return lambda: {"rate": rate(in_a_loop, tasks.noop, bench.numbers(bench.sizes["count"]))}


def fork_server(bench: Bench, serve: Callable[[bytes], bytes]) -> socket.socket:
    """Fork a process that answers each byte it gets with what a function makes from it."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            while byte := theirs.recv(1):
                theirs.send(serve(byte))
        finally:
            os._exit(0)
    theirs.close()

    def end() -> None:
        ours.close()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

    bench.at_end(end)
    return ours


def socket_pair(bench: Bench) -> Round:
    """Send a byte to another process and take its answer."""
    ours = fork_server(bench, lambda byte: byte)

    def ping(count: int) -> int:
        answers = 0
        for _ in range(count):
            ours.send(b"x")
            answers += ours.recv(1) == b"x"
        return answers

    def run() -> Metrics:
        count = bench.sizes["count"] * PINGS_PER_TASK
        seconds, answers = timed(ping, count)
        expect(answers, count, "right answers")
        return {"rate": count / seconds}

    return run


def bare_processes(bench: Bench) -> Round:
    """Spin as long as all tasks do, in one process for each worker, with one message to each."""

    def spin_share(byte: bytes) -> bytes:
        for number in range(bench.sizes["count"] // WORKERS):
            tasks.spin(number)
        return byte

    channels = [fork_server(bench, spin_share) for _ in range(WORKERS)]

    def all_shares() -> list[bytes]:
        for channel in channels:
            channel.send(b"x")
        return [channel.recv(1) for channel in channels]

    def run() -> Metrics:
        seconds, answers = timed(all_shares)
        expect(answers, [b"x"] * WORKERS, "the answers")
        return efficiency(bench.sizes["count"] // WORKERS * WORKERS / seconds)

    return run


def memcpy(bench: Bench) -> Round:
    """Copy the array to memory that has been written before."""
    import numpy as np

    array = an_array(bench)
    target = np.ones_like(array)

    def run() -> Metrics:
        seconds = []
        for number in bench.numbers(bench.sizes["puts"]):
            array[0] = number
            seconds.append(timed(np.copyto, target, array)[0])
            expect((target[0], target[-1]), (number, array[-1]), "the copy")
        return {"rate": array.nbytes / statistics.median(seconds)}

    return run


def fresh_memory(bench: Bench) -> Round:
    """Copy the array to a shared-memory segment that is new each time, as a program does by hand."""
    import numpy as np

    array = an_array(bench)

    def copy() -> shared_memory.SharedMemory:
        segment = shared_memory.SharedMemory(create=True, size=array.nbytes)
        np.copyto(np.ndarray(array.shape, array.dtype, segment.buf), array)
        return segment

    def run() -> Metrics:
        seconds = []
        for number in bench.numbers(bench.sizes["puts"]):
            array[0] = number
            took, segment = timed(copy)
            seconds.append(took)
            first = float(np.ndarray(array.shape, array.dtype, segment.buf)[0])
            segment.close()
            segment.unlink()
            expect(first, float(number), "the copy")
        return {"rate": array.nbytes / statistics.median(seconds)}

    return run

"""What runs in the processes: a graph on a system, and the same work without any system."""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.connection import Connection

from polyexec_bench.bench import Bench, Figures, Round
from polyexec_bench.taskbench import graphs
from polyexec_bench.taskbench.kernels import KERNELS
from polyexec_bench.taskbench.patterns import Graph


def graph(bench: Bench) -> Round:
    """Run a graph on the system."""
    system = bench.open()

    def run(pattern: str, width: int, steps: int, kernel: str, size: int) -> Figures:
        made = Graph(pattern, width, steps)
        return {"seconds": graphs.run(system, made, kernel, size), "tasks": made.task_count}

    return run


def bare(bench: Bench) -> Round:
    """Run a kernel in as many processes as there are workers, at the same time, with nothing in between."""
    context = multiprocessing.get_context("fork")
    ends: list[Connection] = []
    for _ in range(bench.workers):
        here, there = context.Pipe()
        process = context.Process(target=_labour, args=(there, [*ends, here]), daemon=True)
        process.start()
        there.close()
        ends.append(here)
        bench.at_end(process.join)
        bench.at_end(here.close)

    def run(kernel: str, size: int, repeats: int) -> Figures:
        for end in ends:
            end.send((kernel, size, repeats))
        return {"seconds": max(end.recv() for end in ends) / repeats}

    return run


def _labour(connection: Connection, others: list[Connection]) -> None:
    for other in others:
        other.close()
    while True:
        try:
            kernel, size, repeats = connection.recv()
        except EOFError:
            return
        function, began = KERNELS[kernel], time.perf_counter()
        for number in range(repeats):
            function(size, number, 0)
        connection.send(time.perf_counter() - began)

"""R11 and R12 on clusters of several nodes, all of them on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import nodes_battery
import pytest

import polyexec
from polyexec.testing.tools import eventually

pytest.importorskip("distributed")
pytest.importorskip("ray")

LIMIT = 60.0
HOSTS = {"127.0.0.2": "a", "127.0.0.3": "b"}


def _host() -> str:
    return os.environ["NODE_OF_THE_TEST"]


@contextmanager
def _started(folder: Path, *arguments: str, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    path = os.pathsep.join([*sys.path, str(Path(__file__).parent)])
    environment = os.environ | {"PYTHONPATH": path, "DASK_TEMPORARY_DIRECTORY": str(folder), **variables}
    command = [sys.executable, "-m", "distributed.cli." + arguments[0], *arguments[1:]]
    with (folder / "log").open("ab") as log, subprocess.Popen(command, env=environment, stderr=log) as process:
        yield process
        process.terminate()


@pytest.fixture
def dask_nodes(tmp_path: Path) -> Iterator[tuple[str, dict[str, subprocess.Popen[bytes]]]]:
    """A scheduler's address, and the process of the worker on each host."""
    file = tmp_path / "scheduler"
    with ExitStack() as stack:
        arguments = ("--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file))
        stack.enter_context(_started(tmp_path, "dask_scheduler", *arguments))
        eventually(file.exists, "the scheduler has started", LIMIT)
        workers = {}
        for host, zone in HOSTS.items():
            arguments = (
                "--host",
                host,
                "--nthreads",
                "2",
                "--no-nanny",
                "--no-dashboard",
                "--scheduler-file",
                str(file),
            )
            labels = ("--resources", f"label.zone.{zone}=1")
            worker = _started(tmp_path, "dask_worker", *arguments, *labels, NODE_OF_THE_TEST=host)
            workers[host] = stack.enter_context(worker)
        yield _address(file), workers


def _address(file: Path) -> str:
    import json

    return str(json.loads(file.read_text())["address"])


def _nodes(ex: polyexec.Executor) -> list[str]:
    return [node.id for node in ex.resources().nodes if node.alive]


def test_dask_on_two_hosts(dask_nodes: tuple[str, dict[str, subprocess.Popen[bytes]]], tmp_path: Path) -> None:
    """R11, R12 Everything of ``nodes_battery``; then a host is lost, and its bundles move to the other."""
    address, workers = dask_nodes
    with polyexec.connect(f"dask?address={address}") as ex:
        eventually(lambda: len(_nodes(ex)) == 2, "both hosts are there", LIMIT)
        nodes_battery.check_everything(ex, _host, str(tmp_path))
        with ex.reserve([{"cpus": 1}, {"cpus": 1}], strategy="spread") as group:
            lost, kept = "127.0.0.3", "127.0.0.2"
            index = group.nodes.index(lost)
            workers[lost].send_signal(signal.SIGKILL)
            eventually(lambda: group.nodes == (kept, kept), "the lost bundle has moved", LIMIT)
            assert group[index].submit(_host).result(LIMIT) == kept
            with pytest.raises(polyexec.InfeasibleResources, match=lost):
                ex.options(node=lost).submit(_host)


def test_ray_on_two_nodes() -> None:
    """R11, R12 Everything of ``nodes_battery``; in a process of its own, which Ray wants for each cluster."""
    program = """if True:
        import sys
        import ray
        from ray.cluster_utils import Cluster
        import nodes_battery
        import polyexec

        def node():
            return ray.get_runtime_context().get_node_id()

        folder = sys.argv[1]
        head = {"num_cpus": 2, "temp_dir": folder, "include_dashboard": False, "labels": {"zone": "a"}}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        cluster.add_node(num_cpus=2, labels={"zone": "b"})
        with polyexec.connect(f"ray?address={cluster.address}&log_to_driver=0") as ex:
            nodes_battery.check_everything(ex, node, folder)
        cluster.shutdown()
        print("all hold")
    """
    path = os.pathsep.join([*sys.path, str(Path(__file__).parent)])
    env = {**os.environ, "PYTHONPATH": path, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    # Not tmp_path, which is too long for the names of Ray's sockets.
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        command = [sys.executable, "-c", program, folder]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env, check=False)
    assert ended.stdout.split() == ["all", "hold"], ended.stderr[-5000:]

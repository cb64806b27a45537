"""What Dask loads by name on its workers: the plugin that installs an agent, and the task that runs a call."""

from __future__ import annotations

from distributed import Worker, WorkerPlugin

from polyexec_dask.agent import Agent

_agents: dict[str, Agent] = {}


def operation(executor_id: str) -> str:
    """Name the operation by which a driver attaches itself to a worker."""
    return f"polyexec-{executor_id}"


def run_call(executor_id: str, number: int) -> None:
    """Run one call; this is what Dask's scheduler sees as the task.

    Args:
        executor_id: whose call it is.
        number: identifies the driver's attempt to have it run here; a call that is taken back gets another one.
    """
    agent = _agents.get(executor_id)
    if agent is not None:
        agent.run(number)


class AgentPlugin(WorkerPlugin):
    """Puts an agent into each worker.

    Args:
        executor_id: whose calls it runs.
        setup: for the envelope.
    """

    idempotent = True

    def __init__(self, executor_id: str, setup: bytes) -> None:
        self.name = operation(executor_id)
        self._executor_id = executor_id
        self._setup = setup

    def setup(self, worker: Worker) -> None:
        """Install the agent; Dask calls this when the worker starts, or when the plugin is registered."""
        agent = _agents[self._executor_id] = Agent(worker, self._setup)
        worker.handlers[self.name] = agent.attach

    def teardown(self, worker: Worker) -> None:
        """Remove the agent; Dask calls this when the worker closes, or when the plugin is unregistered."""
        worker.handlers.pop(self.name, None)
        agent = _agents.pop(self._executor_id, None)
        if agent is not None:
            agent.detach()

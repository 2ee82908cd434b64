"""Waiting for machines that somebody else leases: no login, thread or call of its own."""

from __future__ import annotations

from typing import Any

from mlops_operators.triggers.base import MlopsTrigger
from mlops_sdk.capacity.lease import DEFAULT_PROVIDER
from mlops_sdk.capacity.watching import Phase, Snapshot
from mlops_sdk.errors import NodeFailed, SettingsError
from mlops_sdk.names import resource_name, run_id_for, run_key


class MachinesTrigger(MlopsTrigger):
    """Waits until all machines of a lease are ready, as the shared poller of their cloud sees them.

    Args:
        generation: Of the run's lease.
        nodes: How many machines it has.
        wait_s: How long to wait.
        provider: Whose machines.
        connections: See `MlopsTrigger`.
    """

    def __init__(
        self, *, generation: int, nodes: int, wait_s: float, provider: str = DEFAULT_PROVIDER, **connections: str
    ) -> None:
        super().__init__(**connections)
        self.generation = generation
        self.nodes = nodes
        self.wait_s = wait_s
        self.provider = provider

    def arguments(self) -> dict[str, Any]:
        """See `MlopsTrigger.arguments`."""
        return {
            **super().arguments(),
            "generation": self.generation,
            "nodes": self.nodes,
            "wait_s": self.wait_s,
            "provider": self.provider,
        }

    async def work(self) -> dict[str, Any]:
        """Wait; the machines by name."""
        client = await self.client()
        run_id = run_id_for(client.settings.deployment_id, self.run_name)
        names = [resource_name(run_id, self.generation, index) for index in range(self.nodes)]
        poller = self.caretaker.pollers.of(client.services, self.provider)
        if poller is None:
            raise SettingsError(
                f"provider {self.provider!r} cannot show all machines at once", next_step="wait in the run that leases"
            )
        snapshot = await poller.ready(names, at_most_s=self.wait_s, quiet={Phase.COMING, Phase.TENDED})
        if snapshot is None or any(snapshot.of(name).phase is not Phase.READY for name in names):
            raise self._not_ready(names, snapshot or poller.latest)
        shown = [snapshot.of(name).node_name for name in names]
        return {"run": run_key(run_id), "generation": self.generation, "nodes": shown}

    def _not_ready(self, names: list[str], snapshot: Snapshot | None) -> NodeFailed:
        seen = "; ".join(f"{name}: {snapshot.of(name).words}" for name in names) if snapshot is not None else ""
        return NodeFailed(
            f"the machines of run {self.run_name!r} (generation {self.generation}) did not become ready",
            seen=seen or "nothing",
            next_step="see the run that leases them: `mlops runs show`",
        )

"""What the waits benchmark runs in the triggerer beside our trigger: its peer, and a probe of the event loop."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

from mlops_operators.triggers.base import MlopsTrigger
from mlops_operators.triggers.machines import MachinesTrigger
from mlops_sdk.names import resource_name, run_id_for, run_key

_PROBE_S = 0.01
_WRITE_S = 1.0


class SharedTrigger(MachinesTrigger):
    """Ours, which notes when it knew."""

    async def work(self) -> dict[str, Any]:
        """As `MachinesTrigger.work`, and ``{"at": seconds since 1970}``."""
        return {**await super().work(), "at": time.time()}


class PerNodeTrigger(MachinesTrigger):
    """The peer: each asks for its own machine, once a period, in a thread; otherwise as ours."""

    async def work(self) -> dict[str, Any]:
        """Poll; the machine by name."""
        client = await self.client()
        run_id = run_id_for(client.settings.deployment_id, self.run_name)
        baremetal, period_s = client.services.baremetal, client.settings.lease.poll_s
        allocation = await self.blocking(baremetal.get_allocation, resource_name(run_id, self.generation, 0))
        due = time.monotonic()
        while True:
            machine = await self.blocking(baremetal.get_machine, allocation.node_id)
            if machine.provision_state == "active":
                shown = {"run": run_key(run_id), "generation": self.generation, "nodes": [machine.name]}
                return {**shown, "at": time.time()}
            due += period_s
            await asyncio.sleep(max(0.0, due - time.monotonic()))


class LagTrigger(MlopsTrigger):
    """Measures how late a short sleep ends, in the loop that runs all triggers, and writes it down each second.

    Args:
        figures: Path of the file; one JSON object a line: ``{"at", "lags_ms", "waiting", "looks"}``.
        connections: See `MlopsTrigger`.
    """

    def __init__(self, *, figures: str, **connections: str) -> None:
        super().__init__(**connections)
        self.figures = figures

    def arguments(self) -> dict[str, Any]:
        """See `MlopsTrigger.arguments`."""
        return {**super().arguments(), "figures": self.figures}

    async def work(self) -> dict[str, Any]:
        """Until cancelled."""
        lags: list[float] = []
        written = time.monotonic()
        while True:
            before = time.monotonic()
            await asyncio.sleep(_PROBE_S)
            lags.append((time.monotonic() - before - _PROBE_S) * 1000)
            if time.monotonic() - written >= _WRITE_S:
                written = time.monotonic()
                self._write(lags)
                lags = []

    def _write(self, lags: list[float]) -> None:
        shared = self.caretaker.pollers.all
        line = {
            "at": time.time(),
            "lags_ms": [round(lag, 2) for lag in lags],
            "waiting": sum(poller.waiting for poller in shared),
            "looks": sum(poller.looks for poller in shared),
        }
        with Path(self.figures).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

"""Waiting for a roll-out: it runs in the triggerer's event loop."""

from __future__ import annotations

from typing import Any

from mlops_hooks.vllm import VllmHook
from mlops_operators.triggers.base import MlopsTrigger
from mlops_sdk.errors import RegistryError
from mlops_sdk.run import Run
from mlops_sdk.serving.registered import deploy_registered


class DeployTrigger(MlopsTrigger):
    """Rolls out what a run has registered.

    Cancelled or killed, it leaves a host on which users are served; made again elsewhere, it goes on from there.

    Args:
        vllm_conn_id: Of type ``mlops_vllm``.
        reference: Hash of the stored reference of prompts, or empty.
        connections: Of `MlopsTrigger`.
    """

    def __init__(self, *, vllm_conn_id: str, reference: str, **connections: str) -> None:
        super().__init__(**connections)
        self.vllm_conn_id = vllm_conn_id
        self.reference = reference

    def arguments(self) -> dict[str, Any]:
        """See `MlopsTrigger.arguments`."""
        return {**super().arguments(), "vllm_conn_id": self.vllm_conn_id, "reference": self.reference}

    async def work(self) -> dict[str, Any]:
        """Roll out; where it serves."""
        client = await self.client()
        run: Run | None = await self.blocking(client.find, self.run_name)
        if run is None:
            raise RegistryError(f"there is no run {self.run_name!r}", next_step="train and register first")
        target = await VllmHook(self.vllm_conn_id).atarget()
        deployed = await deploy_registered(
            client, run, target, reference=self.reference, tell=lambda line: self.log.info("roll-out: %s", line)
        )
        return deployed.to_json()

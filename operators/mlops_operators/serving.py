"""Serve what the DAG run has registered."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from airflow.sdk import Context

from mlops_hooks.vllm import VllmHook
from mlops_operators.base import MlopsOperator
from mlops_operators.failures import error_from_json
from mlops_operators.links import EndpointLink
from mlops_operators.triggers.serving import DeployTrigger
from mlops_sdk.errors import RegistryError
from mlops_sdk.serving.registered import registered_model


class DeployOperator(MlopsOperator):
    """Roll out the version that this DAG run has registered, blue/green; waits deferred. It is the champion then.

    Users are served all the time. A version that does not get ready is taken back and fails the task at once; the one
    before serves on and stays the champion. Cleared, retried or cut off anywhere, it goes on from what the host shows.

    Pushes back ``{"endpoint", "model", "version", "slot"}``.

    Args:
        reference: Hash of the reference by which served prompts are profiled (of `KeepReferenceOperator`); empty: they
            are not. Templated.
        vllm_conn_id: Of type ``mlops_vllm``; the host's own connection is named there. Templated.
        kwargs: Of `MlopsOperator`.
    """

    template_fields: Collection[str] = (*MlopsOperator.template_fields, "reference", "vllm_conn_id")
    operator_extra_links = (EndpointLink(),)
    ui_color = "#e8f4e8"

    def __init__(self, *, reference: str = "", vllm_conn_id: str = VllmHook.default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.reference = reference
        self.vllm_conn_id = vllm_conn_id

    def execute(self, context: Context) -> dict[str, Any]:
        """Roll it out."""
        with self.failures():
            client = self.hook.client()
            run = client.find(self.run_name)
            if run is None:
                raise RegistryError(f"there is no run {self.run_name!r}", next_step="train and register first")
            registered_model(client, run)  # refused here rather than in the triggerer
            EndpointLink().show(context, f"{VllmHook(self.vllm_conn_id).settings().base_url}/v1/models")
        trigger = DeployTrigger(
            **self.connections, run_name=self.run_name, vllm_conn_id=self.vllm_conn_id, reference=self.reference
        )
        return self.defer(trigger=trigger, method_name=self.deployed.__name__, timeout=self.execution_timeout)

    def deployed(self, context: Context, event: Mapping[str, Any]) -> dict[str, Any]:
        """It serves, or not."""
        del context
        with self.failures():
            if "error" in event:
                raise error_from_json(event["error"])
        return dict(event)

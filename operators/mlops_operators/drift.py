"""What is normal for the prompts of a model, and is the served traffic still so? An asset event says when it is not."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, cast

from airflow.sdk import Asset, Context
from airflow.sdk.exceptions import AirflowSkipException

from mlops_hooks.vllm import VllmHook
from mlops_operators.base import MlopsOperator
from mlops_sdk.dotted import resolve
from mlops_sdk.drift.detector import Bounds
from mlops_sdk.drift.on_host import profiles_folder
from mlops_sdk.drift.watch import Look, Patience
from mlops_sdk.drift.watcher import look, read_profiles
from mlops_sdk.serving.registered import keep_reference


def drift_asset(model: str) -> Asset:
    """The asset that gets an event when the prompts of a model have drifted and training can help.

    The event's extra: ``{"alert", "report", "model", "model_version", "closest", "widen_to"}``; `widen_to` are the
    kinds of text to train on next.
    """
    return Asset(name=f"mlops://drift/{model}", uri=f"mlops://drift/{model}", group="mlops")


class KeepReferenceOperator(MlopsOperator):
    """Make what is normal for the prompts of a model, and store it. The model need not be there yet.

    Pushes back ``{"sha256", "kinds"}``. The same kinds and code make the same; done again, it changes nothing.

    Args:
        reference: ``module:function`` that makes it from kinds of text. Not templated: it names code.
        kinds: Of text that the model is trained on. Templated.
        kwargs: Of `MlopsOperator`.
    """

    template_fields: Collection[str] = (*MlopsOperator.template_fields, "kinds")
    ui_color = "#f8e8e8"

    def __init__(self, *, reference: str, kinds: Sequence[str], **kwargs: Any) -> None:
        kwargs.setdefault("multiple_outputs", True)  # so that ``output["sha256"]`` is there for the roll-out
        super().__init__(**kwargs)
        self.reference = reference
        self.kinds = kinds

    def execute(self, context: Context) -> dict[str, Any]:
        """Make it."""
        del context
        with self.failures():
            sha256 = keep_reference(self.hook.client(), self.kinds, resolve(self.reference))
        return {"sha256": sha256, "kinds": sorted(self.kinds)}


class DetectDriftOperator(MlopsOperator):
    """Look at what is served, once. Pushes back a `mlops_sdk.drift.watch.Look` as JSON, whatever it found.

    The task succeeds, and so its outlet gets an event, only when it must set off a training: drift that known text
    explains, and no other DAG run has said so. In all other cases (stable, too few prompts, a drift that was announced
    or that only a person can explain) it is skipped, and the reason is in the log. Tried again, it says again what it
    had to say; nothing is counted twice.

    Args:
        model: Name of the registered model that is served. Not templated: it names the asset.
        vllm_conn_id: Of type ``mlops_vllm``; the host's own connection is named there. Templated.
        least_prompts: Distinct prompts that a verdict needs. Templated.
        announce_again_after_s: A drift that still lasts so long after its event gets another one: the training that it
            called for failed, was refused, or did not help. Longer than a turn takes. Templated.
        kwargs: Of `MlopsOperator`.
    """

    template_fields: Collection[str] = (
        *MlopsOperator.template_fields,
        "vllm_conn_id",
        "least_prompts",
        "announce_again_after_s",
    )
    ui_color = "#f8e8e8"

    def __init__(
        self,
        *,
        model: str,
        vllm_conn_id: str = VllmHook.default_conn_name,
        least_prompts: int | str = Bounds().prompts,
        announce_again_after_s: float | str = Patience().announce_again_after_s,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("outlets", [drift_asset(model)])
        super().__init__(**kwargs)
        self.model = model
        self.vllm_conn_id = vllm_conn_id
        self.least_prompts = least_prompts
        self.announce_again_after_s = announce_again_after_s

    def execute(self, context: Context) -> dict[str, Any]:
        """Look; an event if there is something to announce."""
        now = cast("dict[str, Any]", context)
        with self.failures():
            found = self._look()
        self.log.info("%s", found.words())
        if not found.announce:
            now["ti"].xcom_push(key="return_value", value=found.to_json())
            raise AirflowSkipException(found.words())
        now["outlet_events"][drift_asset(self.model)].extra.update(found.event())
        return found.to_json()

    def _look(self) -> Look:
        target = VllmHook(self.vllm_conn_id).target()
        reading = read_profiles(target.host, profiles_folder(target.root))
        bounds = Bounds(prompts=int(self.least_prompts))
        patience = Patience(announce_again_after_s=float(self.announce_again_after_s))
        return look(self.hook.client().store, self.model, reading, by=self.run_name, bounds=bounds, patience=patience)

"""`mlops_mlflow`: tracking server and model registry."""

from __future__ import annotations

from mlops_hooks.connection import ConnectionHook, Fields
from mlops_hooks.forms import MLFLOW
from mlops_sdk.config import MlflowSettings
from mlops_sdk.errors import RegistryError
from mlops_sdk.registry.mlflow_api import MlflowApi, MlflowFailure


class MlflowHook(ConnectionHook[MlflowSettings]):
    """MLflow, with authentication on."""

    form = MLFLOW

    @classmethod
    def parse(cls, fields: Fields) -> MlflowSettings:
        """See `ConnectionHook.parse`."""
        return MlflowSettings(
            tracking_uri=fields.required("host"),
            username=fields.login,
            password=fields.password,
            **fields.given("alias"),
        )

    def get_conn(self) -> MlflowApi:
        """The server's REST API."""
        return MlflowApi(self.settings())

    def ask(self) -> str:
        """A search that needs a login."""
        settings = self.settings()
        try:
            MlflowApi(settings).get("experiments/search", max_results="1")
        except MlflowFailure as failure:
            raise RegistryError(
                f"MLflow at {settings.tracking_uri!r} does not answer as MLflow does",
                seen=f"{failure.status} {failure.code} {failure.message}",
                next_step="check the tracking URL",
            ) from failure
        return f"MLflow at {settings.tracking_uri} knows {settings.username or 'anybody'!r}"

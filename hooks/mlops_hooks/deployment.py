"""A whole deployment from three connections: the settings and client that operators and triggers work with."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import ValidationError

from mlops_hooks.connection import validation_failed
from mlops_hooks.mlflow import MlflowHook
from mlops_hooks.openstack import OpenStackConfig, OpenStackHook
from mlops_hooks.s3 import S3Hook
from mlops_sdk.client import Client
from mlops_sdk.config import MlflowSettings, S3Settings, Settings
from mlops_sdk.keeper import Keeper


class ConnectionSettings(Settings):
    """Settings that come from connections alone: `MLOPS_*` in a worker's environment does not count."""

    reads_environment: ClassVar[bool] = False


class DeploymentHook:
    """Where everything is, by connection ids.

    Args:
        openstack_conn_id: Of type ``mlops_openstack``.
        s3_conn_id: Of type ``mlops_s3``.
        mlflow_conn_id: Of type ``mlops_mlflow``.

    Example:
        >>> run = DeploymentHook().client().start_run("my-dag/my-run")
    """

    def __init__(
        self,
        openstack_conn_id: str = OpenStackHook.default_conn_name,
        s3_conn_id: str = S3Hook.default_conn_name,
        mlflow_conn_id: str = MlflowHook.default_conn_name,
    ) -> None:
        self._openstack = OpenStackHook(openstack_conn_id)
        self._s3 = S3Hook(s3_conn_id)
        self._mlflow = MlflowHook(mlflow_conn_id)

    def settings(self) -> Settings:
        """The deployment's settings.

        Raises:
            SettingsError: naming connection and field.
        """
        return self._compose(self._openstack.settings(), self._s3.settings(), self._mlflow.settings())

    async def asettings(self) -> Settings:
        """As `settings`, for triggers: does not block the event loop."""
        openstack = await self._openstack.asettings()
        return self._compose(openstack, await self._s3.asettings(), await self._mlflow.asettings())

    def client(self) -> Client:
        """A client of the deployment; connects to each service at its first use."""
        return Client(self.settings())

    async def aclient(self, *, keeper: Keeper | None = None, earlier: Client | None = None) -> Client:
        """As `client`, for triggers. The client's own calls block: `asyncio.to_thread` them.

        Args:
            keeper: Who renews the leases of its runs.
            earlier: One of these connections, which is logged in already: returned while they say the same.
        """
        settings = await self.asettings()
        return earlier if earlier is not None and earlier.settings == settings else Client(settings, keeper=keeper)

    def _compose(self, openstack: OpenStackConfig, s3: S3Settings, mlflow: MlflowSettings) -> Settings:
        data: dict[str, Any] = {
            **openstack.deployment,
            "broker_key": openstack.broker_key,
            "keystone": openstack.keystone,
            "s3": s3,
            "mlflow": mlflow,
        }
        try:
            return ConnectionSettings(**data)
        except ValidationError as error:
            raise validation_failed(self._openstack.conn_id, error) from None

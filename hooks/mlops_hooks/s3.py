"""`mlops_s3`: the deployment's bucket."""

from __future__ import annotations

from mlops_hooks.connection import ConnectionHook, Fields
from mlops_hooks.forms import S3
from mlops_sdk.config import S3Settings
from mlops_sdk.objects import ObjectStore, connect_s3


class S3Hook(ConnectionHook[S3Settings]):
    """S3, by Ceph RGW or any other that has conditional PUTs."""

    form = S3

    @classmethod
    def parse(cls, fields: Fields) -> S3Settings:
        """See `ConnectionHook.parse`."""
        return S3Settings(
            endpoint=fields.required("host"),
            access_key_id=fields.required("login"),
            secret_access_key=fields.password,
            **fields.given("node_endpoint", "region", "bucket", "ca_bundle", "per_run", "run_role", "token_s"),
        )

    def get_conn(self) -> ObjectStore:
        """The bucket."""
        return ObjectStore.open(self.settings())

    def ask(self) -> str:
        """A listing of the bucket."""
        settings = self.settings()
        store = ObjectStore(connect_s3(settings, timeout_s=10, attempts=1), settings.bucket)
        next(store.list("runs/"), None)
        return f"S3 at {settings.endpoint} lets {settings.access_key_id!r} read bucket {settings.bucket!r}"

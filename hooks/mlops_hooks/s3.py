"""`mlops_s3`: the deployment's bucket."""

from __future__ import annotations

from pydantic import ValidationError

from mlops_hooks.connection import ConnectionHook, Fields, validation_failed
from mlops_hooks.forms import S3
from mlops_sdk.config import S3Settings
from mlops_sdk.objects import ObjectStore, connect_s3


class S3Hook(ConnectionHook[S3Settings]):
    """S3, by Ceph RGW or any other that has conditional PUTs."""

    form = S3
    conn_type = S3.conn_type
    hook_name = S3.name
    default_conn_name = "mlops_s3"

    @classmethod
    def parse(cls, fields: Fields) -> S3Settings:
        """See `ConnectionHook.parse`."""
        try:
            return S3Settings(
                endpoint=fields.required("host"),
                access_key_id=fields.required("login"),
                secret_access_key=fields.password,
                **fields.given("node_endpoint", "region", "bucket", "ca_bundle"),
            )
        except ValidationError as error:
            raise validation_failed(fields.conn_id, error) from None

    def get_conn(self) -> ObjectStore:
        """The bucket."""
        return ObjectStore.open(self.settings())

    def ask(self) -> str:
        """A listing of the bucket."""
        settings = self.settings()
        store = ObjectStore(connect_s3(settings, timeout_s=10, attempts=1), settings.bucket)
        next(store.list("runs/"), None)
        return f"S3 at {settings.endpoint} lets {settings.access_key_id!r} read bucket {settings.bucket!r}"

"""Real clients on the wire: keystoneauth, requests, boto3 and botocore, each with its own retries. Ten times dearer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmarks.leaks_life import BUCKET, SETTINGS
from mlops_sdk.cloud import Cloud
from mlops_sdk.objects import ObjectStore
from mlops_sdk.testing.http_cloud.openstack_wire import session_through
from mlops_sdk.testing.http_cloud.s3_wire import s3_to_reuse

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

    from benchmarks.leaks_world import Process
    from mlops_sdk.config import KeystoneSettings
    from mlops_sdk.testing.http_cloud.messages import Answer, Call


@dataclass(slots=True)
class _Line:
    """Where the calls of one S3 client go now."""

    to: Process | None = None

    def send(self, call: Call) -> Answer:
        if self.to is None:
            raise RuntimeError("nobody uses this client")
        return self.to.send(call)


@dataclass(slots=True)
class HttpWire:
    """`leaks_life.Wire` with the real clients. S3 clients are dear to make: those of earlier schedules are reused."""

    _clients: list[tuple[_Line, S3Client, Callable[[], None]]] = field(
        default_factory=list[tuple[_Line, "S3Client", Callable[[], None]]]
    )
    _used: int = 0

    def cloud(self, process: Process, login: KeystoneSettings) -> Cloud:
        """See `Wire.cloud`."""
        return Cloud(login, connect=session_through(process.send))

    def store(self, process: Process) -> ObjectStore:
        """See `Wire.store`."""
        if self._used == len(self._clients):
            line = _Line()
            self._clients.append((line, *s3_to_reuse(SETTINGS.s3, line.send)))
        line, client, forget = self._clients[self._used]
        self._used += 1
        line.to = process
        forget()
        return ObjectStore(client, BUCKET)

    def restart(self) -> None:
        """The next schedule."""
        self._used = 0

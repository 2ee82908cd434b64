"""The S3 login of a job on its machines: a file in memory, replaced over SSH long before it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from pydantic import SecretStr

from mlops_sdk.config import S3Settings
from mlops_sdk.errors import MlopsError
from mlops_sdk.identity.sts import RunTokens
from mlops_sdk.remote.ssh import Connection
from mlops_sdk.training.plan import job_directory
from mlops_sdk.training.site import Site
from mlops_sdk.training.spec import LaunchSpec

_SHARE = 3  # renewed after a third of its life: two renewals may fail
_AGAIN = 30  # a renewal that failed is tried again after this part of a life


class MachinesLogin:
    """Gives the machines of an attempt the run's S3 login, and keeps it fresh.

    Args:
        tokens: Makes the logins.
        reads: Which inputs the job may read.
        connections: To the machines.
        path: The file on each of them.
        warn: Told when a renewal failed; the next one is tried soon.
    """

    def __init__(
        self,
        tokens: RunTokens,
        reads: Sequence[str],
        connections: Sequence[Connection],
        path: str,
        *,
        warn: Callable[[str], None],
    ) -> None:
        self.path = path
        self._tokens = tokens
        self._reads = tuple(reads)
        self._connections = connections
        self._warn = warn

    @classmethod
    def of(
        cls, site: Site, spec: LaunchSpec, connections: Sequence[Connection], *, warn: Callable[[str], None]
    ) -> MachinesLogin | None:
        """The login of a job; None where the machines get the deployment's own."""
        if site.tokens is None:
            return None
        path = f"{job_directory(site.run_key)}/s3.json"
        return cls(site.tokens, spec.inputs, connections, path, warn=warn)

    def settings(self, node_s3: S3Settings) -> S3Settings:
        """What the machines are told: where the bucket is and in which file the login, and no key."""
        mine = {"access_key_id": "", "secret_access_key": SecretStr(""), "credentials_file": self.path}
        return node_s3.model_copy(update=mine)

    async def give(self) -> None:
        """A new login on every machine.

        Raises:
            MlopsError: there is none, or a machine did not take it; the others have it.
        """
        token = await asyncio.to_thread(self._tokens.mint, self._reads)
        body = token.to_bytes()
        given = await asyncio.gather(
            *(connection.put_bytes(self.path, body) for connection in self._connections), return_exceptions=True
        )
        for outcome in given:
            if isinstance(outcome, BaseException):
                raise outcome

    async def keep_fresh(self) -> None:
        """Until cancelled: a new login each third of its life. Never raises but when cancelled."""
        pause_s = self._tokens.lifetime_s / _SHARE
        while True:
            await asyncio.sleep(pause_s)
            try:
                await self.give()
            except MlopsError as error:
                self._warn(f"the machines' S3 login was not renewed: {error}")
                pause_s = self._tokens.lifetime_s / _AGAIN
            else:
                pause_s = self._tokens.lifetime_s / _SHARE

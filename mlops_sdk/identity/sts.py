"""S3 logins of runs, from the STS of Ceph RGW: short-lived, and reaching one run's own objects and inputs only.

A token cannot be revoked: after its run has ended it is good for `S3Settings.token_s` at most.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any, Protocol

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from pydantic import SecretStr

from mlops_sdk.capacity.lease import to_iso
from mlops_sdk.config import S3Settings
from mlops_sdk.errors import AccessDenied, RemoteError, ServiceUnavailable
from mlops_sdk.identity.audit import Audit
from mlops_sdk.identity.s3_policy import session_policy
from mlops_sdk.identity.s3_token import S3Token

_SERVER_ERROR = 500
_REFUSALS = {400, 401, 403}


class RunTokens(Protocol):
    """Makes the S3 logins of one run.

    Attributes:
        lifetime_s: How long each is good for.
    """

    lifetime_s: float

    def mint(self, reads: Iterable[str]) -> S3Token:
        """A new login: the run's own prefix, and `reads` (see `s3_policy.session_policy`) to read."""
        ...


class StsTokens:
    """`RunTokens` by AssumeRole, with the deployment's own login. Thread-safe.

    Args:
        settings: The deployment's S3, with `run_role`.
        run_key: Whose.
        audit: Where each is written down.
    """

    def __init__(self, settings: S3Settings, run_key: str, audit: Audit) -> None:
        self.lifetime_s = settings.token_s
        self._settings = settings
        self.run_key = run_key
        self._audit = audit
        self._client: Any = None

    def mint(self, reads: Iterable[str]) -> S3Token:
        """See `RunTokens.mint`.

        Raises:
            AccessDenied: no STS here, no such role, or it does not trust our login.
            ServiceUnavailable: no answer, or it could not be written down.
            SettingsError: `reads` cannot be said in a policy.
        """
        wanted = tuple(reads)
        prefix = f"runs/{self.run_key}"
        policy = session_policy(self._settings.bucket, prefix, wanted)
        about = {"role": self._settings.run_role, "reads": len(wanted)}
        with self._audit.around("s3.assume_role", prefix, must=True, **about) as outcome:
            token = self._assume(policy)
            outcome.update(access_key_id=token.access_key_id, expires_at=to_iso(token.expires_at))
        return token

    def _assume(self, policy: str) -> S3Token:
        with _translated(f"AssumeRole of {self._settings.run_role!r} at {self._settings.endpoint!r}"):
            if self._client is None:
                self._client = _connect(self._settings)
            reply = self._client.assume_role(
                RoleArn=self._settings.run_role,
                RoleSessionName=f"ml-{self.run_key}",
                DurationSeconds=int(self._settings.token_s),
                Policy=policy,
            )
        given = reply["Credentials"]
        return S3Token(
            access_key_id=given["AccessKeyId"],
            secret_access_key=SecretStr(given["SecretAccessKey"]),
            session_token=SecretStr(given["SessionToken"]),
            expires_at=given["Expiration"],
        )


def _connect(settings: S3Settings) -> Any:
    config = Config(
        retries={"total_max_attempts": 4, "mode": "standard"},
        connect_timeout=5,
        read_timeout=30,
        parameter_validation=False,  # the shortest time is the server's to say, not AWS's 900 s
    )
    return boto3.client(
        "sts",
        endpoint_url=settings.endpoint,
        region_name=settings.region,
        aws_access_key_id=settings.access_key_id,
        aws_secret_access_key=settings.secret_access_key.get_secret_value(),
        verify=settings.ca_bundle or None,
        config=config,
    )


@contextmanager
def _translated(what: str) -> Generator[None]:
    try:
        yield
    except ClientError as error:
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        seen = f"{status} {error.response.get('Error', {}).get('Code', '')}"
        if status >= _SERVER_ERROR:
            raise ServiceUnavailable(f"{what} failed", seen=seen, next_step="see the S3 server's log") from error
        kind = AccessDenied if status in _REFUSALS else RemoteError
        raise kind(
            f"{what} was refused",
            seen=seen,
            next_step="turn STS on in the S3 server, make the role and let it trust our user (docs/permissions.md); "
            "where there is no STS, set s3.per_run to none",
        ) from error
    except BotoCoreError as error:
        raise ServiceUnavailable(
            f"{what} got no answer", seen=str(error), next_step="check that the S3 endpoint is up and reachable"
        ) from error

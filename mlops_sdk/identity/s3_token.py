"""A short-lived S3 login, the file in which a machine has it, and a client that follows that file.

The controller replaces the file while the run lives (over SSH standard input); a client made before goes on with the
new login, without a restart.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import botocore.session
from botocore.credentials import CredentialProvider, CredentialResolver, RefreshableCredentials
from botocore.exceptions import CredentialRetrievalError
from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError

from mlops_sdk.canonical import to_json

_METHOD = "mlops-file"
_LOOK_AGAIN_S = 900  # from here on each request looks at the file, which is small and in memory
_MUST_S = 30

if logging.getLogger("botocore.credentials").level == logging.NOTSET:  # unless somebody wants it: a traceback a request
    logging.getLogger("botocore.credentials").setLevel(logging.ERROR)


class S3Token(BaseModel):
    """What STS gave: keys, token, and when they end."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    access_key_id: str
    secret_access_key: SecretStr
    session_token: SecretStr
    expires_at: datetime

    def to_bytes(self) -> bytes:
        """The file's content, secrets in clear: only for standard input of SSH."""
        return to_json(
            {
                "access_key_id": self.access_key_id,
                "secret_access_key": self.secret_access_key.get_secret_value(),
                "session_token": self.session_token.get_secret_value(),
                "expires_at": self.expires_at.isoformat(),
            }
        )

    def metadata(self) -> dict[str, str]:
        """As botocore wants it."""
        return {
            "access_key": self.access_key_id,
            "secret_key": self.secret_access_key.get_secret_value(),
            "token": self.session_token.get_secret_value(),
            "expiry_time": self.expires_at.isoformat(),
        }


def session_from(path: Path) -> botocore.session.Session:
    """A botocore session whose login is what the file says at each request.

    Its clients raise botocore's `CredentialRetrievalError` while the file is missing, unreadable or out of date.
    """
    session = botocore.session.Session()
    session.register_component("credential_provider", CredentialResolver([_FromFile(path)]))
    return session


@contextmanager
def login_file(token: S3Token) -> Generator[Path]:
    """The token as a file of ours alone, gone at the end."""
    with tempfile.TemporaryDirectory(prefix="mlops-s3-") as folder:  # mode 0700
        path = Path(folder) / "s3.json"
        path.write_bytes(token.to_bytes())
        yield path


class _FromFile(CredentialProvider):
    METHOD = _METHOD

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def load(self) -> RefreshableCredentials:
        return RefreshableCredentials.create_from_metadata(
            metadata=self._read(),
            refresh_using=self._read,
            method=_METHOD,
            advisory_timeout=_LOOK_AGAIN_S,
            mandatory_timeout=_MUST_S,
        )

    def _read(self) -> dict[str, Any]:
        try:
            token = S3Token.model_validate_json(self._path.read_bytes())
        except OSError as error:
            raise self._failure(error.strerror or type(error).__name__) from None
        except ValidationError as error:
            raise self._failure(f"{error.error_count()} fields are wrong") from None
        if token.expires_at <= datetime.now(token.expires_at.tzinfo):
            raise self._failure(f"it ended at {token.expires_at.isoformat()} and was not renewed")
        return token.metadata()

    def _failure(self, seen: str) -> CredentialRetrievalError:
        return CredentialRetrievalError(provider=str(self._path), error_msg=seen)

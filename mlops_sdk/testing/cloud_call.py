"""What every call to a cloud in memory passes through: its script of failures, the login, what is due by then."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlops_sdk.config import KeystoneSettings
from mlops_sdk.errors import AccessDenied

if TYPE_CHECKING:
    from mlops_sdk.testing.cloud import FakeCloud


class CloudCall:
    """Around each call: due changes happen, the login is checked, the script may fail it."""

    def __init__(self, cloud: FakeCloud, name: str, login: KeystoneSettings | None) -> None:
        self._cloud = cloud
        self._name = name
        self._login = login
        self._fault = cloud.faults.call(name)

    def __enter__(self) -> None:
        self._fault.__enter__()
        self._cloud.lock.acquire()
        try:
            self._check()
        except BaseException:
            self._cloud.lock.release()
            raise

    def __exit__(self, *error: object) -> None:
        self._cloud.lock.release()
        if error[0] is None:
            self._fault.__exit__(None, None, None)

    def _check(self) -> None:
        login = self._login
        if login is not None:
            secret = login.application_credential_secret.get_secret_value()
            stored = {c.id for c in self._cloud.credentials.values()}
            known = self._cloud.secrets.get(login.application_credential_id)
            if login.application_credential_id not in stored or secret != known:
                raise AccessDenied(f"{self._name} was refused", seen="401 unauthorized")
        self._cloud.settle()

"""The fake cloud as one place: Keystone, Ironic and S3 behind HTTP, and what is added to them; one clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from mlops_sdk.config import Settings
from mlops_sdk.testing.http_cloud.ironic import FakeIronic, Pace
from mlops_sdk.testing.http_cloud.keystone import PROJECT, FakeKeystone, refused
from mlops_sdk.testing.http_cloud.messages import Answer, Call, ServiceName
from mlops_sdk.testing.http_cloud.s3 import FakeS3

KEYSTONE_URL: Final = "http://keystone.invalid/v3"
IRONIC_URL: Final = "http://ironic.invalid"
S3_URL: Final = "http://s3.invalid"
USER: Final = "broker"
PASSWORD: Final = "the broker's password"  # noqa: S105 - of a user that exists in memory only

Handle: TypeAlias = Callable[[Call, str], Answer]
"""Carries out one request of somebody who is logged in to a project."""


class HttpCloud:
    """The services of one cloud.

    Args:
        monotonic: The world's clock, in seconds.
        pace: How long things take in Ironic.
    """

    def __init__(self, monotonic: Callable[[], float], pace: Pace | None = None) -> None:
        self.monotonic = monotonic
        self._catalogue = {"identity": KEYSTONE_URL, "baremetal": IRONIC_URL}
        self._others: dict[ServiceName, Handle] = {}
        self.keystone = FakeKeystone(passwords={USER: PASSWORD}, catalogue=self._catalogue)
        self.ironic = FakeIronic(monotonic, pace)
        self.s3 = FakeS3()

    def add(self, service: ServiceName, url: str, handle: Handle) -> None:
        """One more service; logins see it in their catalogue from now on."""
        self._catalogue[service] = url
        self._others[service] = handle

    def deliver(self, call: Call) -> Answer:
        """Carry out one request as it arrives: the login is checked now, not when it was sent."""
        if call.service == "s3":
            return self.s3.handle(call)
        if call.service == "identity":
            return self.keystone.handle(call)
        login = self.keystone.login_of(call)
        if call.path not in {"/", "/v1", "/v1/"} and (login is None or not self.keystone.allows(login, call)):
            answer = refused()
            return Answer(status=answer.status, body=answer.body, headers=self.ironic.date)
        return self._others.get(call.service, self.ironic.handle)(call, PROJECT)


def cloud_settings(settings: Settings) -> Settings:
    """The same deployment in such a cloud, with the broker's login."""
    keystone = settings.keystone.model_copy(
        update={"auth_url": KEYSTONE_URL, "username": USER, "password": type(settings.broker_key)(PASSWORD)}
    )
    s3 = settings.s3.model_copy(update={"endpoint": S3_URL})
    return settings.model_copy(update={"keystone": keystone, "s3": s3})

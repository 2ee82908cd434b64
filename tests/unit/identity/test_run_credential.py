"""One credential per run and generation."""

import uuid
from datetime import timedelta

import pytest
from pydantic import SecretStr

from mlops_sdk.errors import LeaseLost, ServiceUnavailable
from mlops_sdk.identity.credential import CredentialBroker, CredentialRequest, run_access_rules
from mlops_sdk.identity.credential_marker import Alive, CredentialMarker, why_dead
from mlops_sdk.testing.cloud import FakeCloud, FakeCredentials

RUN = uuid.UUID(int=7)
DEPLOYMENT = uuid.UUID(int=1)


@pytest.fixture
def cloud() -> FakeCloud:
    return FakeCloud()


def broker(cloud: FakeCloud) -> CredentialBroker:
    return CredentialBroker(FakeCredentials(cloud), SecretStr("a broker key that is long enough for us"))


def wanted(cloud: FakeCloud, generation: int = 1) -> CredentialRequest:
    return CredentialRequest(
        run_id=RUN,
        deployment_id=DEPLOYMENT,
        generation=generation,
        deadline=cloud.clock.now() + timedelta(hours=1),
        grace_s=60,
    )


def test_a_lost_reply_loses_nothing(cloud):
    cloud.faults.fail_at("create_credential", 1, error=ServiceUnavailable("cut"), when="after")
    with pytest.raises(ServiceUnavailable):
        broker(cloud).mint(wanted(cloud), now=cloud.clock.now())
    again = broker(cloud).mint(wanted(cloud), now=cloud.clock.now())
    assert cloud.secrets[again.id] == again.secret.get_secret_value()
    assert again.secret.get_secret_value() not in repr(again)


def test_each_generation_has_its_own_secret(cloud):
    first, second = (broker(cloud).mint(wanted(cloud, g), now=cloud.clock.now()) for g in (1, 2))
    assert first.secret.get_secret_value() != second.secret.get_secret_value()
    assert first.expires_at == wanted(cloud).deadline + timedelta(seconds=60)


def test_a_name_that_somebody_else_took_is_not_used(cloud):
    FakeCredentials(cloud).create(
        name=wanted(cloud).name,
        secret="s",
        description="mine",
        expires_at=cloud.clock.now(),
        roles=(),
        access_rules=(),
    )
    with pytest.raises(LeaseLost):
        broker(cloud).mint(wanted(cloud), now=cloud.clock.now())


def test_revoking_removes_the_rules_that_name_the_run_and_keeps_the_shared_ones(cloud):
    one, two = wanted(cloud, 1), wanted(cloud, 2)
    for request in (one, two):
        broker(cloud).mint(request, now=cloud.clock.now())
    assert broker(cloud).revoke(one.name)
    assert not broker(cloud).revoke(one.name)
    assert broker(cloud).absent(one.name)
    assert broker(cloud).names_of_rules() == {two.name}
    assert "rule GET /v1/nodes" in cloud.access_rules


def test_the_rules_name_the_runs_own_allocations_only():
    paths = {rule.path for rule in run_access_rules(RUN, 3) if rule.method == "DELETE"}
    assert paths == {"/v1/allocations/ml-aaaaaaaaaaaa-g3-*"}


def test_a_dead_runs_credential_is_recognised(cloud):
    now = cloud.clock.now()
    marker = CredentialMarker(
        run_id=str(RUN), deployment_id=str(DEPLOYMENT), generation=1, created_at=now, deadline=now + timedelta(hours=1)
    )

    def dead(after_s: float, alive: Alive | None) -> bool:
        at = now + timedelta(seconds=after_s)
        return why_dead(marker, alive, now=at, skew_s=1, window_s=20) is not None

    assert CredentialMarker.parse(str(marker)) == marker
    assert not dead(20, None)  # it may be about to write its first heartbeat
    assert dead(22, None)
    beating = Alive(generation=1, renewed_until=now + timedelta(seconds=100))
    assert not dead(100, beating)
    assert dead(102, beating)
    assert dead(3700, Alive(generation=1, renewed_until=now + timedelta(days=1)))  # past its deadline
    assert dead(1, Alive(generation=2, renewed_until=now + timedelta(days=1)))  # a crash left it behind
    assert Alive.parse({"generation": "x"}) is None
    assert Alive.parse(None) is None

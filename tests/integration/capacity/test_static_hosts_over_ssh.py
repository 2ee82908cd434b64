"""A fixed pool of hosts with a real SSH daemon each: what a lease's login leaves behind, and what cleaning does."""

import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from mlops_sdk.capacity.boundary import Boundary, no_boundary
from mlops_sdk.capacity.evidence import Outcome
from mlops_sdk.capacity.fence import Fence
from mlops_sdk.capacity.lease import LeaseRequest
from mlops_sdk.capacity.node import Node
from mlops_sdk.capacity.provider import Grant, Party, Provider
from mlops_sdk.capacity.providers.static import StaticHosts
from mlops_sdk.capacity.providers.static_claim import ClaimState, HostClaim
from mlops_sdk.capacity.providers.static_pool import HostPool
from mlops_sdk.capacity.providers.static_shell import SshShell
from mlops_sdk.capacity.reaper import Reaper
from mlops_sdk.client import Client
from mlops_sdk.clock import SystemClock
from mlops_sdk.config import Settings, StaticGateway
from mlops_sdk.doctor import examine, log_in_to_pool
from mlops_sdk.errors import NodeFailed, RemoteCommandError, RemoteError
from mlops_sdk.identity.ssh_keys import client_key
from mlops_sdk.objects import ObjectStore
from mlops_sdk.remote.pool import gateway_of
from mlops_sdk.remote.ssh import Host, run_once
from mlops_sdk.testing.memory_s3 import memory_store
from mlops_sdk.testing.provider_contract import CHECKS, Bench
from mlops_sdk.testing.settings import fake_settings
from support import eventually
from support_sshd import CLASS, SshdHost, behind_a_gateway, new_key

CLOCK = SystemClock()


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[SshdHost]]:
    login = new_key()
    started: list[SshdHost] = []
    try:
        for number in (1, 2, 3):
            host = SshdHost.start(f"pool-{number}", tmp_path_factory.mktemp(f"pool-{number}-"), login)
            started.append(host)
        yield started
    finally:
        for host in started:
            host.stop()


def settings_of(hosts: list[SshdHost], base: Settings) -> Settings:
    lease = base.lease.model_copy(update={"renew_for_s": 6.0, "ssh_timeout_s": 1.0, "poll_s": 0.2})
    return base.model_copy(
        update={
            "static_hosts": tuple(host.settings for host in hosts),
            "static_key": SecretStr(hosts[0].login.private),
            "lease": lease,
        }
    )


def bench_on(settings: Settings, store: ObjectStore) -> Bench:
    def open_provider(boundary: Boundary = no_boundary) -> Provider:
        fence = Fence(store, now=now, ttl_s=settings.lease.renew_for_s)
        return StaticHosts(store, Party(settings=settings, fence=fence, clock=CLOCK, boundary=boundary), now)

    def plant(grant: Grant) -> Callable[[], bool]:
        pool, name = HostPool(store, ()), "pool-1"
        marker = bench.grant().marker(0, now=now(), renew_for_s=60)  # another run's
        claim = HostClaim(host=name, state=ClaimState.HELD, id="x", name=grant.name(0), marker=marker, used=True)
        stored = pool.put(pool.read(name), claim)
        assert stored is not None

        def take_away() -> bool:
            seen = pool.read(name)
            pool.put(seen, HostClaim(host=name))
            return seen == stored

        return take_away

    bench = Bench(
        open=open_provider, clock=CLOCK, deployment_id=settings.deployment_id, resource_class=CLASS, plant=plant
    )
    return bench


@pytest.fixture
def bench(hosts: list[SshdHost]) -> Bench:
    return bench_on(settings_of(hosts, fake_settings()), memory_store())


def as_lessee(grant: Grant, node: Node, script: str, *, timeout_s: float = 5.0, via: Host | None = None) -> str:
    key = client_key(grant.broker_key.get_secret_value(), grant.run_id, grant.generation)
    host = Host(
        name=node.name,
        address=node.address,
        host_public_key=node.host_public_key,
        client_private_key=key.private,
        username=node.user,
        port=node.port,
        via=via,
    )
    return run_once(host, ["sh", "-c", script], timeout_s=timeout_s)


def test_what_a_lease_leaves_behind_is_gone_and_what_was_there_before_is_not(bench: Bench, hosts: list[SshdHost]):
    host = hosts[0]
    earlier = Host(
        name=host.name,
        address="127.0.0.1",
        host_public_key=host.host_key.public,
        client_private_key=host.login.private,
        username="pool",
        port=host.port,
    )
    run_once(earlier, ["sh", "-c", "setsid sleep 1111 > /dev/null 2>&1 < /dev/null & echo mine > '/tmp/of earlier'"])
    on_first = replace(bench, open=lambda boundary=no_boundary: only(bench.open(boundary), host.name))
    grant = on_first.grant(nodes=1)
    try:
        (node,) = on_first.drive(on_first.open().acquire(grant))
        assert node.image == "a host of the tests"
        stranger = new_key()
        as_lessee(
            grant,
            node,
            "setsid nohup sleep 2222 > /dev/null 2>&1 < /dev/null & "
            "(env -i setsid sh -c 'trap : TERM HUP; while :; do sleep 3333; done' > /dev/null 2>&1 < /dev/null &) ; "
            f"echo '{stranger.public}' >> ~/.ssh/authorized_keys; "
            f"mkdir -p /scratch/{grant_key(grant)}/data /run/mlops/{grant_key(grant)} '/tmp/a b'; "
            f"touch /run/mlops/{grant_key(grant)}.lock '/tmp/a b/c' /tmp/.hidden \"$(printf '/tmp/of earlier\\nx')\"; "
            f"echo weights > /scratch/{grant_key(grant)}/data/model",
        )
        eventually(lambda: len(host.commands) >= 4, within_s=5, what="the lease's processes run")
        assert stranger.public in host.keys
    finally:
        evidence = on_first.release(grant)
    assert [item.outcome for item in evidence] == [Outcome.CLEANED]
    assert host.commands == ["sleep 1111"]
    assert host.keys == [host.login.public]
    assert not list((host.root / "scratch").iterdir())
    assert not list((host.root / "run/mlops").iterdir())
    assert [path.name for path in (host.root / "tmp").iterdir()] == ["of earlier"]
    with pytest.raises(NodeFailed, match="no SSH login"):
        as_lessee(grant, node, "true", timeout_s=0.5)
    run_once(earlier, ["pkill", "sleep"])


def test_who_cleans_too_late_does_not_touch_the_next_tenant(hosts: list[SshdHost]):
    """A releaser that was stopped between its last look and its command, until the host had gone to somebody else."""
    shell = SshShell(settings_of(hosts, fake_settings()))
    host = hosts[1]
    before = shell.look(host.settings)
    shell.let_in(host.settings, before, [new_key().public], "of-the-next-tenant")
    with pytest.raises(RemoteCommandError, match="leased to somebody else meanwhile"):
        shell.clean(host.settings, before, "aaaaaaaaaaaa", "of-the-last-tenant")
    assert len(host.keys) == 2
    with pytest.raises(RemoteCommandError, match="it lets another lease in: mlops-lease of-the-next-tenant"):
        shell.look(host.settings)  # nor does another deployment get it
    assert "keys as before" in shell.clean(host.settings, before, "aaaaaaaaaaaa", "of-the-next-tenant")
    assert host.keys == [host.login.public]


def test_a_host_with_another_key_lets_nobody_in_and_goes_out_of_the_pool(bench: Bench, hosts: list[SshdHost]):
    settings = settings_of(hosts[:1], fake_settings())
    other = settings.static_hosts[0].model_copy(update={"host_public_key": new_key().public})
    wrong = bench_on(settings.model_copy(update={"static_hosts": (other,)}), memory_store())
    grant = wrong.grant(nodes=1)
    with pytest.raises(NodeFailed, match="did not let the lease in"):
        wrong.drive(wrong.open().acquire(grant))
    (evidence,) = wrong.release(grant)
    assert evidence.outcome is Outcome.NEVER_DEPLOYED
    (machine,) = wrong.open().pool()
    assert machine.state.startswith("out: SHA256:")
    assert hosts[0].keys == [hosts[0].login.public]


def test_a_host_that_loses_power_while_it_is_leased_comes_back_clean(bench: Bench, hosts: list[SshdHost]):
    """Unreachable is not clean: it stays out until it answers, and a person has it cleaned."""
    host = hosts[2]
    on_third = replace(bench, open=lambda boundary=no_boundary: only(bench.open(boundary), host.name))
    grant = on_third.grant(nodes=1)
    on_third.drive(on_third.open().acquire(grant))
    host.stop()
    (evidence,) = on_third.release(grant)
    assert evidence.outcome is Outcome.NOT_CLEAN
    assert "Connect call failed" in evidence.last_error
    host.boot()
    provider = on_third.open()
    assert isinstance(provider, StaticHosts)
    assert "keys as before" in provider.clean(host.name)
    assert host.keys == [host.login.public]


def test_a_host_behind_a_gateway_is_leased_used_and_cleaned_through_it(tmp_path: Path):
    with behind_a_gateway(tmp_path) as (gateway, host):
        settings = settings_of([host], fake_settings())
        door = StaticGateway(name="door", address=gateway.address, user="pool", host_public_key=gateway.host_key.public)
        named = settings.static_hosts[0].model_copy(update={"gateway": "door"})
        settings = settings.model_copy(update={"static_hosts": (named,), "static_gateways": (door,)})
        bench = bench_on(settings, memory_store())
        grant = bench.grant(nodes=1)
        (node,) = bench.drive(bench.open().acquire(grant))
        assert as_lessee(grant, node, "cat /etc/hostname", via=gateway_of(settings, node.gateway)) == "node\n"
        with pytest.raises(NodeFailed, match="no SSH login"):
            as_lessee(grant, node, "true", timeout_s=1)
        (evidence,) = bench.release(grant)
        assert evidence.outcome is Outcome.CLEANED
        assert host.keys == [host.login.public]


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_leases_over_ssh_keep_the_contract_of_providers(check: Callable[[Bench], None], bench: Bench):
    check(bench)


@pytest.mark.slow
@pytest.mark.stack
@pytest.mark.timeout(600)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_leases_over_ssh_with_claims_in_ceph_keep_the_contract(
    check: Callable[[Bench], None], hosts: list[SshdHost], stack: Any
):
    store = ObjectStore.open(stack.settings.s3)
    try:
        check(bench_on(settings_of(hosts, stack.settings), store))
    finally:
        for info in list(store.list("pool/static/")):
            store.delete(info.key)


@pytest.mark.stack
@pytest.mark.slow
def test_a_deployment_of_hosts_alone_works_where_no_ironic_answers(stack: Any, hosts: list[SshdHost]):
    settings = settings_of(hosts, stack.settings).model_copy(update={"ironic": False, "deployment_id": uuid.uuid4()})
    store = ObjectStore.open(stack.settings.s3)
    with stack.held("ironic"):
        checks = {check.name: check for check in examine(lambda: settings)}
        assert {name: check.detail for name, check in checks.items() if not check.ok} == {}
        assert "3 visible to this project, 3 free" in checks["machines of static"].detail
        deadline = datetime.now(UTC) + timedelta(minutes=5)
        with Client(settings).start_run(name="hosts alone") as run:
            lease = run.lease(LeaseRequest(nodes=2, resource_class=CLASS, deadline=deadline, provider="static"))
            assert len({node.name for node in lease.nodes}) == 2
            assert Reaper.connect(settings).reap_once().errors == ()
            run.raise_if_lost()
        assert run.prove().complete
    for info in list(store.list("pool/static/")):
        store.delete(info.key)


def test_doctor_names_a_host_that_does_not_let_us_in(hosts: list[SshdHost]):
    stranger = settings_of(hosts, fake_settings()).model_copy(update={"static_key": SecretStr(new_key().private)})
    with pytest.raises(RemoteError, match="3 of 3 hosts") as caught:
        log_in_to_pool(stranger)
    assert "pool-1" in caught.value.seen
    log_in_to_pool(settings_of(hosts, fake_settings()))


def only(provider: Provider, name: str) -> Provider:
    """The same provider, of a deployment that has but one of the hosts."""
    assert isinstance(provider, StaticHosts)
    provider._hosts = {name: provider._hosts[name]}
    return provider


def grant_key(grant: Grant) -> str:
    return grant.name(0).split("-")[1]

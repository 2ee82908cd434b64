"""A fixed pool of hosts: the contract of providers, and what is its own."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from mlops_sdk.capacity.boundary import Boundary, no_boundary
from mlops_sdk.capacity.evidence import Outcome
from mlops_sdk.capacity.lease import LeaseRequest
from mlops_sdk.capacity.provider import Grant, Provider
from mlops_sdk.capacity.providers.static import StaticHosts
from mlops_sdk.capacity.providers.static_claim import ClaimState, HostClaim
from mlops_sdk.capacity.providers.static_pool import HostPool
from mlops_sdk.capacity.watching import Phase
from mlops_sdk.errors import MlopsError, NodeFailed, SettingsError
from mlops_sdk.run import Run
from mlops_sdk.steps import drive
from mlops_sdk.testing.cloud import FakeCloud
from mlops_sdk.testing.faults import Crash
from mlops_sdk.testing.memory_s3 import memory_store
from mlops_sdk.testing.provider_contract import CHECKS, Bench

CLASS = "gpu.static"


def static(cloud: FakeCloud, boundary: Boundary = no_boundary) -> StaticHosts:
    found = cloud.services().provider("static", boundary=boundary)
    assert isinstance(found, StaticHosts)
    return found


def request(cloud: FakeCloud, nodes: int = 2) -> LeaseRequest:
    deadline = cloud.clock.now() + timedelta(hours=1)
    return LeaseRequest(nodes=nodes, resource_class=CLASS, deadline=deadline, provider="static")


def bench(cloud: FakeCloud) -> Bench:
    def open_provider(boundary: Boundary = no_boundary) -> Provider:
        return static(cloud, boundary)

    def plant(grant: Grant) -> Callable[[], bool]:
        pool = HostPool(memory_store(cloud.s3), ())
        marker = bench(cloud).grant().marker(0, now=cloud.clock.now(), renew_for_s=60)  # another run's
        claim = HostClaim(host="pool-01", state=ClaimState.HELD, id="x", name=grant.name(0), marker=marker, used=True)
        stored = pool.put(pool.read("pool-01"), claim)
        assert stored is not None

        def take_away() -> bool:
            seen = pool.read("pool-01")
            pool.put(seen, HostClaim(host="pool-01"))
            return seen == stored

        return take_away

    return Bench(
        open=open_provider,
        clock=cloud.clock,
        deployment_id=cloud.settings.deployment_id,
        resource_class=CLASS,
        plant=plant,
    )


def untouched(cloud: FakeCloud) -> bool:
    hosts = cloud.hosts.hosts.values()
    free = all(machine.state == "free" for machine in static(cloud).pool())
    return free and all((host.keys, host.processes) == (["ssh-ed25519 DEPLOYMENT"], ["1:0"]) for host in hosts)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_leases_on_hosts_keep_the_contract_of_providers(check):
    cloud = FakeCloud(hosts=3)
    check(bench(cloud))
    assert untouched(cloud)


def test_a_run_leases_hosts_works_on_them_and_proves_that_they_are_back():
    cloud = FakeCloud(hosts=3)
    with cloud.client().start_run(name="nightly") as run:
        lease = run.lease(request(cloud))
        names = {node.name for node in lease.nodes}
        assert [(node.gpus, node.image, node.user) for node in lease.nodes] == [(8, "image-1", "mlops")] * 2
        assert all(run.client_key.public in cloud.hosts.host(name).keys for name in names)
        other = cloud.client().attach(run.id)
        assert other.lease().nodes == lease.nodes
        other.close()
        cloud.clock.sleep(10)
        assert "1 free, 2 busy" in str(cloud.client().quote(request(cloud)))
    assert untouched(cloud)
    proof = run.prove()
    assert proof.complete, proof.missing
    assert {item.resource for item in proof.items if item.kind.value == "machine"} == names
    (summary,) = cloud.client().runs()
    assert summary.node_seconds >= 20


def test_only_the_hosts_that_a_request_names_are_claimed():
    cloud = FakeCloud(hosts=3)
    wanted = replace(request(cloud), machines=("pool-03", "pool-01"))
    with cloud.client().start_run() as run:
        assert sorted(node.name for node in run.lease(wanted).nodes) == ["pool-01", "pool-03"]
        assert not static(cloud).quote(replace(wanted, nodes=1, machines=("pool-01",))).available_now
        assert static(cloud).quote(replace(wanted, nodes=1, machines=("pool-02",))).available_now


def live(cloud: FakeCloud, run: Run) -> None:
    run.lease(request(cloud))
    run.release()


def count_calls() -> int:
    cloud = FakeCloud(hosts=3)
    live(cloud, cloud.client().start_run(name="nightly"))
    return len(cloud.faults.calls)


CALLS = count_calls()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("k", range(1, CALLS + 1))
def test_after_a_crash_at_any_call_the_reaper_cleans_and_frees_everything(k, when):
    cloud = FakeCloud(hosts=3)
    cloud.faults.fail_at("*", k, error=Crash(), when=when)
    run = None
    try:
        run = cloud.client().start_run(name="nightly")
        live(cloud, run)
    except Crash:
        pass
    finally:
        if run is not None:
            run.close()
    cloud.faults.clear()
    for _ in range(2):
        cloud.clock.sleep(cloud.settings.lease.renew_for_s + cloud.settings.lease.clock_skew_s + 1)
        cloud.reaper().reap_once()
    assert untouched(cloud)
    assert cloud.credentials == {}
    assert not [key for key in cloud.s3.objects if key.startswith("fence/")]
    again = cloud.client().start_run(name="nightly")
    proof = again.prove()
    assert proof.complete, proof.missing
    again.close()


def test_what_a_dead_run_holds_is_cleaned_by_the_reaper():
    cloud = FakeCloud(hosts=3)
    with cloud.client().start_run(name="dead") as run:
        run.lease(request(cloud))
        run.keep()
    cloud.reaper().reap_once()
    assert not untouched(cloud)  # still renewed
    cloud.clock.sleep(30)
    report = cloud.reaper().reap_once()
    assert [item.outcome for item in report.evidence] == [Outcome.CLEANED] * 2
    assert untouched(cloud)
    assert cloud.client().attach(run.key).prove().complete
    assert not [key for key in cloud.s3.objects if key.startswith("fence/")]


def test_a_host_that_cannot_be_cleaned_stays_out_with_the_reason_until_somebody_cleans_it():
    cloud = FakeCloud(hosts=2)
    cloud.hosts.host("pool-01").fails.add("clean")
    run = cloud.client().start_run()
    run.lease(request(cloud))
    outcomes = {item.node_id: item.outcome for item in run.release()}
    assert outcomes == {"pool-01": Outcome.NOT_CLEAN, "pool-02": Outcome.CLEANED}
    assert [item.resource for item in run.prove().missing] == ["pool-01"]
    shown = {machine.name: machine.state for machine in static(cloud).pool()}
    assert shown["pool-01"] == "out: exit status 5: clean is stuck"
    quote = cloud.client().quote(request(cloud))
    assert (quote.free, quote.out_of_service) == (1, 1)
    with pytest.raises(MlopsError, match="clean is stuck"):
        static(cloud).clean("pool-01")
    cloud.hosts.host("pool-01").fails.clear()
    assert "1 processes ended" in static(cloud).clean("pool-01")
    assert untouched(cloud)
    assert static(cloud).clean("pool-01") == "it is in the pool"


def test_a_host_that_lets_nobody_in_goes_out_and_the_next_generation_gets_another():
    cloud = FakeCloud(hosts=3)
    with cloud.client().start_run() as run:
        first = static(cloud)
        cloud.hosts.host("pool-01").fails.add("away")
        cloud.hosts.host("pool-02").fails.add("away")
        with pytest.raises(NodeFailed, match="did not let the lease in"):
            run.lease(request(cloud, nodes=3))
        out = {machine.name for machine in first.pool() if machine.state.startswith("out")}
        assert len(out) >= 1
        assert out <= {"pool-01", "pool-02"}
        cloud.hosts.hosts.clear()
        run.next_generation()
        run.lease(request(cloud, nodes=1))
    assert run.prove().complete
    for name in out:
        assert static(cloud).clean(name) == "it lets us in"
    assert untouched(cloud)


def test_who_waits_sees_all_claims_by_one_list_and_what_changed_since():
    cloud = FakeCloud(hosts=3)
    with cloud.client().start_run(name="nightly") as run:
        steps = run.leasing(request(cloud))
        seen = static(cloud)
        assert seen.sights() == {}
        cloud.hosts.host("pool-02").fails.add("away")
        next(steps)
        sights = seen.sights()
        pieces = [f"ml-{run.key}-g1-{index}" for index in range(2)]
        assert {sights[name].phase for name in pieces} <= {Phase.TENDED, Phase.READY}
        cloud.hosts.host("pool-02").fails.clear()
        drive(steps, cloud.clock)
        cloud.faults.clear()
        assert [seen.sights()[name].phase for name in pieces] == [Phase.READY] * 2
        read = cloud.faults.calls.count("get_object")
        cloud.faults.clear()
        assert [seen.sights()[name].node_name for name in pieces] == [node.name for node in run.held.nodes]
        assert (read > 0, cloud.faults.calls.count("get_object")) == (True, 0)
    sights = seen.sights()
    assert {sights[host].words for host in ("pool-01", "pool-02", "pool-03") if host in sights} == {
        "free: 1 processes ended"
    }
    assert not [name for name in sights if name.startswith("ml-")]


def test_two_processes_of_a_run_that_claim_at_once_keep_one_host_for_each_name():
    cloud = FakeCloud(hosts=3)
    grant = replace(bench(cloud).grant(), request=request(cloud, nodes=1))
    pool = HostPool(memory_store(cloud.s3), ())
    marker = grant.marker(0, now=cloud.clock.now(), renew_for_s=60)
    for host, age in (("pool-03", "2026-01-01T00:00:00+00:00"), ("pool-01", "2026-01-01T00:00:05+00:00")):
        claim = HostClaim(
            host=host, state=ClaimState.HELD, id=f"of-{host}", name=grant.name(0), marker=marker, created_at=age
        )
        pool.put(pool.read(host), claim)
    on = bench(cloud)
    (node,) = on.drive(static(cloud).acquire(grant))
    assert node.name == "pool-03"
    assert {machine.name: machine.state for machine in static(cloud).pool()}["pool-01"] == "free"
    on.release(grant)
    assert untouched(cloud)


def test_a_claim_that_cannot_be_read_is_never_free():
    cloud = FakeCloud(hosts=1)
    memory_store(cloud.s3).put("pool/static/pool-01.json", b"{")
    assert not cloud.client().quote(request(cloud, nodes=1)).available_now
    assert [machine.state.split(":")[0] for machine in static(cloud).pool()] == ["out"]


def test_a_provider_that_the_deployment_has_not_is_refused_before_anything_exists():
    cloud = FakeCloud()
    with cloud.client().start_run() as run, pytest.raises(SettingsError, match="static"):
        run.lease(request(cloud))
    assert not cloud.credentials
    assert [entry.action for entry in run.journal.entries()] == ["run"]


def test_a_deployment_without_ironic_never_asks_for_it():
    cloud = FakeCloud(hosts=3)
    cloud.settings = cloud.settings.model_copy(update={"ironic": False})
    with cloud.client().start_run(name="nightly") as run:
        run.lease(request(cloud))
        run.keep()
    cloud.clock.sleep(cloud.settings.lease.renew_for_s * 2)
    report = cloud.reaper().reap_once()
    assert [item.clean for item in report.evidence] == [True, True]
    assert report.errors == ()
    assert run.prove().complete
    with pytest.raises(SettingsError, match="no provider 'ironic'"), cloud.client().start_run(name="other") as other:
        other.lease(replace(request(cloud), provider="ironic"))
    assert untouched(cloud)
    ironics = {"list_allocations", "get_allocation", "create_allocation", "list_machines", "get_machine"}
    assert ironics & set(cloud.faults.calls) == set()

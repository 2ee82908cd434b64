"""Whole runs on servers of Nova: leased, attached to, proven; and a crash at every call is cleaned up by the reaper."""

from dataclasses import replace
from datetime import timedelta

import pytest

from mlops_sdk.capacity.evidence import Outcome
from mlops_sdk.capacity.flavors import Flavor
from mlops_sdk.capacity.lease import LeaseRequest
from mlops_sdk.capacity.loss import Answer
from mlops_sdk.capacity.provider import Party, Provider
from mlops_sdk.capacity.providers.nova import NovaLeases
from mlops_sdk.config import KeystoneSettings, NovaSettings
from mlops_sdk.errors import NotFenced, ServiceUnavailable
from mlops_sdk.keeper import Keeper
from mlops_sdk.run import Run
from mlops_sdk.services import Services
from mlops_sdk.testing.cloud import FakeCloud
from mlops_sdk.testing.faults import Crash
from mlops_sdk.testing.nova import FakeCompute, FakeDoor, FakeNova
from mlops_sdk.testing.settings import fake_settings

GPU = Flavor(id="f1", name="gpu", vcpus=8, ram_mb=1024, disk_gb=10, specs={"pci_passthrough:alias": "a100:1"})


class NovaCloud(FakeCloud):
    """A cloud with Nova besides."""

    def __init__(self) -> None:
        nova = NovaSettings(networks=("net",), image="ubuntu", data_volume_gib=10)
        super().__init__(settings=fake_settings().model_copy(update={"nova": nova}))
        self.nova = FakeNova(clock=self.clock, faults=self.faults, flavors=[GPU])

    def services(self, *, keeper: Keeper | None = None) -> Services:
        return replace(super().services(keeper=keeper), others={"nova": self._open_nova})

    def _open_nova(self, login: KeystoneSettings | None, party: Party) -> Provider:
        del login
        return NovaLeases(FakeCompute(self.nova), party, FakeDoor(self.nova))

    @property
    def left(self) -> list[str]:
        self.nova.moved()
        return [*self.nova.servers, *self.nova.ports, *self.nova.volumes]


def request(cloud: NovaCloud, nodes: int = 1) -> LeaseRequest:
    deadline = cloud.clock.now() + timedelta(hours=1)
    return LeaseRequest(nodes=nodes, resource_class="gpu", deadline=deadline, provider="nova")


def test_a_run_leases_servers_and_proves_that_they_are_gone():
    cloud = NovaCloud()
    with cloud.client().start_run(name="nightly") as run:
        lease = run.lease(request(cloud, nodes=2))
        other = cloud.client().attach(run.id)
        assert other.lease().nodes == lease.nodes
        other.close()
        cloud.clock.sleep(10)
        assert "1 free, 2 busy" in str(cloud.client().quote(request(cloud)))
        rules = {(rule.service, rule.method) for rule in cloud.access_rules.values()}
        assert ("compute", "POST") in rules
        assert {method for service, method in rules if service == "baremetal"} == {"GET"}
    assert cloud.left == []
    proof = run.prove()
    assert proof.complete, proof.missing
    machines = [item for item in proof.items if item.kind.value == "machine"]
    assert {item.resource for item in machines} == {f"ml-{run.key}-g1-0", f"ml-{run.key}-g1-1"}
    assert all("cleaned" in item.evidence for item in machines)
    (summary,) = cloud.client().runs()
    assert summary.node_seconds >= 20


def live(cloud: NovaCloud, run: Run) -> None:
    run.lease(request(cloud))
    run.release()


def count_calls() -> int:
    cloud = NovaCloud()
    live(cloud, cloud.client().start_run(name="nightly"))
    return len(cloud.faults.calls)


CALLS = count_calls()


def reap(cloud: NovaCloud) -> None:
    for _ in range(2):
        cloud.clock.sleep(cloud.settings.lease.renew_for_s + cloud.settings.lease.clock_skew_s + 1)
        cloud.reaper().reap_once()


@pytest.mark.parametrize("k", range(1, CALLS + 1))
def test_after_a_crash_at_any_call_the_reaper_returns_everything(k):
    """After each call; before it nothing has changed since the one before."""
    cloud = NovaCloud()
    cloud.faults.fail_at("*", k, error=Crash(), when="after")
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
    reap(cloud)
    assert cloud.left == []
    assert cloud.credentials == {}
    assert not [key for key in cloud.s3.objects if key.startswith("fence/")]
    again = cloud.client().start_run(name="nightly")
    proof = again.prove()
    assert proof.complete, proof.missing
    again.close()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    "call", ["create_port", "create_volume", "create_server", "list_servers", "list_ports", "delete_server", "set_line"]
)
def test_a_call_without_a_reply_costs_no_machine_and_leaves_nothing(call: str, when):
    cloud = NovaCloud()
    cloud.faults.fail_at(call, 1, error=ServiceUnavailable("no answer"), when=when)
    run = cloud.client().start_run(name="nightly")
    try:
        live(cloud, run)
    except ServiceUnavailable:
        run.release()
    assert cloud.left == []
    assert run.prove().complete
    run.close()


def test_what_a_dead_run_holds_is_returned_with_one_line_of_evidence_and_its_children():
    cloud = NovaCloud()
    with cloud.client().start_run(name="dead") as run:
        run.lease(request(cloud, nodes=2))
        run.keep()
    cloud.reaper().reap_once()
    assert len(cloud.left) == 6  # still renewed
    cloud.clock.sleep(30)
    report = cloud.reaper().reap_once()
    assert sorted((due.kind, due.resource) for due in report.due if due.kind == "server") == [
        ("server", f"ml-{run.key}-g1-{index}") for index in (0, 1)
    ]
    assert [item.outcome for item in report.evidence] == [Outcome.CLEANED] * 2
    assert cloud.left == []
    assert cloud.client().attach(run.key).prove().complete


def test_one_lost_server_is_replaced_while_the_rest_stays_and_a_spare_takes_its_place():
    cloud = NovaCloud()
    with cloud.client().start_run(name="nightly") as run:
        lease = run.lease(replace(request(cloud, nodes=2), spares=1))
        assert len(cloud.nova.servers) == 3
        lost, spare = lease.nodes[0], lease.spares[0]
        assert run.power(lost).answer is Answer.BLIND
        now = run.replace(lost.name)
        assert now.nodes == (spare, lease.nodes[1])
        assert set(cloud.nova.servers) == {node.id for node in now.nodes}
    assert cloud.left == []
    proof = run.prove()
    assert proof.complete, proof.missing


def test_a_server_whose_host_does_not_answer_is_not_fenced():
    """Nova forgets it; nobody has ended it."""
    cloud = NovaCloud()
    with cloud.client().start_run(name="nightly") as run:
        lease = run.lease(replace(request(cloud, nodes=1), spares=1))
        cloud.nova.host_up = False
        with pytest.raises(NotFenced, match="did not report"):
            run.replace(lease.nodes[0].name)
        cloud.nova.host_up = True
    assert cloud.left == []

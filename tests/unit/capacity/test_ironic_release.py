"""Giving a machine of Ironic back, while others act at the same moment: on a cloud in memory."""

from datetime import timedelta

import pytest

from mlops_sdk.capacity.lease import LeaseRequest, Marker
from mlops_sdk.run import Run
from mlops_sdk.testing.cloud import FakeBaremetal, FakeCloud

CLASS = "gpu.h200.8x"
TENANT = "ml-tenant-g1-0"


@pytest.fixture
def cloud() -> FakeCloud:
    return FakeCloud(machines=1)


@pytest.fixture
def run(cloud: FakeCloud) -> Run:
    made = cloud.client().start_run(name="nightly")
    made.lease(LeaseRequest(nodes=1, resource_class=CLASS, deadline=cloud.clock.now() + timedelta(hours=1)))
    return made


def let_next_tenant_in(cloud: FakeCloud, run: Run) -> None:
    """Somebody gives the machine back, it is cleaned, and its next tenant has it."""
    operator = FakeBaremetal(cloud)
    (machine,) = cloud.machines.values()
    told, drive = machine.shown.instance, cloud.config_drives[machine.shown.id]
    operator.tear_down(machine.shown.id)
    while machine.shown.provision_state != "available":
        cloud.clock.sleep(1)
        cloud.settle()
    later = cloud.clock.now() + timedelta(hours=1)
    marker = Marker(
        run_id=str(run.id),
        deployment_id="00000000-0000-4000-8000-00000000beef",
        generation=1,
        index=0,
        nodes=1,
        owner="tenant",
        deadline=later,
        renewed_until=later,
    )
    operator.create_allocation(name=TENANT, resource_class=CLASS, traits=(), marker=marker)
    cloud.clock.sleep(2)
    operator.set_instance(machine.shown.id, told)
    operator.deploy(machine.shown.id, drive)
    cloud.clock.sleep(5)


def test_a_machine_that_changes_hands_between_the_look_and_the_tear_down_is_left_to_its_next_tenant(cloud, run):
    def act(step: str, phase: str, _detail: dict) -> None:
        if (step, phase) == ("machine.tear_down", "before"):
            let_next_tenant_in(cloud, run)

    run.on_event(act)
    run.release()
    (machine,) = cloud.machines.values()
    assert machine.shown.provision_state == "active"
    assert cloud.held == {machine.shown.name: TENANT}
    assert cloud.faults.calls.count("tear_down") == 1

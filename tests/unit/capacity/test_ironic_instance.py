"""What a machine is deployed with: the image of its class, for whom; and deployments that arrive too late."""

from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

import pytest
from pydantic import ValidationError

from mlops_sdk.capacity.evidence import Outcome
from mlops_sdk.capacity.lease import LeaseRequest
from mlops_sdk.capacity.providers.ironic_instance import deployed_for
from mlops_sdk.config import IronicImage
from mlops_sdk.doctor import machines_seen
from mlops_sdk.errors import NodeFailed
from mlops_sdk.run import Run
from mlops_sdk.testing.cloud import FakeBaremetal, FakeCloud, FakeMachine
from mlops_sdk.testing.faults import Crash
from mlops_sdk.testing.settings import fake_settings

CLASS = "gpu.h200.8x"


def cloud_with(**images: IronicImage) -> FakeCloud:
    by_class = {CLASS if name == "own" else "*": image for name, image in images.items()}
    return FakeCloud(settings=fake_settings().model_copy(update={"ironic_images": by_class}))


def leased(cloud: FakeCloud) -> Run:
    run = cloud.client().start_run(name="nightly")
    run.lease(LeaseRequest(nodes=1, resource_class=CLASS, deadline=cloud.clock.now() + timedelta(hours=1)))
    return run


def machine_of(cloud: FakeCloud) -> FakeMachine:
    return next(iter(cloud.machines.values()))


def test_a_machine_gets_the_image_of_its_class_before_that_of_all():
    own = IronicImage(source="https://images.example/rocm.qcow2", checksum="a" * 64)
    other = IronicImage(source="9f8d-glance", kernel="k", ramdisk="r", root_gib=40)
    for cloud, expected in (
        (cloud_with(own=own, other=other), {"image_source": own.source, "image_checksum": own.checksum}),
        (cloud_with(other=other), {"image_source": "9f8d-glance", "kernel": "k", "ramdisk": "r", "root_gb": 40}),
    ):
        with leased(cloud) as run:
            told = dict(machine_of(cloud).shown.instance)
            assert told.pop("display_name") == f"ml-{run.key}-g1-0"
            assert told.pop("mlops")["run_id"] == str(run.id)
            assert told == expected
        assert machine_of(cloud).shown.instance == {}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"source": "http://images.example/node.qcow2"}, "checksum is missing"),
        ({"source": "9f8d", "kernel": "k"}, "name both or none"),
        ({"source": ""}, "source"),
    ],
)
def test_an_image_that_ironic_could_not_write_is_refused_in_the_settings(wrong, words):
    with pytest.raises(ValidationError, match=words):
        IronicImage.model_validate(wrong)


def test_without_an_image_the_lease_fails_at_once_says_why_and_holds_nothing():
    cloud = cloud_with()
    began = cloud.clock.monotonic()
    with pytest.raises(NodeFailed, match="ironic_images for class"):
        leased(cloud)
    assert cloud.clock.monotonic() - began < fake_settings().lease.deploy_timeout_s / 2
    assert cloud.held == {}


def test_what_a_machine_was_told_is_forgotten_when_it_is_given_back_without_a_deployment():
    """Else a request for a deployment that is still on its way would be obeyed."""
    cloud = FakeCloud()
    cloud.faults.fail_at("deploy", 1, error=Crash())
    with suppress(Crash):
        leased(cloud)
    cloud.faults.clear()
    machine = machine_of(cloud)
    assert deployed_for(machine.shown)
    assert machine.shown.provision_state == "available"
    cloud.clock.sleep(3600)
    (evidence,) = cloud.reaper().reap_once().evidence
    assert evidence.outcome is Outcome.NEVER_DEPLOYED
    assert machine.shown.instance == {}
    assert cloud.held == {}


def test_a_deployment_that_arrives_after_the_machine_was_given_back_is_refused():
    cloud = FakeCloud()
    machine = machine_of(cloud)
    with leased(cloud):
        drive = cloud.config_drives[machine.shown.id]
    with pytest.raises(Exception, match="Failed to validate deploy"):
        FakeBaremetal(cloud).deploy(machine.shown.id, drive)


@pytest.fixture
def stray() -> tuple[FakeCloud, FakeMachine]:
    """What was told, and the deployment, arrived after the machine was given back."""
    cloud = FakeCloud()
    machine = machine_of(cloud)
    with leased(cloud):
        told, drive = machine.shown.instance, cloud.config_drives[machine.shown.id]
    FakeBaremetal(cloud).set_instance(machine.shown.id, told)
    FakeBaremetal(cloud).deploy(machine.shown.id, drive)
    cloud.clock.sleep(3600)
    cloud.settle()
    assert machine.shown.provision_state == "active"
    assert cloud.held == {}
    return cloud, machine


def test_a_machine_that_runs_for_a_lease_that_ended_is_given_back_by_the_reaper(stray):
    cloud, machine = stray
    reaper = cloud.reaper()
    dry = reaper.reap_once(dry_run=True)
    assert [(due.kind, due.resource) for due in dry.due] == [("machine", deployed_for(machine.shown))]
    assert machine.shown.provision_state == "active"
    (evidence,) = reaper.reap_once().evidence
    assert (evidence.outcome, machine.shown.provision_state) == (Outcome.CLEANED, "available")
    assert reaper.reap_once().due == ()
    assert not [key for key in cloud.s3.objects if key.startswith("fence/")]


def test_one_that_somebody_else_runs_without_an_allocation_is_left_alone(stray):
    cloud, machine = stray
    told = machine.shown.instance
    for theirs in (
        {},
        {**told, "display_name": "web-1"},
        {**told, "mlops": {**told["mlops"], "deployment_id": "00000000-0000-4000-8000-00000000beef"}},
    ):
        machine.shown = replace(machine.shown, instance=theirs)
        assert cloud.reaper().reap_once().due == ()
        assert machine.shown.provision_state == "active"


def test_one_whose_lease_could_still_be_renewed_is_left_until_it_is_overdue(stray):
    cloud, machine = stray
    late = (cloud.clock.now() + timedelta(hours=1)).isoformat()
    told = machine.shown.instance
    marker = {**told["mlops"], "renewed_until": late, "deadline": late}
    machine.shown = replace(machine.shown, instance={**told, "mlops": marker})
    assert cloud.reaper().reap_once().due == ()


def test_doctor_names_the_classes_without_an_image():
    own = IronicImage(source="https://images.example/cuda.qcow2", checksum="a" * 64)
    assert "4 visible to this project, 4 free" in machines_seen(cloud_with(own=own).client(), "ironic")
    assert machines_seen(cloud_with().client(), "ironic").startswith("warning: 4 visible")
    assert f"no image for {CLASS}:" in machines_seen(cloud_with().client(), "ironic")

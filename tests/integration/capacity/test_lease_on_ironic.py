"""Leases against the real Ironic, Keystone and RGW of the embedded stack."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pydantic import SecretStr

from mlops_sdk.capacity.lease import LeaseRequest, Marker
from mlops_sdk.capacity.providers.ironic_api import IronicApi
from mlops_sdk.cli.main import main
from mlops_sdk.client import Client
from mlops_sdk.cloud import Cloud
from mlops_sdk.config import Settings
from mlops_sdk.errors import AccessDenied, LeaseLost, MlopsError, NoCapacity
from mlops_sdk.identity.keystone import KeystoneCredentials
from mlops_sdk.names import PREFIX, run_id_for
from mlops_sdk.testing.contracts import check_baremetal, check_credentials
from support import eventually
from support_strangers import other_tenant, stranger_in_our_project

pytestmark = [pytest.mark.stack, pytest.mark.timeout(240)]

CLASS = "gpu.h200.8x"
CONTROLLER = Path(__file__).with_name("controller.py")


@pytest.fixture
def client(stack: Any) -> Client:
    return Client(stack.settings)


@pytest.fixture
def baremetal(client: Client) -> IronicApi:
    api = client.services.baremetal
    assert isinstance(api, IronicApi)
    return api


def request(nodes: int = 1, **changes: Any) -> LeaseRequest:
    values: dict[str, Any] = {
        "nodes": nodes,
        "resource_class": CLASS,
        "deadline": datetime.now(UTC) + timedelta(minutes=10),
        "wait_s": 60.0,
    }
    return LeaseRequest(**{**values, **changes})


def test_two_machines_are_leased_renewed_attached_to_returned_and_proven(
    client: Client, baremetal: IronicApi, stack: Any
):
    run = client.start_run()
    with run:
        lease = run.lease(request(2, traits=("CUSTOM_GPU_H200",)))
        assert len({node.id for node in lease.nodes}) == 2
        assert all(node.address and node.leaf and node.image for node in lease.nodes)
        states = [baremetal.get_machine(node.id) for node in lease.nodes]
        assert [machine and machine.provision_state for machine in states] == ["active", "active"]

        # the heartbeat renews
        first = marker_of(baremetal, run.key, 0).renewed_until
        eventually(
            lambda: marker_of(baremetal, run.key, 0).renewed_until > first, within_s=15, what="the lease is renewed"
        )
        run.raise_if_lost()

        # another process finds the same machines by the key alone
        script = (
            "import sys; from mlops_sdk.client import Client; run = Client().attach(sys.argv[1]); "
            "print(' '.join(n.id + ' ' + n.host_public_key.split()[1] for n in run.lease().nodes)); run.close()"
        )
        seen = subprocess.run(
            [sys.executable, "-c", script, run.key], env=environment(stack), capture_output=True, text=True, check=True
        ).stdout.split()
        assert seen == [word for n in lease.nodes for word in (n.id, n.host_public_key.split()[1])]

    proof = run.prove()
    assert proof.complete, proof.missing
    assert sorted({item.kind.value for item in proof.items}) == ["allocation", "credential", "machine"]
    assert all("deploy.erase_scratch" in item.evidence for item in proof.items if item.kind.value == "machine")
    for node in lease.nodes:
        machine = baremetal.get_machine(node.id)
        assert machine is not None
        assert machine.provision_state == "available"
    summary = client.summary(run.key)
    assert summary.state == "released"
    assert summary.node_seconds > 0
    with pytest.raises(LeaseLost):
        run.lease(request(2))


def test_the_window_between_the_last_look_and_the_tear_down_is_far_shorter_than_a_claim(
    client: Client, monkeypatch: pytest.MonkeyPatch
):
    """What the fence leaves open: from the last look at the owner to the moment Ironic has our request."""
    looked, windows = [0.0], []
    look, tear_down = IronicApi.get_allocation, IronicApi.tear_down

    def timed_look(api: IronicApi, ident: str) -> Any:
        looked[0] = time.monotonic()  # the answer cannot be older than this
        return look(api, ident)

    def timed_tear_down(api: IronicApi, node_id: str) -> None:
        tear_down(api, node_id)
        windows.append(time.monotonic() - looked[0])

    monkeypatch.setattr(IronicApi, "get_allocation", timed_look)
    monkeypatch.setattr(IronicApi, "tear_down", timed_tear_down)
    with client.start_run() as run:
        run.lease(request())
    assert windows
    sys.stderr.write(f"window of the fence: {max(windows) * 1000:.0f} ms\n")
    assert max(windows) < client.settings.lease.renew_for_s / 4


def test_the_secret_decides(stack: Any):
    wrong = stack.settings.keystone.model_copy(update={"password": SecretStr("wrong")})
    client = Client(stack.settings.model_copy(update={"keystone": wrong}))
    with pytest.raises(AccessDenied) as caught:
        client.start_run().lease(request())
    assert "wrong" not in str(caught.value)
    assert caught.value.next_step


def test_more_machines_than_there_are_is_no_capacity_and_holds_nothing(client: Client, baremetal: IronicApi):
    there = len([m for m in baremetal.list_machines() if m.resource_class == CLASS])
    with client.start_run() as run:
        with pytest.raises(NoCapacity) as caught:
            run.lease(request(there + 1, wait_s=1.0))
        assert "no available nodes match" in caught.value.seen or "free" in caught.value.seen
        assert f"{there + 1} x {CLASS}" in caught.value.what
    assert [a.name for a in baremetal.list_allocations() if run.key in a.name] == []
    proof = run.prove()
    assert proof.complete, proof.missing


@pytest.mark.slow
def test_a_request_may_name_the_machines_and_the_project(client: Client, baremetal: IronicApi, stack: Any):
    wanted = max(m.name for m in baremetal.list_machines() if m.resource_class == CLASS)
    projects = stack.admin["projects"]
    with client.start_run() as run:
        lease = run.lease(request(machines=(wanted,), project=projects["ml-research"]))
        assert [node.name for node in lease.nodes] == [wanted]
    with client.start_run() as other:
        with pytest.raises(MlopsError) as caught:
            other.lease(request(project=projects[min(set(projects) - {"ml-research"})]))
        assert caught.value.seen
        assert [a.name for a in baremetal.list_allocations() if other.key in a.name] == []
    assert other.prove().complete


def test_the_run_credential_can_do_what_a_run_does_and_nothing_else(client: Client, stack: Any):
    with client.start_run() as run:
        run.lease(request())
        name = run.credential.name
        login = run.credential.login(client.settings.keystone)
        own = IronicApi(Cloud(login))
        node = run.held.nodes[0] if run.held else None
        assert node is not None
        assert own.get_machine(node.id) is not None
        assert own.get_allocation(f"{PREFIX}-{run.key}-g1-0") is not None
        with pytest.raises(AccessDenied):
            list(own.list_allocations())  # no rule: other runs' names are none of its business
        with pytest.raises(AccessDenied):
            own.delete_allocation("ml-aaaaaaaaaaaa-g1-0")  # another run's name
        with pytest.raises(AccessDenied):
            Cloud(login, attempts=1).request("baremetal", "PATCH", f"/v1/nodes/{node.id}", body=[])
        with pytest.raises(AccessDenied):
            KeystoneCredentials(Cloud(login)).find(name)
    with pytest.raises(AccessDenied):  # a living token of a revoked credential
        own.get_machine(node.id)
    with pytest.raises(AccessDenied):  # a new login
        IronicApi(Cloud(login)).get_machine(node.id)


def test_ironic_keeps_the_contract_of_the_fake(baremetal: IronicApi, settings: Settings):
    check_baremetal(baremetal, resource_class=CLASS, image=settings.instance_info_for(CLASS), sleep=time.sleep)


def test_keystone_keeps_the_contract_of_the_fake(client: Client):
    check_credentials(KeystoneCredentials(Cloud(client.settings.keystone)))


# The in-memory cloud is crashed at every single call; here are the boundaries that differ for the real services.
BOUNDARIES = [
    ("credential.create", "after"),
    ("allocation.create", "after"),
    ("machine.deploy", "before"),
    ("machine.deploy", "after"),
    ("machine.tear_down", "after"),
    ("credential.revoke", "before"),
]
OTHER_BOUNDARIES = [
    ("credential.create", "before"),
    ("allocation.create", "before"),
    ("machine.tear_down", "before"),
    ("machine.released", "after"),
    ("credential.revoke", "after"),
]


@pytest.mark.slow  # tests/e2e does the same to a whole job, at three boundaries in `make test`
@pytest.mark.parametrize("boundaries", [BOUNDARIES, OTHER_BOUNDARIES], ids=["main", "other"])
def test_after_kill_9_nothing_of_the_run_is_held_and_strangers_are_left_alone(
    boundaries: list[tuple[str, str]], client: Client, baremetal: IronicApi, stack: Any
):
    """The stack's own reaper does it, within renewal time + period + cleaning."""
    with stranger_in_our_project(baremetal) as (theirs, node_id), other_tenant(stack) as (other, others):
        before = baremetal.get_machine(node_id)
        batch = 3
        for first in range(0, len(boundaries), batch):
            kill_and_watch(stack, client, baremetal, boundaries[first : first + batch])
        assert baremetal.get_allocation(theirs) is not None
        after = baremetal.get_machine(node_id)
        assert before is not None
        assert after is not None
        assert (after.provision_state, after.allocation_id) == (before.provision_state, before.allocation_id)
        assert other.get_allocation(others) is not None


def kill_and_watch(stack: Any, client: Client, baremetal: IronicApi, boundaries: list[tuple[str, str]]) -> None:
    names = {f"killed-{uuid.uuid4()}": boundary for boundary in boundaries}
    processes = {
        name: subprocess.Popen(
            [sys.executable, str(CONTROLLER), name, step, phase, "1"],
            env=environment(stack, MLOPS_LEASE__RENEW_FOR_S="6"),
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, (step, phase) in names.items()
    }
    for name, process in processes.items():
        _, errors = process.communicate(timeout=90)
        assert process.returncode == -signal.SIGKILL, (names[name], errors)
    died = time.monotonic()
    keys = [client.attach(run_id_for(client.settings.deployment_id, name)).key for name in names]
    limit = 6 + 2 * client.settings.lease.reaper_period_s + client.settings.lease.clean_timeout_s / 4
    eventually(lambda: not held(client, baremetal, keys), within_s=limit, what=f"{boundaries} are given back")
    for key in keys:
        run = client.attach(key)
        eventually(lambda run=run: run.prove().complete, within_s=15, what=f"run {key} is proven")
    sys.stderr.write(f"given back and proven {time.monotonic() - died:.1f} s after the kill: {boundaries}\n")


def held(client: Client, baremetal: IronicApi, keys: list[str]) -> list[str]:
    found = [a.name for a in baremetal.list_allocations() if any(key in a.name for key in keys)]
    credentials = KeystoneCredentials(Cloud(client.settings.keystone)).list()
    return found + [c.name for c in credentials if any(key in c.name for key in keys)]


def test_the_commands_show_a_lease_and_the_proof(client: Client, stack: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLOPS_CONFIG", environment(stack)["MLOPS_CONFIG"])
    cli = CliRunner()
    with client.start_run(name=f"commands-{uuid.uuid4()}") as run:
        run.lease(request())
        shown = json.loads(cli.invoke(main, ["lease", "list", "--json"]).output)
        assert [row["machine"] for row in shown if run.key in row["held_by"]] == [
            node.name for node in (run.held.nodes if run.held else ())
        ]
        assert cli.invoke(main, ["runs", "show", run.key]).exit_code == 1  # not given back yet
        assert json.loads(cli.invoke(main, ["reap", "--dry-run", "--json"]).output)["due"] == []
    result = cli.invoke(main, ["runs", "show", run.key, "--json"])
    assert result.exit_code == 0
    assert json.loads(result.output)["proof"]["complete"] is True
    assert run.key in cli.invoke(main, ["runs", "list"]).output
    doctor = cli.invoke(main, ["doctor"])
    assert doctor.exit_code == 0, doctor.output
    assert cli.invoke(main, ["runs", "show", "nosuchrun"]).exit_code == 1


@pytest.fixture(autouse=True)
def _nothing_left(client: Client, baremetal: IronicApi) -> Iterator[None]:
    yield
    left = [a.name for a in baremetal.list_allocations()]
    assert left == []


def marker_of(baremetal: IronicApi, key: str, index: int) -> Marker:
    allocation = baremetal.get_allocation(f"{PREFIX}-{key}-g1-{index}")
    assert allocation is not None
    assert allocation.marker is not None
    return allocation.marker


def environment(stack: Any, **more: str) -> dict[str, str]:
    return {**os.environ, "MLOPS_CONFIG": str(stack.state_dir / "client.toml"), **more}

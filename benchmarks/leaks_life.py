"""What the processes of a schedule do: a run's lives, the reapers, and those who live beside them."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Protocol, cast

from benchmarks.leaks_world import Process, World
from mlops_sdk.capacity.lease import MARKER, LeaseRequest, Marker, Priority, to_iso
from mlops_sdk.capacity.providers.ironic_api import IronicApi
from mlops_sdk.capacity.reaper import Reaper
from mlops_sdk.client import Client
from mlops_sdk.cloud import Cloud
from mlops_sdk.config import KeystoneSettings, Settings
from mlops_sdk.errors import MlopsError
from mlops_sdk.identity.audit import audit_of
from mlops_sdk.identity.credential import AccessRule, CredentialBroker
from mlops_sdk.identity.credential_marker import CredentialMarker
from mlops_sdk.identity.keystone import KeystoneCredentials
from mlops_sdk.names import resource_name, run_id_for, run_key
from mlops_sdk.objects import ObjectStore
from mlops_sdk.services import Services
from mlops_sdk.testing.http_cloud.ironic import START
from mlops_sdk.testing.http_cloud.ironic_wire import FakeNode
from mlops_sdk.testing.http_cloud.keystone import PROJECT
from mlops_sdk.testing.http_cloud.light import LightCloud, LightS3
from mlops_sdk.testing.http_cloud.messages import Call
from mlops_sdk.testing.http_cloud.site import cloud_settings
from mlops_sdk.testing.settings import fake_settings

if TYPE_CHECKING:
    import threading

    from mypy_boto3_s3 import S3Client

CLASS: Final = "gpu.h200.8x"
MACHINES: Final = 4
BUCKET: Final = "mlops"
HOLD_S: Final = 35.0
PREEMPTED: Final = "preempt"  # the life beside which somebody of a higher class wants all machines
_LOOKS: Final = 60
_RESTART_S: Final = 3.0
OTHER_DEPLOYMENT: Final = uuid.UUID("00000000-0000-4000-8000-00000000beef")


def _settings() -> Settings:
    settings = cloud_settings(fake_settings())
    lease = settings.lease.model_copy(
        update={
            "renew_for_s": 120.0,
            "reaper_period_s": 50.0,
            "poll_s": 12.0,
            "clock_skew_s": 2.0,
            "deploy_timeout_s": 300.0,
            "clean_timeout_s": 600.0,
            "notice_s": 20.0,
        }
    )
    return settings.model_copy(update={"lease": lease})


SETTINGS: Final = _settings()


class Wire(Protocol):
    """How a process talks to the cloud."""

    def cloud(self, process: Process, login: KeystoneSettings) -> Cloud:
        """A login."""
        ...

    def store(self, process: Process) -> ObjectStore:
        """The deployment's bucket."""
        ...


class LightWire:
    """Without HTTP libraries in between."""

    def cloud(self, process: Process, login: KeystoneSettings) -> Cloud:
        """See `Wire.cloud`."""
        return LightCloud(login, process.send, process.world.sleep)

    def store(self, process: Process) -> ObjectStore:
        """See `Wire.store`."""
        return ObjectStore(cast("S3Client", LightS3(process.send, process.world.sleep)), BUCKET)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Clock:
    """The world's time, for the library."""

    world: World

    def monotonic(self) -> float:
        return self.world.now

    def sleep(self, seconds: float) -> None:
        self.world.sleep(seconds)

    async def asleep(self, seconds: float) -> None:
        self.world.sleep(seconds)


def services_of(process: Process, wire: Wire, *, service: str = "") -> Services:
    """What a process talks to: the library's own clients of everything."""
    cloud = wire.cloud(process, SETTINGS.keystone)
    store = wire.store(process)
    audit = audit_of(SETTINGS, store, service=service)
    services = Services(
        settings=SETTINGS,
        store=store,
        broker=CredentialBroker(KeystoneCredentials(cloud), SETTINGS.broker_key, audit),
        baremetal=IronicApi(cloud),
        connect=lambda login: IronicApi(wire.cloud(process, login)),
        clock=_Clock(world=process.world),
        keeper=process,
    )
    return process.world.equip(services, lambda login: wire.cloud(process, login))


def client_of(process: Process, wire: Wire) -> Client:
    """A client, as a program of its own has it."""
    return Client.with_services(services_of(process, wire))


def request_for(client: Client, nodes: int) -> LeaseRequest:
    """So many machines for an hour, of the provider that was added last."""
    deadline = client.services.now() + timedelta(hours=1)
    provider = client.services.providers[-1]
    return LeaseRequest(nodes=nodes, resource_class=CLASS, deadline=deadline, wait_s=60.0, provider=provider)


# Lives of a run: each a program that leases, works and gives back

Life = Callable[[Process, Client, int], None]


def lease_and_release(process: Process, client: Client, nodes: int) -> None:
    """What most programs do."""
    with client.start_run(name=process.name) as run:
        run.lease(request_for(client, nodes))
        process.world.sleep(HOLD_S)
        run.raise_if_lost()


def two_generations(process: Process, client: Client, nodes: int) -> None:
    """A first try that fails, and a second."""
    with client.start_run(name=process.name) as run:
        run.lease(request_for(client, nodes))
        process.world.sleep(5.0)
        run.next_generation()
        run.lease(request_for(client, nodes))
        process.world.sleep(5.0)
        run.raise_if_lost()


def extended(process: Process, client: Client, nodes: int) -> None:
    """A program that needs longer than it asked for."""
    with client.start_run(name=process.name) as run:
        lease = run.lease(request_for(client, nodes))
        run.extend(lease.deadline + timedelta(minutes=30))
        process.world.sleep(HOLD_S)


def replaced(process: Process, client: Client, nodes: int) -> None:
    """A machine is lost and another takes its place: of those in reserve, or a new one."""
    with client.start_run(name=process.name) as run:
        request = request_for(client, nodes)
        lease = run.lease(replace(request, spares=1 if nodes == 1 else 0))
        lease = run.replace(lease.nodes[0].name)
        process.world.sleep(10.0)
        run.raise_if_lost()


def begun_and_left(process: Process, client: Client, nodes: int) -> None:
    """A trigger that only begins, and dies before anybody goes on."""
    run = client.start_run(name=process.name)
    for pause in run.beginning_in(1, request_for(client, nodes)):
        process.world.sleep(pause)


def kept_and_attached(process: Process, client: Client, nodes: int) -> None:
    """One leaves the machines to the next, which takes them over and gives them back."""
    with client.start_run(name=process.name) as run:
        run.lease(request_for(client, nodes))
        run.keep()
    again = Client.with_services(client.services).attach(run.id)
    with again:
        again.lease()
        process.world.sleep(10.0)


class _WorkFailed(Exception):
    """What ran on the machines failed."""


def held_after_a_failure(process: Process, client: Client, nodes: int) -> None:
    """Its job fails, and the machines stay for a while for a person to look."""
    with suppress(_WorkFailed), client.start_run(name=process.name) as run:
        run.lease(replace(request_for(client, nodes), hold_on_failure_s=HOLD_S))
        process.world.sleep(5.0)
        raise _WorkFailed


def parked_and_taken_up(process: Process, client: Client, nodes: int) -> None:
    """Its machines are kept warm between two tasks; the next task gets them as they are."""
    first = client.start_run(name=process.name)
    first.lease(request_for(client, nodes))
    process.world.sleep(5.0)
    first.park(90.0)
    first.close()
    process.world.sleep(20.0)
    with client.attach(first.id) as run:
        run.lease(request_for(client, nodes))
        process.world.sleep(5.0)


def preempted(process: Process, client: Client, nodes: int) -> None:
    """A lower class that works until it has notice, saves its work, and gives way."""
    request = replace(request_for(client, nodes), priority=Priority.BATCH, preemptible=True)
    with client.start_run(name=process.name) as run:
        run.lease(request)
        for _ in range(_LOOKS):
            run.raise_if_lost()
            if run.ending() is not None:
                return
            process.world.sleep(5.0)


def urgent(process: Process, client: Client, nodes: int) -> None:
    """A higher class that wants all machines there are."""
    request = replace(request_for(client, nodes), priority=Priority.URGENT, wait_s=400.0)
    with client.start_run(name=process.name) as run:
        run.lease(request)
        process.world.sleep(5.0)


LIVES: Final = MappingProxyType(
    {
        "release": lease_and_release,
        "generations": two_generations,
        "begin": begun_and_left,
        "extend": extended,
        "replace": replaced,
        "attach": kept_and_attached,
        "hold": held_after_a_failure,
        "park": parked_and_taken_up,
        PREEMPTED: preempted,
    }
)


def live(world: World, wire: Wire, life: Life, nodes: int, *, name: str = "run", after_s: float = 0.0) -> Process:
    """Start a program; its run has the name of its process."""
    key = run_key(run_id_for(SETTINGS.deployment_id, name))
    process = Process(world=world, name=name, run_key=key, fails=name == "run")
    world.living.add(key)

    def work() -> None:
        try:
            life(process, client_of(process, wire), nodes)
        except MlopsError as error:
            process.errors.append(error)
        process.exit()

    world.start(process, work, after_s=after_s)
    return process


# Those who give back what the dead hold


class _Stop:
    """What a reaper waits for: never set, and its waiting is the world's time."""

    def __init__(self, world: World) -> None:
        self._world = world

    def is_set(self) -> bool:
        return False

    def wait(self, timeout: float | None = None) -> bool:
        self._world.sleep(timeout or 0.0)
        return False


def reap(world: World, wire: Wire, processes: list[Process], *, name: str, after_s: float) -> None:
    """A reaper, and one more whenever it crashes."""
    process = Process(world=world, name=name)

    def work() -> None:
        Reaper(services_of(process, wire, service="reaper")).run(cast("threading.Event", _Stop(world)))

    process.on_crash = lambda: reap(world, wire, processes, name=name, after_s=_RESTART_S)
    processes.append(process)
    world.start(process, work, after_s=after_s)


# Those who live beside them, and must not be touched


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """What is not ours, or not dead: names of allocations and ids of credentials, and their machines."""

    allocations: frozenset[str]
    credentials: frozenset[str]


def settle_neighbours(world: World) -> Neighbours:
    """A person, another deployment whose lease is long overdue, and a run of ours that lives."""
    cloud = world.cloud
    for number in range(MACHINES + 3):
        cloud.ironic.add_node(f"gpu-{number:02d}", resource_class=CLASS, project=PROJECT)
    living = run_id_for(SETTINGS.deployment_id, "neighbour")
    other = run_id_for(OTHER_DEPLOYMENT, "theirs")
    markers = {
        "a-person": None,
        resource_name(other, 1, 0): marker_of(other, OTHER_DEPLOYMENT, lasts_s=-3600.0),
        resource_name(living, 1, 0): marker_of(living, SETTINGS.deployment_id, lasts_s=1e6),
    }
    free = list(cloud.ironic.nodes.values())[-len(markers) :]
    for node, (name, marker) in zip(free, markers.items(), strict=True):
        hold(world, node, name, marker)
    credentials = {
        credential_of(world, other, OTHER_DEPLOYMENT, lasts_s=-3600.0),
        credential_of(world, living, SETTINGS.deployment_id, lasts_s=1e6),
    }
    return Neighbours(allocations=frozenset(markers), credentials=frozenset(credentials))


def hold(world: World, node: FakeNode, name: str, marker: Marker | None = None) -> None:
    """Let somebody have a machine, deployed."""
    extra = {MARKER: marker.to_json()} if marker else {}
    ironic = world.cloud.ironic
    body = {"name": name, "resource_class": "taken by hand", "extra": extra}
    ironic.handle(Call(service="baremetal", method="POST", path="/v1/allocations", body=body), PROJECT)
    made = ironic.allocations[name]
    made.state, made.node, node.allocation = "active", node.id, made.id
    node.provision_state, node.power_state, node.user = "active", "power on", name


def marker_of(run_id: uuid.UUID, deployment: uuid.UUID, *, lasts_s: float) -> Marker:
    """What a lease of a neighbour carries."""
    until = START + timedelta(seconds=lasts_s)
    return Marker(
        run_id=str(run_id),
        deployment_id=str(deployment),
        generation=1,
        index=0,
        nodes=1,
        owner="neighbour",
        deadline=until,
        renewed_until=until,
    )


def credential_of(world: World, run_id: uuid.UUID, deployment: uuid.UUID, *, lasts_s: float) -> str:
    """A credential like those of our runs, and the heartbeat that says how long its run lives; its id."""
    until = START + timedelta(seconds=lasts_s)
    name = resource_name(run_id, 1, "cred")
    marker = CredentialMarker(
        run_id=str(run_id), deployment_id=str(deployment), generation=1, created_at=until, deadline=until
    )
    api = KeystoneCredentials(LightCloud(SETTINGS.keystone, world.cloud.deliver, world.sleep))
    own = AccessRule(service="baremetal", method="GET", path=f"/v1/allocations/{name.removesuffix('cred')}*")
    made = api.create(
        name=name,
        secret="theirs",  # noqa: S106 - of a credential that exists in memory only
        description=str(marker),
        expires_at=until,
        roles=("member",),
        access_rules=(own,),
    )
    if deployment == SETTINGS.deployment_id:
        key = name.split("-")[1]
        body = {"generation": 1, "renewed_until": to_iso(until)}
        store = ObjectStore(cast("S3Client", LightS3(world.cloud.deliver, world.sleep)), BUCKET)
        store.put_json(f"runs/{key}/heartbeat.json", body)
    return made.id

"""Two crashes one after the other, any other failure of a call, and a race for one machine, on the real Ironic and RGW.

What simulation does with every call and every failure (`benchmarks leaks`), here with real services and their real
times: so it is a sample. What is drawn is repeated by its seed; what it hits differs a little from time to time, as
heartbeats come in between, and is told in the output.
"""

from __future__ import annotations

import random
import sys
import threading
import time
import uuid
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import requests

from mlops_sdk.capacity.providers.ironic_api import IronicApi
from mlops_sdk.capacity.reaper import Reaper
from mlops_sdk.cloud import Cloud
from mlops_sdk.config import Settings
from support import deploy_by_hand, eventually
from support_crashes import Bed, crash_in_pairs, fail_at_calls
from support_strangers import CLASS, marker_of, other_tenant, stranger_in_our_project
from support_wire import Sent, Wire, torn_down_twice

pytestmark = [pytest.mark.stack, pytest.mark.slow, pytest.mark.timeout(600)]

SEED = 4
BATCHES = 6
LIVES = 40
ROUNDS = 3
RACED = 3  # machines in each round
PAUSES_S = (0.0, 0.0, 0.0, 0.05, 0.3, 1.5)  # before a change; a claim lasts for six seconds


@pytest.fixture
def bed(stack: Any) -> Bed:
    return Bed.of(stack.settings, stack.reaper_settings, resource_class=CLASS, provider="ironic")


@pytest.fixture
def baremetal(bed: Bed) -> IronicApi:
    return IronicApi(Cloud(bed.settings.keystone))


@contextmanager
def strangers_keep_what_they_have(baremetal: IronicApi, stack: Any) -> Generator[None]:
    """Within the block, others hold machines beside us, and the stack's own reaper rests. All of ours are back then."""
    with (
        stack.held("reaper"),
        stranger_in_our_project(baremetal) as (theirs, node_id),
        other_tenant(stack) as (other, others),
    ):
        before = baremetal.get_machine(node_id), baremetal.get_allocation(theirs), other.get_allocation(others)
        yield
        after = baremetal.get_machine(node_id), baremetal.get_allocation(theirs), other.get_allocation(others)
    assert after == before
    machines = {machine.provision_state for machine in baremetal.list_machines() if machine.resource_class == CLASS}
    assert machines == {"available"}


def test_after_two_crashes_nothing_is_held_and_strangers_are_left_alone(bed: Bed, baremetal: IronicApi, stack: Any):
    """A run dies, then whoever goes on: the run again, or the reaper."""
    with strangers_keep_what_they_have(baremetal, stack):
        told = crash_in_pairs(bed, seed=SEED, batches=BATCHES)
    assert torn_down_twice(bed.log) == []
    twice = [line for line in told if not line.endswith("run ") and not line.endswith("reaper ")]
    assert len(twice) > len(told) / 2  # of some pairs nobody came to the second moment


def test_a_call_that_fails_in_any_way_leaves_nothing_and_strangers_are_left_alone(
    bed: Bed, baremetal: IronicApi, stack: Any
):
    """Lost and late replies, requests that come twice or late, and errors of every kind, at calls of all services."""
    with strangers_keep_what_they_have(baremetal, stack):
        told = fail_at_calls(bed, seed=SEED, lives=LIVES)
    assert len([line for line in told if not line.startswith("never")]) > LIVES / 2


class Tenant:
    """Somebody who waits for a machine, and works on it from the moment that it is free."""

    def __init__(self, api: IronicApi, operator: Any, node_id: str, settings: Settings) -> None:
        self._api, self._operator, self._node_id, self._settings = api, operator, node_id, settings
        self._name = f"tenant-{uuid.uuid4().hex[:12]}"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._wait, name=self._name, daemon=True)

    def begin(self) -> None:
        self._thread.start()

    def look(self) -> object:
        """All that must not change."""
        machine, allocation = self._api.get_machine(self._node_id), self._api.get_allocation(self._name)
        assert machine is not None
        return machine.provision_state, machine.power_state, machine.allocation_id, allocation

    @property
    def works(self) -> bool:
        machine = self._api.get_machine(self._node_id)
        return not self._thread.is_alive() and machine is not None and machine.provision_state == "active"

    def leave(self) -> None:
        self._stop.set()
        self._thread.join(60)
        if self._operator.baremetal.get_node(self._node_id).provision_state == "available":
            self._api.delete_allocation(self._name)
        else:
            self._operator.baremetal.set_node_provision_state(self._node_id, "deleted")

    def _wait(self) -> None:
        marker = marker_of("tenant", lasts_s=3600.0)
        while not self._stop.is_set():
            machine = self._api.get_machine(self._node_id)
            if machine is not None and machine.provision_state == "available" and not machine.allocation_id:
                self._api.create_allocation(
                    name=self._name, resource_class=CLASS, traits=(), marker=marker, candidates=[self._node_id]
                )
                eventually(self._is_ours, within_s=30, what="the next tenant has the machine")
                drive = {"meta_data": {"uuid": self._name}}
                deploy_by_hand(self._operator, self._node_id, drive, settings=self._settings)
                return
            time.sleep(0.02)

    def _is_ours(self) -> bool:
        found = self._api.get_allocation(self._name)
        return found is not None and found.state == "active"


@contextmanager
def waiting_tenants(api: IronicApi, operator: Any, nodes: list[str], settings: Settings) -> Generator[list[Tenant]]:
    tenants = [Tenant(api, operator, node_id, settings) for node_id in nodes]
    try:
        yield tenants
    finally:
        for tenant in tenants:
            tenant.leave()
        eventually(
            lambda: {api.get_machine(node_id).provision_state for node_id in nodes} == {"available"},  # type: ignore[union-attr]
            within_s=60,
            what="the tenants have given back",
        )


def hesitating(seed: str) -> Callable[[str], None]:
    """A process that stands still now and then before it changes something."""
    source = random.Random(seed)  # noqa: S311 - what is drawn is repeated

    def pause(_what: str) -> None:
        time.sleep(source.choice(PAUSES_S))

    return pause


def test_of_two_reapers_and_a_releasing_run_one_returns_a_machine_and_its_next_tenant_is_left_alone(
    bed: Bed, baremetal: IronicApi, operator: Any, stack: Any
):
    """Each machine has somebody waiting for it, who takes it as soon as it is free, while they are still at it."""
    with stack.held("reaper"):
        for number in range(ROUNDS):
            race(bed, baremetal, operator, f"{SEED} {number}")


def race(bed: Bed, baremetal: IronicApi, operator: Any, seed: str) -> None:
    log: list[Sent] = []
    quick = Wire()
    run = bed.start(f"raced-{uuid.uuid4()}", quick)
    lease = run.lease(bed.request(RACED))
    run.rest(resting=True)  # it lives, and renews no more
    nodes = [node.id for node in lease.nodes]

    wires = [Wire(log=log, pause=hesitating(f"{seed} {who}")) for who in range(3)]
    first, second = (Reaper(wire.services(bed.reaper, service="reaper")) for wire in wires[:2])
    releasing = bed.start(run.name, wires[2])
    eventually(lambda: len(first.reap_once(dry_run=True).due) >= RACED, within_s=30, what="it is overdue")
    with waiting_tenants(baremetal, operator, nodes, bed.settings) as tenants, ThreadPoolExecutor(3) as pool:
        for tenant in tenants:
            tenant.begin()
        ends = [pool.submit(work) for work in (first.reap_once, second.reap_once, releasing.release)]
        reports = [end.result(timeout=120) for end in ends]
        eventually(lambda: all(tenant.works for tenant in tenants), within_s=60, what="the next tenants work")
        run.close()
        assert (reports[0].errors, reports[1].errors) == ((), ())
        before = [tenant.look() for tenant in tenants]
        for reaper in (first, second):  # also what is swept up later
            assert reaper.reap_once().errors == ()
        releasing.release()
        assert [tenant.look() for tenant in tenants] == before
    sent = [each for each in log if each.what.endswith(" deleted") and each.path.startswith("/v1/nodes/")]
    accepted = sorted(each.path.split("/")[3] for each in sent if each.status == requests.codes.accepted)
    sys.stderr.write(f"{len(sent)} tear-downs were sent for {RACED} machines, {len(accepted)} accepted\n")
    assert accepted == sorted(nodes)
    assert bed.left([run.name]) == []
    assert bed.proven(run.name)

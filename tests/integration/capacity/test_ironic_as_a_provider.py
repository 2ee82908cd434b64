"""The contract of providers, on the real Ironic."""

from collections.abc import Callable
from typing import Any

import pytest

from mlops_sdk.capacity.boundary import Boundary, no_boundary
from mlops_sdk.capacity.provider import Grant, Provider
from mlops_sdk.client import Client
from mlops_sdk.clock import SystemClock
from mlops_sdk.names import run_id_for
from mlops_sdk.testing.provider_contract import CHECKS, Bench
from support import eventually

pytestmark = [pytest.mark.stack, pytest.mark.slow, pytest.mark.timeout(900)]

CLASS = "gpu.h200.8x"


@pytest.fixture
def bench(stack: Any) -> Bench:
    """Of a deployment of its own, which the stack's reaper leaves alone: here nobody renews."""
    deployment = run_id_for(stack.settings.deployment_id, "contract")
    client = Client(stack.settings.model_copy(update={"deployment_id": deployment}))
    api = client.services.baremetal

    def open_provider(boundary: Boundary = no_boundary) -> Provider:
        return client.services.provider("ironic", boundary=boundary)

    def plant(grant: Grant) -> Callable[[], bool]:
        name = grant.name(0)
        marker = bench.grant().marker(0, now=api.now(), renew_for_s=60)  # another run's
        made = api.create_allocation(name=name, resource_class=CLASS, traits=(), marker=marker)

        def state() -> str:
            found = api.get_allocation(name)
            return found.state if found else ""

        eventually(lambda: state() == "active", within_s=20, what="the stranger has a machine")

        def take_away() -> bool:
            found = api.get_allocation(name)
            api.delete_allocation(name)
            return found is not None and (found.id, found.marker) == (made.id, marker)

        return take_away

    bench = Bench(
        open=open_provider, clock=SystemClock(), deployment_id=deployment, resource_class=CLASS, plant=plant, nodes=1
    )
    return bench


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_leases_on_the_real_ironic_keep_the_contract(check: Callable[[Bench], None], bench: Bench):
    check(bench)

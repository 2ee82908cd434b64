"""A machine of Ironic that a run holds, and who gives it back, step by step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any, Literal

from mlops_sdk.capacity.evidence import NodeEvidence
from mlops_sdk.capacity.fence import Claim, Fence
from mlops_sdk.capacity.lease import EndReason, LeaseRequest, Marker
from mlops_sdk.capacity.owned import Held
from mlops_sdk.capacity.provider import Returning
from mlops_sdk.capacity.providers.ironic_view import Allocation
from mlops_sdk.errors import ServiceUnavailable
from mlops_sdk.testing.cloud import FakeCloud, FakeMachine
from mlops_sdk.testing.memory_s3 import memory_store

DOWN = ServiceUnavailable("no answer")


class Given:
    """A run holds one machine; somebody gives it back."""

    def __init__(self, *, deployed: bool = True) -> None:
        self.cloud = FakeCloud()
        self.services = self.cloud.services()
        deadline = self.cloud.clock.now() + timedelta(hours=1)
        with self.cloud.client().start_run(name="one") as run:
            run.lease(LeaseRequest(nodes=1, resource_class="gpu.h200.8x", deadline=deadline))
            run.keep()
        self.key = run.key
        self.leased_at = self.cloud.clock.now()
        self.mine = True
        if not deployed:
            self.show(provision_state="available", power_state="power off")

    @property
    def allocation(self) -> Allocation:
        (found,) = self.cloud.allocations.values()
        return found

    @property
    def machine(self) -> FakeMachine:
        return self.cloud.machines[next(iter(self.cloud.machines))]

    @property
    def state(self) -> str:
        self.cloud.settle()
        return self.machine.shown.provision_state

    def show(self, **changes: Any) -> None:
        self.machine.shown = replace(self.machine.shown, **changes)
        self.machine.next = None

    def renewed(self, seconds: float) -> None:
        until = (self.cloud.clock.now() + timedelta(seconds=seconds)).isoformat()
        extra = {"mlops": {**self.allocation.extra["mlops"], "renewed_until": until}}
        self.cloud.allocations[self.allocation.name] = replace(self.allocation, extra=extra)

    def held(self, **changes: Any) -> Held:
        shown = self.allocation
        values = {"name": shown.name, "allocation_id": shown.id, "node_id": shown.node_id, "deployed": True}
        return Held(**{**values, **changes})

    def by(
        self,
        who: Literal["run", "reaper", "person"] = "run",
        held: Held | None = None,
        *,
        fence: Fence | None = None,
        entitled: Callable[[str, Marker | None], bool] | None = None,
    ) -> Returning:
        provider = self.services.provider("ironic", by=who, fence=fence or self.fence())
        allowed = entitled or (lambda _name, _marker: self.mine)
        return provider.returning(held or self.held(), reason=EndReason.FINISHED, entitled=allowed, run_key=self.key)

    def fence(self) -> Fence:
        return Fence(memory_store(self.cloud.s3), now=self.cloud.clock.now, ttl_s=20.0)

    @property
    def claims(self) -> list[str]:
        return [key for key in self.cloud.s3.objects if key.startswith("fence/")]

    def finish(self, release: Returning, *, at_most: int = 300) -> NodeEvidence:
        for _ in range(at_most):
            evidence = release.step()
            if evidence is not None:
                return evidence
            self.cloud.clock.sleep(1)
        raise AssertionError(f"no end: {self.machine.shown}")


class Losing(Fence):
    """Somebody else has the claim from the second time on that it is asked for."""

    asked = 0

    def claim(self, resource_id: str, **details: Any) -> Claim | None:
        self.asked += 1
        return super().claim(resource_id, **details) if self.asked == 1 else None


def losing(given: Given) -> Fence:
    return Losing(memory_store(given.cloud.s3), now=given.cloud.clock.now, ttl_s=20.0)


def asked(given: Given, call: str) -> int:
    return given.cloud.faults.calls.count(call)

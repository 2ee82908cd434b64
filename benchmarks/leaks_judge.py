"""Says what is left of the dead, and who touched what was not theirs. Looks into the fake cloud itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from mlops_sdk.capacity.lease import Marker, from_iso, overdue
from mlops_sdk.names import parse_resource_name

if TYPE_CHECKING:
    from benchmarks.leaks_life import Neighbours
    from benchmarks.leaks_world import Process, World
    from mlops_sdk.config import Settings
    from mlops_sdk.testing.http_cloud.ironic_wire import FakeAllocation
    from mlops_sdk.testing.http_cloud.messages import Answer, Call

_OK: Final = 300
_OUT: Final = {"clean failed", "error", "manageable"}
_USED: Final = {"active", "deploying", "wait call-back", "deploy failed", "rescue"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Beat:
    """A heartbeat: of which generation, and for how many seconds more it is good."""

    generation: int
    alive_s: float


class Judge:
    """Watches every call that arrives.

    Args:
        world: Where.
        settings: The deployment.
        neighbours: Who must not be touched.
        bucket: Where claims are.

    Attributes:
        wrong: What was taken from somebody who may have it, in words.
        beyond: The same, by a request that arrived longer after its sender's last look than cleaning takes;
            nothing in Ironic's API ties a tear-down to whose machine it is: this window remains.
        window: How often a lease or a credential was taken that was overdue when its taker looked last, and was renewed
            before it acted.
    """

    def __init__(self, world: World, settings: Settings, neighbours: Neighbours, bucket: str) -> None:
        self.wrong: list[str] = []
        self.beyond: list[str] = []
        self.window = 0
        self._cleaning_s = world.cloud.ironic.pace.tear_down_s + world.cloud.ironic.pace.clean_s
        self._world = world
        self._settings = settings
        self._deployment = str(settings.deployment_id)
        self._neighbours = neighbours
        self._bucket = bucket
        self._fresh_s = settings.lease.renew_for_s / 4  # one that was written since the look is good for longer
        self._looked_at: dict[str, float] = {}
        self._seen_overdue: set[tuple[str, str]] = set()
        self._clock_of: dict[str, float] = {}  # everybody learns the time from Ironic's replies
        world.watch = self._watch

    def left(self) -> list[str]:
        """What is still there of runs that are dead, in words."""
        cloud = self._world.cloud
        cloud.ironic.settle()
        tenants = {found.id for found in cloud.ironic.allocations.values() if not self._is_dead(found)}
        found = [f"allocation {a.name} ({a.state})" for a in cloud.ironic.allocations.values() if self._is_dead(a)]
        for node in cloud.ironic.nodes.values():
            if node.allocation in tenants:
                continue
            broken = bool(node.fails) and (node.maintenance or node.provision_state in _OUT)
            if node.provision_state in _USED or (not broken and node.provision_state != "available"):
                found.append(f"machine {node.name} is {node.provision_state}, for {node.user or 'nobody'}")
            elif node.maintenance and not broken:
                found.append(f"machine {node.name} is in maintenance: {node.maintenance_reason}")
        credentials = cloud.keystone.credentials
        found.extend(f"credential {c.name}" for c in credentials.values() if c.id not in self._neighbours.credentials)
        used = {rule for credential in credentials.values() for rule in credential.rules}
        found.extend(
            f"access rule {rule[1]} {rule[2]}"
            for ident, rule in cloud.keystone.rules.items()
            if "/ml-" in rule[2] and ident not in used
        )
        out = {node.id for node in cloud.ironic.nodes.values() if node.fails}
        found.extend(f"claim {key}" for key in cloud.s3.keys(self._bucket, "fence/") if not self._is_of(key, out))
        return found

    def touched(self) -> list[str]:
        """What the neighbours have lost."""
        cloud = self._world.cloud
        lost = [f"allocation {name}" for name in self._neighbours.allocations if name not in cloud.ironic.allocations]
        lost.extend(
            f"machine of {name} is {node.provision_state}"
            for name in self._neighbours.allocations
            if (node := cloud.ironic.node_of(name)) is not None and node.provision_state != "active"
        )
        lost.extend(f"credential {i}" for i in self._neighbours.credentials if i not in cloud.keystone.credentials)
        return lost

    def _is_of(self, key: str, nodes: set[str]) -> bool:
        body = self._world.cloud.s3.objects.get(f"{self._bucket}/{key}", b"").decode()
        return any(node in body for node in nodes)

    def _is_dead(self, found: FakeAllocation) -> bool:
        return found.name not in self._neighbours.allocations and not found.name.startswith("tenant-")

    def _watch(self, process: Process, call: Call, age_s: float, carry: Callable[[], Answer]) -> Answer:
        if call.service == "s3" and call.method == "GET" and call.path.endswith("/heartbeat.json"):
            jumped_s = self._world.cloud.ironic.offset_s - self._clock_of.get(process.name, 0.0)
            self._note(process, call.path, overdue=self._beat(call.path).alive_s + jumped_s < 0)
        if call.service == "identity" and call.method == "DELETE":
            return self._revoke(process, call, carry)
        if call.service != "baremetal":
            return carry()
        self._clock_of[process.name] = self._world.cloud.ironic.offset_s
        if call.method == "GET":
            self._looked_at[process.name] = self._world.now
            self._look(process, call)
            return carry()
        age_s = max(age_s, self._world.now - self._looked_at.get(process.name, 0.0))
        victim = self._victim(call)
        before = self._may_take(process, victim) if victim is not None else ""
        answer = carry()
        if before and answer.status < _OK:
            words = f"{self._world.now:.2f} s: {process.name} took {before} by {call}"
            (self.wrong if age_s <= self._cleaning_s else self.beyond).append(words)
        return answer

    def _revoke(self, process: Process, call: Call, carry: Callable[[], Answer]) -> Answer:
        """A reaper takes no credential whose run has said not long ago that it lives."""
        found = self._world.cloud.keystone.credentials.get(call.path.rpartition("/")[2])
        answer = carry()
        name = parse_resource_name(found.name) if found is not None else None
        if name is None or name.run_key not in self._world.living or process.run_key or answer.status >= _OK:
            return answer
        path = f"/{self._bucket}/runs/{name.run_key}/heartbeat.json"
        beat = self._beat(path)
        if beat.generation != name.generation or beat.alive_s <= self._fresh_s:
            return answer
        if (process.name, path) in self._seen_overdue:
            self.window += 1
        else:
            self.wrong.append(f"{self._world.now:.2f} s: {process.name} revoked {name}, whose run lives")
        return answer

    def _beat(self, path: str) -> _Beat:
        """The heartbeat at this path, as S3 has it now."""
        body = self._world.cloud.s3.objects.get(path.removeprefix("/"))
        if body is None:
            return _Beat(generation=0, alive_s=-1.0)
        beat: dict[str, Any] = json.loads(body)
        alive_s = (from_iso(beat["renewed_until"]) - self._world.cloud.ironic.now()).total_seconds()
        return _Beat(generation=beat["generation"], alive_s=alive_s)

    def _look(self, process: Process, call: Call) -> None:
        name = call.path.removeprefix("/v1/allocations/")
        found = self._world.cloud.ironic.allocations.get(name)
        if found is not None:
            self._note(process, found.id, overdue=self._is_overdue(found))

    def _note(self, process: Process, what: str, *, overdue: bool) -> None:
        """What somebody saw last of something that may be overdue."""
        seen = (process.name, what)
        (self._seen_overdue.add if overdue else self._seen_overdue.discard)(seen)

    def _victim(self, call: Call) -> FakeAllocation | None:
        """Whose machine a call takes away."""
        ironic = self._world.cloud.ironic
        if call.method == "DELETE" and call.path.startswith("/v1/allocations/"):
            return ironic.allocations.get(call.path.removeprefix("/v1/allocations/"))
        if call.path.endswith("/states/provision") and call.body["target"] in {"deleted", "active"}:
            node = ironic.nodes.get(call.path.split("/")[3])
            found = (a for a in ironic.allocations.values() if node is not None and a.id == node.allocation)
            return next(found, None)
        return None

    def _may_take(self, process: Process, victim: FakeAllocation) -> str:
        """Empty when it may, else what it takes."""
        name = parse_resource_name(victim.name)
        marker = Marker.parse(victim.extra)
        if name is None or marker is None or marker.deployment_id != self._deployment:
            return f"{victim.name}, which is somebody else's"
        if process.run_key:
            return "" if name.run_key == process.run_key else f"{victim.name}, another run's"
        if self._is_overdue(victim):
            return ""
        if (process.name, victim.id) in self._seen_overdue:
            self.window += 1
            return ""
        return f"{victim.name}, which is renewed"

    def _is_overdue(self, found: FakeAllocation) -> bool:
        marker = Marker.parse(found.extra)
        if marker is None:
            return False
        now, skew = self._world.cloud.ironic.now(), self._settings.lease.clock_skew_s
        return (
            overdue(deadline=marker.deadline, renewed_until=marker.renewed_until, now=now, skew_s=skew - 1) is not None
        )

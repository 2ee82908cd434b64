"""The peer: machines leased by hand. Create, work, and give back in a `finally`; no marker, no reaper."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from benchmarks.leaks_life import CLASS, SETTINGS, LightWire, settle_neighbours
from benchmarks.leaks_run import CURRENT
from benchmarks.leaks_world import Process, World
from mlops_sdk.errors import MlopsError

if TYPE_CHECKING:
    from benchmarks.leaks_life import Wire
    from benchmarks.leaks_schedules import Schedule

_AFTER_S: Final = 600.0
_HEADERS: Final = {"X-OpenStack-Ironic-API-Version": "1.60"}
_POLLS: Final = 20
_CALLS: Final = 12  # about as many as it sends
_WORK_S: Final = 35.0


def leaks_by_hand(schedule: Schedule) -> bool:
    """Whether something is still held ten minutes after the naive program of this schedule ended."""
    plan = {1 + (k - 1) % _CALLS: fault for k, fault in schedule.plan.items()}
    world = CURRENT.world = World(schedule.seed, plan)
    settle_neighbours(world)
    before = set(world.cloud.ironic.allocations)
    process = Process(world=world, name="by hand")

    def work() -> None:
        try:
            _work(process, LightWire(), schedule.nodes)
        except MlopsError as error:
            process.errors.append(error)
        process.exit()

    world.start(process, work)
    world.run(_AFTER_S, lambda: False)
    world.now = max(world.now, _AFTER_S)
    world.cloud.ironic.settle()
    held = set(world.cloud.ironic.allocations) - before
    strays = [n for n in world.cloud.ironic.nodes.values() if n.provision_state != "available" and not n.allocation]
    world.end([process])
    return bool(held or strays)


class _ByHand:
    """Ironic, as a script has it."""

    def __init__(self, process: Process, wire: Wire) -> None:
        self._cloud = wire.cloud(process, SETTINGS.keystone)
        self._world = process.world

    def ask(self, method: str, path: str, body: object = None) -> dict[str, str]:
        return self._cloud.request("baremetal", method, path, body=body, headers=_HEADERS, accept={404, 409, 400}).body

    def wait(self, path: str, key: str, state: str) -> dict[str, str]:
        for _ in range(_POLLS):
            shown = self.ask("GET", path)
            if shown.get(key) == state:
                return shown
            self._world.sleep(12.0)
        return {}


def _work(process: Process, wire: Wire, nodes: int) -> None:
    ironic = _ByHand(process, wire)
    made: list[str] = []
    machines: list[str] = []
    try:
        for number in range(nodes):
            body = {"name": f"job-{number}", "resource_class": CLASS}
            made.append(ironic.ask("POST", "/v1/allocations", body)["uuid"])
        for ident in made:
            machines.append(ironic.wait(f"/v1/allocations/{ident}", "state", "active")["node_uuid"])
            image = [{"op": "replace", "path": "/instance_info", "value": {"image_source": "node.qcow2"}}]
            ironic.ask("PATCH", f"/v1/nodes/{machines[-1]}", image)
            ironic.ask("PUT", f"/v1/nodes/{machines[-1]}/states/provision", {"target": "active"})
        for machine in machines:
            ironic.wait(f"/v1/nodes/{machine}", "provision_state", "active")
        process.world.sleep(_WORK_S)
    except KeyError as error:
        raise MlopsError("the job could not start", seen=str(error)) from error
    finally:
        for machine in machines:
            ironic.ask("PUT", f"/v1/nodes/{machine}/states/provision", {"target": "deleted"})
        for ident in made[len(machines) :]:
            ironic.ask("DELETE", f"/v1/allocations/{ident}")

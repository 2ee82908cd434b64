"""The peer: machines leased by hand. Create, work, and give back in a `finally`; no marker, no reaper."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from benchmarks.leaks_life import CLASS, SETTINGS, LightWire, settle_neighbours
from benchmarks.leaks_run import CURRENT
from benchmarks.leaks_world import Process, World
from mlops_sdk.errors import MlopsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.leaks_schedules import Schedule

_AFTER_S: Final = 600.0
_HEADERS: Final = {"X-OpenStack-Ironic-API-Version": "1.60"}
POLLS: Final = 20
WORK_S: Final = 35.0
_CALLS: Final = 12  # about as many as it sends


def leaks_by_hand(schedule: Schedule) -> bool:
    """Whether something is still held ten minutes after the naive program of this schedule ended."""

    def settle(world: World) -> Callable[[], bool]:
        settle_neighbours(world)
        ironic = world.cloud.ironic
        before = set(ironic.allocations)

        def left() -> bool:
            ironic.settle()
            strays = [n for n in ironic.nodes.values() if n.provision_state != "available" and not n.allocation]
            return bool(set(ironic.allocations) - before or strays)

        return left

    return left_by_hand(schedule, settle, _work)


def left_by_hand(
    schedule: Schedule, settle: Callable[[World], Callable[[], bool]], work: Callable[[Process, int], None]
) -> bool:
    """Play a naive program through the failures of a schedule, and look ten minutes later.

    Args:
        schedule: Which failures; they are moved to the few calls that such a program sends.
        settle: Puts everything in its place; what it returns says whether something is left.
        work: The program.
    """
    plan = {1 + (k - 1) % _CALLS: fault for k, fault in schedule.plan.items()}
    world = CURRENT.world = World(schedule.seed, plan)
    left = settle(world)
    process = Process(world=world, name="by hand")

    def play() -> None:
        try:
            work(process, schedule.nodes)
        except MlopsError as error:
            process.errors.append(error)
        process.exit()

    world.start(process, play)
    world.run(_AFTER_S, lambda: False)
    world.now = max(world.now, _AFTER_S)
    found = left()
    world.end([process])
    return found


class _ByHand:
    """Ironic, as a script has it."""

    def __init__(self, process: Process) -> None:
        self._cloud = LightWire().cloud(process, SETTINGS.keystone)
        self._world = process.world

    def ask(self, method: str, path: str, body: object = None) -> dict[str, str]:
        return self._cloud.request("baremetal", method, path, body=body, headers=_HEADERS, accept={404, 409, 400}).body

    def wait(self, path: str, key: str, state: str) -> dict[str, str]:
        for _ in range(POLLS):
            shown = self.ask("GET", path)
            if shown.get(key) == state:
                return shown
            self._world.sleep(12.0)
        return {}


def _work(process: Process, nodes: int) -> None:
    ironic = _ByHand(process)
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
        process.world.sleep(WORK_S)
    except KeyError as error:
        raise MlopsError("the job could not start", seen=str(error)) from error
    finally:
        for machine in machines:
            ironic.ask("PUT", f"/v1/nodes/{machine}/states/provision", {"target": "deleted"})
        for ident in made[len(machines) :]:
            ironic.ask("DELETE", f"/v1/allocations/{ident}")

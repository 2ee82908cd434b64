"""The peer on Nova: servers made by hand. Create, work, and delete in a `finally`; no marker, no reaper."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from benchmarks.leaks_life import SETTINGS, LightWire
from benchmarks.leaks_nova import FLAVOR, IMAGE, Servers
from benchmarks.leaks_run import CURRENT
from benchmarks.leaks_world import Process, World
from mlops_sdk.errors import MlopsError

if TYPE_CHECKING:
    from benchmarks.leaks_schedules import Schedule

_AFTER_S: Final = 600.0
_HEADERS: Final = {"OpenStack-API-Version": "compute 2.79"}
_POLLS: Final = 20
_CALLS: Final = 12  # about as many as it sends
_WORK_S: Final = 35.0
_NAME: Final = "job"


def servers_leak_by_hand(schedule: Schedule) -> bool:
    """Whether something is still there ten minutes after the naive program of this schedule ended."""
    plan = {1 + (k - 1) % _CALLS: fault for k, fault in schedule.plan.items()}
    world = CURRENT.world = World(schedule.seed, plan)
    judge = Servers().set(world, schedule)
    process = Process(world=world, name="by hand")

    def work() -> None:
        try:
            _work(process, schedule.nodes)
        except MlopsError as error:
            process.errors.append(error)
        process.exit()

    world.start(process, work)
    world.run(_AFTER_S, lambda: False)
    world.now = max(world.now, _AFTER_S)
    left = any(f" {_NAME}-" in words for words in judge.left())
    world.end([process])
    return left


class _ByHand:
    """OpenStack, as a script has it."""

    def __init__(self, process: Process) -> None:
        self._cloud = LightWire().cloud(process, SETTINGS.keystone)
        self._world = process.world

    def ask(self, service: str, method: str, path: str, body: object = None) -> dict[str, Any]:
        return self._cloud.request(service, method, path, body=body, headers=_HEADERS, accept={400, 403, 404, 409}).body

    def wait(self, path: str) -> None:
        for _ in range(_POLLS):
            if self.ask("compute", "GET", path).get("server", {}).get("status") == "ACTIVE":
                return
            self._world.sleep(12.0)


def _work(process: Process, nodes: int) -> None:
    cloud = _ByHand(process)
    ports: list[str] = []
    servers: list[str] = []
    try:
        network = cloud.ask("network", "GET", "/v2.0/networks")["networks"][0]["id"]
        for number in range(nodes):
            wanted: dict[str, Any] = {"name": f"{_NAME}-{number}", "network_id": network}
            ports.append(cloud.ask("network", "POST", "/v2.0/ports", {"port": wanted})["port"]["id"])
            server = {
                "name": f"{_NAME}-{number}",
                "flavorRef": FLAVOR.id,
                "imageRef": IMAGE,
                "networks": [{"port": ports[-1]}],
            }
            servers.append(cloud.ask("compute", "POST", "/v2.1/servers", {"server": server})["server"]["id"])
        for ident in servers:
            cloud.wait(f"/v2.1/servers/{ident}")
        process.world.sleep(_WORK_S)
    except KeyError as error:
        raise MlopsError("the job could not start", seen=str(error)) from error
    finally:
        for ident in servers:
            cloud.ask("compute", "DELETE", f"/v2.1/servers/{ident}")
        process.world.sleep(_WORK_S)
        for ident in ports:
            cloud.ask("network", "DELETE", f"/v2.0/ports/{ident}")

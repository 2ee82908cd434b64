"""The peer on Nova: servers made by hand. Create, work, and delete in a `finally`; no marker, no reaper."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from benchmarks.leaks_life import SETTINGS, LightWire
from benchmarks.leaks_nova import FLAVOR, IMAGE, Servers
from benchmarks.leaks_peer import POLLS, WORK_S, left_by_hand
from mlops_sdk.errors import MlopsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.leaks_schedules import Schedule
    from benchmarks.leaks_world import Process, World

_HEADERS: Final = {"OpenStack-API-Version": "compute 2.79"}
_NAME: Final = "job"


def servers_leak_by_hand(schedule: Schedule) -> bool:
    """Whether something is still there ten minutes after the naive program of this schedule ended."""

    def settle(world: World) -> Callable[[], bool]:
        judge = Servers().set(world, schedule)
        return lambda: any(f" {_NAME}-" in words for words in judge.left())

    return left_by_hand(schedule, settle, _work)


class _ByHand:
    """OpenStack, as a script has it."""

    def __init__(self, process: Process) -> None:
        self._cloud = LightWire().cloud(process, SETTINGS.keystone)
        self._world = process.world

    def ask(self, service: str, method: str, path: str, body: object = None) -> dict[str, Any]:
        return self._cloud.request(service, method, path, body=body, headers=_HEADERS, accept={400, 403, 404, 409}).body

    def wait(self, path: str) -> None:
        for _ in range(POLLS):
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
        process.world.sleep(WORK_S)
    except KeyError as error:
        raise MlopsError("the job could not start", seen=str(error)) from error
    finally:
        for ident in servers:
            cloud.ask("compute", "DELETE", f"/v2.1/servers/{ident}")
        process.world.sleep(WORK_S)
        for ident in ports:
            cloud.ask("network", "DELETE", f"/v2.0/ports/{ident}")

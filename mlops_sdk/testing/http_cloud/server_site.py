"""What servers need, side by side: Nova, Neutron, Cinder, Glance, and a Placement that shows nobody anything."""

from __future__ import annotations

from typing import Final

from mlops_sdk.capacity.providers.nova_door import Door
from mlops_sdk.remote.ssh import Host
from mlops_sdk.testing.http_cloud.cinder import FakeCinder
from mlops_sdk.testing.http_cloud.listing import page
from mlops_sdk.testing.http_cloud.messages import Answer, Call, ServiceName
from mlops_sdk.testing.http_cloud.neutron import FakeNeutron
from mlops_sdk.testing.http_cloud.nova import FakeNova, ServerPace
from mlops_sdk.testing.http_cloud.site import Handle, HttpCloud

_HOSTS: Final[dict[ServiceName, str]] = {
    "compute": "nova",
    "network": "neutron",
    "block-storage": "cinder",
    "image": "glance",
    "placement": "placement",
}
_DENIED: Final = "Access to /allocation_candidates was denied."


class ServerSite:
    """These services of one cloud; logins to it see them from now on.

    Args:
        cloud: Which.
        pace: How long things take in Nova.
        room: How many servers its hosts have room for.
        quota: How many a project may have.

    Example:
        >>> cloud = HttpCloud(time.monotonic)  # doctest: +SKIP
        >>> ServerSite(cloud).nova.servers
    """

    def __init__(self, cloud: HttpCloud, *, pace: ServerPace | None = None, room: int = 4, quota: int = 10) -> None:
        clock = cloud.monotonic
        self.neutron = FakeNeutron(clock)
        self.cinder = FakeCinder(clock)
        self.nova = FakeNova(clock, self.neutron, self.cinder, pace=pace, room=room, quota=quota)
        self._handles: dict[ServiceName, Handle] = {
            "compute": self.nova.handle,
            "network": self._on_network,
            "block-storage": self._on_volumes,
            "image": self._on_images,
            "placement": _on_placement,
        }
        for service, host in _HOSTS.items():
            cloud.add(service, f"http://{host}.invalid", self._handles[service])

    def settle(self) -> None:
        """Let everything happen that is due by now."""
        self.nova.settle()

    def handle(self, call: Call, project: str) -> Answer:
        """Carry out one request of somebody who is logged in to a project."""
        return self._handles[call.service](call, project)

    def answer(self, call: Call, project: str) -> Answer:
        """What Nova, Neutron or Cinder say, in the state that they are in: nothing else happens first."""
        if call.service == "compute":
            return self.nova.answer(call, project)
        return (self.neutron.handle if call.service == "network" else self.cinder.answer)(call, project)

    def _on_network(self, call: Call, project: str) -> Answer:
        self.nova.settle()  # a host may have bound a port, or let go of it
        return self.neutron.handle(call, project)

    def _on_volumes(self, call: Call, project: str) -> Answer:
        self.nova.settle()
        return self.cinder.handle(call, project)

    def _on_images(self, call: Call, project: str) -> Answer:
        del project  # all of them are public
        named = call.query.get("name")
        shown = [{"id": i, "name": name, "status": "active"} for i, name in self.nova.images.items()]
        return page("images", [raw for raw in shown if named in {None, raw["name"]}], call, host="glance.invalid")


def _on_placement(call: Call, project: str) -> Answer:
    """As a member of a project meets it."""
    del call, project
    return Answer(status=403, body={"errors": [{"status": 403, "title": "Forbidden", "detail": _DENIED}]})


class SiteDoor(Door):
    """Every server that runs lets its lease in, at the address of its port."""

    def __init__(self, site: ServerSite) -> None:
        self._site = site

    def refuses(self, host: Host) -> str:
        """See `Door.refuses`."""
        self._site.settle()
        ports = self._site.neutron.ports.values()
        server = next((port.device for port in ports if port.address == host.address), "")
        found = self._site.nova.servers.get(server)
        return "" if found is not None and found.status == "ACTIVE" else "no answer in time"

"""What Nova, Neutron and Cinder answer where a lease depends on it: cases that hold the real ones and the fake."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

LONGEST = 255
NOBODY = "00000000-0000-4000-8000-000000000000"


class Ask(Protocol):
    """One service, asked as one user: status and body. Paths begin below the version (Neutron's: with it)."""

    def __call__(self, method: str, path: str, body: Any = None) -> tuple[int, Any]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The services of a project, and of a stranger's.

    Attributes:
        wanted: Of a small server that Nova would make, without a name.
        until: Waits for something.
    """

    nova: Ask
    neutron: Ask
    cinder: Ask
    placement: Ask
    strange_nova: Ask
    strange_neutron: Ask
    wanted: dict[str, Any]
    network: str
    until: Callable[[Callable[[], bool]], object]

    def made(self, name: str, **more: Any) -> str:
        """Id of a server that Nova took."""
        status, body = self.nova("POST", "/servers", {"server": {"name": name, **self.wanted, **more}})
        assert status == 202, body
        return str(body["server"]["id"])

    def runs(self, name: str, **more: Any) -> str:
        """Id of a server that runs."""
        server = self.made(name, **more)
        self.until(lambda: self.shown(server)["status"] == "ACTIVE")
        return server

    def shown(self, server: str) -> dict[str, Any]:
        """A server as its project sees it."""
        return self.nova("GET", f"/servers/{server}")[1]["server"]

    def delete(self, server: str) -> None:
        """Delete it and wait until it is gone."""
        assert self.nova("DELETE", f"/servers/{server}")[0] == 204
        self.until(lambda: self.nova("GET", f"/servers/{server}")[0] == 404)


def words(body: dict[str, Any]) -> str:
    """What a service says of its own refusal."""
    (fault,) = body.values()
    return str(fault["message"])


WRONG: list[tuple[dict[str, Any], int, str]] = [
    ({"metadata": {f"k{n}": "v" for n in range(128)}}, 202, ""),
    ({"metadata": {f"k{n}": "v" for n in range(129)}}, 403, "Maximum number of metadata items exceeds 128"),
    ({"metadata": {"k": "v" * LONGEST}}, 202, ""),
    ({"metadata": {"k": "v" * (LONGEST + 1)}}, 400, "Invalid input for field/attribute k"),
    ({"metadata": {"a/b": "v"}}, 400, "does not match any of the regexes"),
    ({"user_data": "A" * 65535}, 400, "Invalid input for field/attribute user_data"),
    ({"flavorRef": "none"}, 400, "Flavor none could not be found"),
    ({"imageRef": NOBODY}, 400, "Can not find requested image"),
    ({"networks": [{"uuid": NOBODY}]}, 400, "could not be found"),
    ({"networks": [{"port": NOBODY}]}, 400, "could not be found"),
    ({"availability_zone": "mars"}, 400, "requested availability zone is not available"),
]
"""What is asked for besides a small server; the answer; what it says."""


def limits_and_wrong_requests_are_refused_at_once(
    services: Services, more: dict[str, Any], status: int, said: str
) -> None:
    got, body = services.nova("POST", "/servers", {"server": {"name": "one", **services.wanted, **more}})
    assert got == status
    assert not said or said in words(body)


def a_name_is_not_unique_and_is_found_by_an_anchored_expression(services: Services) -> None:
    for name in ("ml-x-g1-0", "ml-x-g1-0", "ml-x-g1-01"):
        services.made(name)
    assert len(services.nova("GET", "/servers?name=ml-x-g1-0")[1]["servers"]) == 3
    assert len(services.nova("GET", "/servers?name=^ml-x-g1-0$")[1]["servers"]) == 2


def metadata_is_no_filter_of_a_list(services: Services) -> None:
    services.made("one", metadata={"run": "a"})
    status, found = services.nova("GET", '/servers?metadata={"run":"b"}')
    assert status == 200
    assert "one" in [server["name"] for server in found["servers"]]


def metadata_of_a_server_that_is_built_cannot_be_changed_and_deleting_it_waits_for_the_host(services: Services) -> None:
    nova = services.nova
    server = services.made("slow", metadata={"fault": "slow"})
    services.until(lambda: services.shown(server)["OS-EXT-STS:task_state"] == "spawning")
    status, body = nova("POST", f"/servers/{server}/metadata", {"metadata": {"a": "1"}})
    assert (status, words(body).partition("instance")[0]) == (409, "Cannot 'update metadata' ")
    assert [nova("DELETE", f"/servers/{server}")[0] for _ in range(2)] == [204, 204]
    now = services.shown(server)
    assert (now["status"], now["OS-EXT-STS:task_state"]) == ("BUILD", "deleting")
    services.until(lambda: nova("GET", f"/servers/{server}")[0] == 404)
    assert nova("DELETE", f"/servers/{server}")[0] == 404


def what_was_deleted_is_in_no_list_but_its_actions_are_kept(services: Services) -> None:
    server = services.runs("short")
    services.delete(server)
    assert server not in [one["id"] for one in services.nova("GET", "/servers?deleted=true")[1]["servers"]]
    actions = services.nova("GET", f"/servers/{server}/os-instance-actions")[1]["instanceActions"]
    assert {action["action"] for action in actions} == {"create", "delete"}
    ended = next(action["request_id"] for action in actions if action["action"] == "delete")
    shown = services.nova("GET", f"/servers/{server}/os-instance-actions/{ended}")[1]["instanceAction"]
    assert ("compute_terminate_instance", "Success") in {(each["event"], each["result"]) for each in shown["events"]}


def a_stranger_sees_and_reaches_nothing(services: Services) -> None:
    server = services.runs("ours")
    stranger = services.strange_nova
    assert stranger("GET", "/servers")[1]["servers"] == []
    assert stranger("GET", f"/servers/{server}")[0] == 404
    assert stranger("DELETE", f"/servers/{server}")[0] == 404
    assert services.shown(server)["status"] == "ACTIVE"


def a_locked_server_is_not_deleted(services: Services) -> None:
    nova, server = services.nova, services.runs("locked")
    assert nova("POST", f"/servers/{server}/action", {"lock": None})[0] == 202
    status, body = nova("DELETE", f"/servers/{server}")
    assert (status, words(body).endswith("is locked")) == (409, True)
    assert nova("POST", f"/servers/{server}/action", {"unlock": None})[0] == 202
    assert nova("DELETE", f"/servers/{server}")[0] == 204


def an_action_in_the_wrong_state_is_a_conflict(services: Services) -> None:
    server = services.runs("off")
    path, stop = f"/servers/{server}/action", {"os-stop": None}
    assert services.nova("POST", path, stop)[0] == 202
    services.until(lambda: services.shown(server)["status"] == "SHUTOFF")
    status, body = services.nova("POST", path, stop)
    assert (status, words(body).partition("it is in ")[2]) == (409, "vm_state stopped")


def a_port_of_ones_own_outlives_its_server_and_is_in_nobody_elses(services: Services) -> None:
    neutron = services.neutron
    body = {"network_id": services.network, "name": "ml-p", "description": "d" * LONGEST, "tags": ["t"]}
    (first, made), (second, _) = (neutron("POST", "/v2.0/ports", {"port": body}) for _ in range(2))
    assert (first, second) == (201, 201)  # the name is not unique
    assert made["port"]["tags"] == []  # tags are not set by the call that creates
    assert neutron("POST", "/v2.0/ports", {"port": {**body, "description": "d" * (LONGEST + 1)}})[0] == 400
    port = made["port"]["id"]
    server = services.runs("with-port", networks=[{"port": port}])
    wanted = {"name": "same-port", **services.wanted, "networks": [{"port": port}]}
    status, said = services.nova("POST", "/servers", {"server": wanted})
    assert (status, words(said)) == (409, f"Port {port} is still in use.")
    assert neutron("DELETE", f"/v2.0/ports/{port}")[0] == 403  # in use by a server: not its project's to delete
    assert services.strange_neutron("GET", "/v2.0/ports")[1]["ports"] == []

    services.delete(server)

    left = neutron("GET", f"/v2.0/ports/{port}")[1]["port"]
    assert (left["device_id"], left["status"]) == ("", "DOWN")
    assert [neutron("DELETE", f"/v2.0/ports/{port}")[0] for _ in range(2)] == [204, 404]


def two_servers_that_are_asked_for_with_one_port_are_one_that_runs(services: Services) -> None:
    """The call asks Neutron whether it is free, the host binds it: what comes in between is taken, and fails.

    Then Nova lets go of the port that the other one uses.
    """
    port = services.neutron("POST", "/v2.0/ports", {"port": {"network_id": services.network}})[1]["port"]["id"]
    wanted = {"name": "twin", **services.wanted, "networks": [{"port": port}]}
    asked = [services.nova("POST", "/servers", {"server": wanted}) for _ in range(2)]
    servers = [body["server"]["id"] for status, body in asked if status == 202]
    assert {status for status, _ in asked} <= {202, 409}

    def settled() -> bool:
        return all(services.shown(server)["status"] in {"ACTIVE", "ERROR"} for server in servers)

    services.until(settled)
    assert [services.shown(server)["status"] for server in servers].count("ACTIVE") == 1
    used_by = services.neutron("GET", f"/v2.0/ports/{port}")[1]["port"]["device_id"]
    assert used_by == ("" if len(servers) > 1 else servers[0])


def a_volume_in_use_is_not_deleted_and_survives_its_server_unless_told_otherwise(services: Services) -> None:
    cinder = services.cinder
    made = [cinder("POST", "/volumes", {"volume": {"name": "v", "size": 1}}) for _ in range(2)]
    assert [status for status, _ in made] == [202, 202]  # the name is not unique
    kept, gone = (body["volume"]["id"] for _, body in made)

    def state(volume: str) -> str:
        return str(cinder("GET", f"/volumes/{volume}")[1]["volume"]["status"])

    services.until(lambda: {state(kept), state(gone)} == {"available"})
    image = {"source_type": "image", "destination_type": "local", "uuid": services.wanted["imageRef"], "boot_index": 0}
    disks = [
        {"source_type": "volume", "destination_type": "volume", "uuid": volume, "delete_on_termination": goes}
        for volume, goes in ((kept, False), (gone, True))
    ]
    mapping = [{**image, "delete_on_termination": True}, *({**disk, "boot_index": -1} for disk in disks)]
    server = services.runs("with-volumes", block_device_mapping_v2=mapping)
    services.until(lambda: {state(kept), state(gone)} == {"in-use"})
    status, body = cinder("DELETE", f"/volumes/{kept}")
    assert (status, words(body).startswith("Invalid volume: Volume status must be available")) == (400, True)
    wanted = {"name": "same-volume", **services.wanted, "block_device_mapping_v2": mapping}
    status, body = services.nova("POST", "/servers", {"server": wanted})
    assert (status, "status must be" in words(body)) == (400, True)

    services.delete(server)

    services.until(lambda: state(kept) == "available")
    services.until(lambda: cinder("GET", f"/volumes/{gone}")[0] == 404)
    assert cinder("DELETE", f"/volumes/{kept}")[0] == 202
    services.until(lambda: cinder("DELETE", f"/volumes/{kept}")[0] == 404)


def a_member_sees_limits_but_not_placement(services: Services) -> None:
    absolute = services.nova("GET", "/limits")[1]["limits"]["absolute"]
    assert absolute["totalInstancesUsed"] < absolute["maxTotalInstances"] == 12
    assert services.placement("GET", "/allocation_candidates?resources=VCPU:1")[0] == 403


CASES = [
    a_name_is_not_unique_and_is_found_by_an_anchored_expression,
    metadata_is_no_filter_of_a_list,
    metadata_of_a_server_that_is_built_cannot_be_changed_and_deleting_it_waits_for_the_host,
    what_was_deleted_is_in_no_list_but_its_actions_are_kept,
    a_stranger_sees_and_reaches_nothing,
    a_locked_server_is_not_deleted,
    an_action_in_the_wrong_state_is_a_conflict,
    a_port_of_ones_own_outlives_its_server_and_is_in_nobody_elses,
    two_servers_that_are_asked_for_with_one_port_are_one_that_runs,
    a_volume_in_use_is_not_deleted_and_survives_its_server_unless_told_otherwise,
    a_member_sees_limits_but_not_placement,
]

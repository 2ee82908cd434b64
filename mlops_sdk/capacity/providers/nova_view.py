"""What Nova, Neutron and Cinder show of a lease, as data, and how it belongs together. Pure.

One server a piece, under the piece's name; of the same name its ports (made first: the record of the lease), and its
volumes. Names are not unique in any of the three, so everything is found by name *and* marker.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from mlops_sdk.capacity.evidence import Outcome
from mlops_sdk.capacity.lease import Marker, belongs
from mlops_sdk.capacity.owned import Owned
from mlops_sdk.capacity.providers.nova_marker import Metal, from_line, from_metadata, metal_of_line

NAME = "nova"
PORTS, VOLUMES = "mlops.ports", "mlops.volumes"  # in a server's metadata: what was made for it
ROLE = "mlops.role"  # in a volume's: what a server does with it


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server of Nova as observed.

    Attributes:
        id: Nova's.
        name: Not unique.
        status: `nova_states` has a row for each.
        task: What Nova does with it now ("" for nothing).
        created_at: ISO UTC.
        metadata: Its keys.
        flavor: Name of its flavor.
        placed: Whether it has a host.
        launched: Whether it ever ran.
        fault: Why it is in ERROR, in Nova's words.
        addresses: Of all its ports.
        bare_metal: It is a machine of Ironic: its flavor takes nothing virtual.
        device_profile: Of Cyborg, which its flavor names.
    """

    id: str
    name: str
    status: str
    task: str = ""
    created_at: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    flavor: str = ""
    placed: bool = False
    launched: bool = False
    fault: str = ""
    addresses: tuple[str, ...] = ()
    bare_metal: bool = False
    device_profile: str = ""

    @property
    def marker(self) -> Marker | None:
        """As it was written when the server was made."""
        return from_metadata(self.metadata)

    @property
    def children(self) -> frozenset[str]:
        """Ids of the ports and volumes that were made for it."""
        return frozenset(f"{self.metadata.get(PORTS, '')} {self.metadata.get(VOLUMES, '')}".split())

    @property
    def volumes(self) -> tuple[str, ...]:
        """Ids of the volumes that were made for it."""
        return tuple(self.metadata.get(VOLUMES, "").split())

    def __str__(self) -> str:
        doing = f", {self.task}" if self.task else ""
        return f"{self.name} ({self.id}): {self.status}{doing}{f': {self.fault}' if self.fault else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """A port of Neutron as observed. `server` is the id of what it is bound to, "" for nothing."""

    id: str
    name: str
    line: str = ""
    server: str = ""
    network: str = ""
    addresses: tuple[str, ...] = ()
    created_at: str = ""

    @property
    def marker(self) -> Marker | None:
        """Our marker, if it carries one."""
        return from_line(self.line)

    @property
    def metal(self) -> Metal | None:
        """The machine of Ironic under its server, if that is one."""
        return metal_of_line(self.line)


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A volume of Cinder as observed. `server` is the id of what it is attached to, `role` what it was made for."""

    id: str
    name: str
    status: str
    role: str = ""
    line: str = ""
    server: str = ""
    created_at: str = ""

    @property
    def marker(self) -> Marker | None:
        """Our marker, if it carries one."""
        return from_line(self.line)


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """One step of what Nova did to a server, as it keeps it: also after the server is gone."""

    action: str
    event: str
    result: str
    finished_at: str = ""


def age(thing: Server | Port | Volume) -> tuple[str, str]:
    """To compare by: the oldest first; the same for everybody who looks."""
    return (thing.created_at, thing.id)


def is_of(name: str, marker: Marker | None) -> bool:
    """Whether a marker agrees with the name that it stands under; whoever's it is."""
    return marker is not None and belongs(name, marker, marker.deployment_id)


def records(ports: Iterable[Port]) -> dict[str, Marker]:
    """The marker that counts for each name: of its ports' that which was renewed last."""
    found: dict[str, Marker] = {}
    for port in ports:
        marker = port.marker
        if marker is None or not is_of(port.name, marker):
            continue
        before = found.get(port.name)
        if before is None or before.renewed_until < marker.renewed_until:
            found[port.name] = marker
    return found


def in_force(name: str, own: Marker | None, record: Mapping[str, Marker]) -> Marker | None:
    """What a thing's marker says now: its own words, with the times of the record of its name."""
    kept = record.get(name)
    if own is None or kept is None or (own.run_id, own.generation) != (kept.run_id, kept.generation):
        return own
    return replace(
        own,
        deadline=kept.deadline,
        renewed_until=kept.renewed_until,
        priority=kept.priority,
        preemptible=kept.preemptible,
    )


def owned(
    deployment_id: str, servers: Iterable[Server], ports: Iterable[Port], volumes: Iterable[Volume]
) -> Iterator[Owned]:
    """Everything of this deployment: servers, and below them the ports and volumes of their name.

    A port that is not bound yet belongs to the server of its name all the same: it is being built with it.
    """
    ports = list(ports)
    record = records(ports)
    ours = [s for s in servers if belongs(s.name, s.marker, deployment_id)]
    there = {server.id for server in ours}
    by_name = {server.name: server.id for server in sorted(ours, key=age, reverse=True)}
    for server in ours:
        marker = in_force(server.name, server.marker, record)
        if marker is not None:
            yield Owned(
                provider=NAME,
                kind="server",
                id=server.id,
                name=server.name,
                marker=marker,
                created_at=server.created_at,
                node_id=server.id,
                node_name=server.name,
            )
    for kind, children in (("port", ports), ("volume", list(volumes))):
        for child in children:
            marker = in_force(child.name, child.marker, record)
            if marker is not None and belongs(child.name, marker, deployment_id):
                parent = child.server if child.server in there else by_name.get(child.name, "")
                yield Owned(
                    provider=NAME,
                    kind=kind,
                    id=child.id,
                    name=child.name,
                    marker=marker,
                    created_at=child.created_at,
                    parent=parent,
                )


def judge(actions: Iterable[Action] | None, *, deployed: bool) -> tuple[Outcome, str, str]:
    """How a server ended that is gone: the outcome, when it was, and what shows it.

    Clean means that its host reported the end of `compute_terminate_instance`: the guest is off and its disk deleted.
    Nova forgets a server also while its host is down; then nobody ended the guest, and there is no such report.

    Args:
        actions: What Nova keeps of it; None when it keeps nothing (any more) or does not show it.
        deployed: Whether something of ours may have run on it.
    """
    known = list(actions or ())
    for found in known:
        if found.event == "compute_terminate_instance" and found.result == "Success":
            return Outcome.CLEANED, found.finished_at, "its host deleted the guest and its disk"
    if known and not any(found.event.startswith("compute_") for found in known):
        return Outcome.NEVER_DEPLOYED, "", "no host ever took it"
    if not known and not deployed:
        return Outcome.NEVER_DEPLOYED, "", "Nova knows no server of it"
    said = "its host did not report that it deleted the guest" if known else "Nova keeps no record of its end"
    return Outcome.UNPROVEN, "", said

"""The machines of Ironic under a fake Nova: given to servers, cleaned when these go, shown to some logins."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from mlops_sdk.capacity.lease import to_iso
from mlops_sdk.capacity.providers.ironic_view import Machine
from mlops_sdk.testing.clock import FakeClock

CLEANING_S = 5.0


@dataclass(slots=True, kw_only=True)
class FakeMetal:
    """Machines by id, and how they behave.

    Attributes:
        nodes: As Ironic knows them.
        visible: Whether Ironic shows them to this login.
        ends_in: What becomes of one that is torn down: ``available``, ``clean failed``, or ``error`` at once.
        erases: Whether its cleaning erases disks.
        foreign: Whether they belong to somebody else: we may look, and not tear down.
    """

    nodes: dict[str, Machine] = field(default_factory=dict[str, Machine])
    visible: bool = True
    ends_in: str = "available"
    erases: bool = True
    foreign: bool = False
    _cleaned_at: dict[str, float] = field(default_factory=dict[str, float])

    def add(self, node_id: str) -> None:
        """One more machine, available."""
        self.nodes[node_id] = Machine(
            id=node_id, name=f"metal-{len(self.nodes) + 1:02d}", provision_state="available", power_state="power off"
        )

    def shown(self, node_id: str) -> Machine | None:
        """As this login sees it."""
        return self.nodes.get(node_id) if self.visible else None

    def deploy(self, server_id: str) -> None:
        """Give a free machine to a server."""
        node = next((n for n in self.nodes.values() if n.provision_state == "available" and not n.taken), None)
        if node is not None:
            self.nodes[node.id] = replace(node, provision_state="active", instance_id=server_id)

    def tear_down(self, server_id: str, clock: FakeClock) -> None:
        """Take a server's machine back; it is cleaned for a while."""
        for node in list(self.nodes.values()):
            if node.instance_id == server_id:
                failed = self.ends_in == "error"
                state, error = ("error", "the tear-down failed") if failed else ("cleaning", "")
                self.nodes[node.id] = replace(node, provision_state=state, instance_id="", last_error=error)
                self._cleaned_at[node.id] = clock.monotonic() + CLEANING_S

    def moved(self, clock: FakeClock) -> None:
        """End the cleanings whose time has come."""
        for node in list(self.nodes.values()):
            if node.provision_state == "cleaning" and clock.monotonic() >= self._cleaned_at[node.id]:
                self.nodes[node.id] = self._cleaned(node, clock)

    def _cleaned(self, node: Machine, clock: FakeClock) -> Machine:
        if self.ends_in != "available":
            return replace(
                node, provision_state=self.ends_in, maintenance=True, fault="clean failure", last_error="no disk"
            )
        steps = ["erase_devices"] if self.erases else ["update_firmware"]
        record = {"finished_at": to_iso(clock.now()), "steps": steps}
        return replace(node, provision_state="available", extra={**node.extra, "cleaned": record})

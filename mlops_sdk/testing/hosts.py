"""Hosts of a fixed pool in memory: what a lease does on one, with scripted failures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mlops_sdk.capacity.providers.static_claim import Before
from mlops_sdk.capacity.providers.static_shell import HostShell
from mlops_sdk.config import StaticHost
from mlops_sdk.errors import NodeFailed, RemoteCommandError
from mlops_sdk.testing.faults import FaultScript


@dataclass(slots=True, kw_only=True)
class FakeHost:
    """A host, and how it behaves.

    Attributes:
        keys: Who may log in.
        processes: Of the account.
        fails: Which of ``look``, ``let_in``, ``clean`` fail; ``away`` answers nobody.
        lessees: How many leases were let in, one after the other.
        claim: Whose lease is let in now.
    """

    keys: list[str] = field(default_factory=lambda: ["ssh-ed25519 DEPLOYMENT"])
    processes: list[str] = field(default_factory=lambda: ["1:0"])
    fails: set[str] = field(default_factory=set[str])
    lessees: int = 0
    claim: str = ""


class FakeHosts(HostShell):
    """`HostShell` on hosts in memory.

    Args:
        faults: Which calls fail; they are named ``host_look``, ``host_let_in``, ``host_clean``.
    """

    def __init__(self, faults: FaultScript | None = None) -> None:
        self.faults = faults or FaultScript()
        self.hosts: dict[str, FakeHost] = {}

    def host(self, name: str) -> FakeHost:
        """By name; made at its first use."""
        return self.hosts.setdefault(name, FakeHost())

    def look(self, host: StaticHost) -> Before:
        """See `HostShell.look`."""
        with self.faults.call("host_look"):
            found = self._answering(host, "look")
            keys = "".join(f"{key}\n" for key in found.keys)
            return Before(authorized_keys=keys, processes=tuple(found.processes), image="image-1")

    def let_in(self, host: StaticHost, before: Before, public_keys: Sequence[str], claim_id: str) -> None:
        """See `HostShell.let_in`; the lease starts a process at once."""
        with self.faults.call("host_let_in"):
            found = self._answering(host, "let_in")
            found.keys = [*before.authorized_keys.splitlines(), *public_keys]
            found.lessees += 1
            found.claim = claim_id
            found.processes.append(f"{100 + found.lessees}:{found.lessees}")

    def clean(self, host: StaticHost, before: Before, run_key: str, claim_id: str) -> str:
        """See `HostShell.clean`."""
        del run_key
        with self.faults.call("host_clean"):
            found = self._answering(host, "clean")
            if found.claim not in {"", claim_id}:
                raise RemoteCommandError(
                    f"cleaning {host.name!r} failed", seen="it is leased to somebody else meanwhile"
                )
            found.claim = ""
            ended = [item for item in found.processes if item not in before.processes]
            found.keys = before.authorized_keys.splitlines()
            found.processes = [item for item in found.processes if item in before.processes]
            return f"{len(ended)} processes ended"

    def _answering(self, host: StaticHost, call: str) -> FakeHost:
        found = self.host(host.name)
        if "away" in found.fails:
            raise NodeFailed(f"no SSH login on {host.name!r}", seen="no answer in time")
        if call in found.fails:
            raise RemoteCommandError(f"{call} on {host.name!r} failed", seen=f"exit status 5: {call} is stuck")
        return found

"""Accelerator requests of Cyborg (ARQs): what ties a card to a server of Nova, as data. Pure.

Nova makes one for each resource of a device profile, binds it to the server when a host is chosen, and deletes it with
the server. It does not look whether that worked: a request that is left keeps its card, while Placement counts the card
as free, and whoever gets it next fails to be built (Nova 34, ``delete_arqs_if_needed``). One whose binding was never
asked for, because Nova died before, belongs to no server and holds no card.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

ONLY_SERVICES: Final = (
    "Cyborg lets only a service of the cloud delete what is bound to a server; give the reaper nova.service_login"
)
_NOT_BOUND: Final = "Failed to bind accelerator requests"
_AGAIN: Final = "give the lease back; a retry opens the next generation"


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceleratorRequest:
    """One accelerator request.

    Attributes:
        id: Cyborg's.
        state: Its word.
        profile: Name of its device profile.
        server: Id of the server that it is bound to, "" for none.
        host: Where the card is.
        device: The card there.
    """

    id: str
    state: str
    profile: str = ""
    server: str = ""
    host: str = ""
    device: str = ""

    def __str__(self) -> str:
        where = f" of {self.host}" if self.host else ""
        return f"accelerator request {self.id} ({self.profile}, {self.state}, {self.device or 'no card'}{where})"


def request_of(raw: Mapping[str, Any]) -> AcceleratorRequest:
    """A request as Cyborg shows it."""
    handle: Mapping[str, Any] = raw.get("attach_handle_info") or {}
    pci = [str(handle.get(key) or "") for key in ("domain", "bus", "device", "function")]
    return AcceleratorRequest(
        id=str(raw["uuid"]),
        state=str(raw.get("state") or ""),
        profile=str(raw.get("device_profile_name") or ""),
        server=str(raw.get("instance_uuid") or ""),
        host=str(raw.get("hostname") or ""),
        device="{}:{}:{}.{}".format(*pci) if all(pci) else "",
    )


def left_over(requests: Iterable[AcceleratorRequest]) -> str:
    """What is still tied to a server that is gone, in words; "" for nothing."""
    return "; ".join(str(each) for each in requests)


def advice(fault: str) -> str:
    """What to do about a server that failed so, in Nova's words.

    Example:
        >>> advice("Build of instance 1 aborted")
        'give the lease back; a retry opens the next generation'
    """
    if _NOT_BOUND not in fault:
        return _AGAIN
    return f"{_AGAIN}, but a card may be bound to a server that is gone, and be offered again: `mlops doctor` names it"
